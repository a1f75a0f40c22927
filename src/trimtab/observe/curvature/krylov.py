"""Lanczos with full reorthogonalization: an orthonormal basis of a Krylov space and the operator's projection onto it.

The projection is formed from all coefficients that reorthogonalization yields, so one recurrence serves one start vector
or several (block Lanczos) and fresh vectors after a breakdown. Full reorthogonalization keeps the basis orthonormal to
rounding: an eigenvalue appears as often as it occurs, never as a ghost. Golub and Van Loan, Matrix Computations, 10.3;
"twice is enough": Parlett, The Symmetric Eigenvalue Problem, 6.9.
"""

from __future__ import annotations

import torch
from torch import Tensor

from trimtab.observe.curvature.operator import ASYMMETRY, SymmetricOperator, asymmetric

ROWS = 16  # basis vectors per block of memory


class Krylov:
    """Basis vectors in rows: those multiplied already, then those pending.

    Attributes:
        multiplied: how many basis vectors the operator has been applied to.
        count: basis vectors in all.
    """

    def __init__(self, operator: SymmetricOperator) -> None:
        self._operator = operator
        self._blocks: list[Tensor] = []
        self._columns: list[Tensor] = []
        self._scale = 0.0
        self.multiplied = self.count = 0

    def _filled(self) -> list[Tensor]:
        return [block[: min(ROWS, self.count - ROWS * number)] for number, block in enumerate(self._blocks)]

    def _orthogonalize(self, vector: Tensor) -> tuple[Tensor, Tensor, float]:
        """The part of `vector` orthogonal to the basis, the coefficients taken out (float64), and its norm."""
        taken = torch.zeros(self.count, dtype=torch.float64)
        norm = float(torch.linalg.vector_norm(vector))
        for _ in range(4):
            if not self.count or not norm:
                break
            parts = []
            for block in self._filled():
                part = block @ vector
                vector = torch.addmv(vector, block.T, part, alpha=-1)
                parts.append(part)
            taken += torch.cat(parts).double().cpu()
            before, norm = norm, float(torch.linalg.vector_norm(vector))
            if norm > 0.7 * before:
                break
        return vector, taken, norm

    def _append(self, vector: Tensor) -> None:
        if self.count == ROWS * len(self._blocks):
            self._blocks.append(vector.new_empty(ROWS, vector.numel()))
        self._blocks[-1][self.count % ROWS] = vector
        self.count += 1

    def start(self, vector: Tensor) -> bool:
        """Add a direction; False when it lies in the basis already."""
        vector = vector / torch.linalg.vector_norm(vector)
        rest, _, norm = self._orthogonalize(vector)
        if self.count >= self._operator.size or norm < 100 * torch.finfo(vector.dtype).eps:
            return False
        self._append(rest / norm)
        return True

    @property
    def pending(self) -> bool:
        """Whether there is a basis vector to multiply."""
        return self.multiplied < self.count

    def step(self) -> None:
        """Multiply the next pending vector and add what is new in the product."""
        number, row = divmod(self.multiplied, ROWS)
        product = self._operator @ self._blocks[number][row]
        self._scale = max(self._scale, float(torch.linalg.vector_norm(product)))
        rest, taken, norm = self._orthogonalize(product)
        self.multiplied += 1
        if norm > 10 * torch.finfo(rest.dtype).eps * self._scale and self.count < self._operator.size:
            self._append(rest / norm)
            taken = torch.cat([taken, torch.tensor([norm], dtype=torch.float64)])
        self._columns.append(taken)
        self._check_symmetry()

    def _check_symmetry(self) -> None:
        last = self.multiplied - 1
        above = self._columns[last][:last]
        left = torch.tensor(
            [float(c[last]) if len(c) > last else 0.0 for c in self._columns[:last]], dtype=torch.float64
        )
        if last and (difference := float((above - left).abs().max())) > ASYMMETRY * self._scale:
            raise asymmetric(difference)

    def projection(self) -> tuple[Tensor, Tensor]:
        """The operator between multiplied vectors, shape (m, m), and from them to pending ones, shape (p, m); float64."""
        m = self.multiplied
        full = torch.zeros(self.count, m, dtype=torch.float64)
        for position, column in enumerate(self._columns):
            full[: len(column), position] = column
        square = full[:m]
        return (square + square.T) / 2, full[m:]

    def combine(self, coefficients: Tensor) -> Tensor:
        """Vectors in rows, shape (k, n), from coefficients over the multiplied basis vectors, shape (m, k)."""
        basis = torch.cat(self._filled())[: self.multiplied]
        return coefficients.T.to(basis) @ basis


def gaussian(size: int, generator: torch.Generator, like: SymmetricOperator) -> Tensor:
    """A standard normal vector, the same on every device."""
    return torch.randn(size, generator=generator, dtype=torch.float64).to(like.device, like.dtype)


def rademacher(size: int, generator: torch.Generator, like: SymmetricOperator) -> Tensor:
    """A vector of random signs, the same on every device."""
    return (2 * torch.randint(2, (size,), generator=generator) - 1).to(like.device, like.dtype)
