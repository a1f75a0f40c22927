"""Symmetric matrices known by their products with vectors: `operator @ v`."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from trimtab.observe.curvature.results import Setting

ASYMMETRY = (
    1e-2  # of a product's size: far above rounding, far below what a random loss or a rounded backward pass gives
)
CHECKED = (
    3  # products held against the random vector: of so many, chance hides an asymmetry of a tenth once in 2,000 times
)


def asymmetric(difference: float) -> ValueError:
    """What is raised where `<u, A v>` and `<v, A u>` differ."""
    return ValueError(
        f"the operator is not symmetric: entries differ by {difference:.4g}; the loss must be the same function at every "
        "product (no random augmentation, the same batches each time), and its backward pass exact (not rounded, as under "
        "LowPrecision(activations=...), StraightThrough or float16)"
    )


class SymmetricOperator(ABC):
    """A symmetric matrix A of shape (size, size) that is only multiplied with.

    That it is symmetric is checked at the first three products: each, `A v`, is held against one more product, `A u` with
    random signs u. `|<u, A v> - <v, A u>|` may be 1e-2 of `max(||A v||, ||v|| ||A u|| / sqrt(size))` [ours].

    Attributes:
        size: number of rows.
        dtype: of its vectors.
        device: of its vectors.
        products: how many products have been taken so far, without the check's.

    Raises:
        ValueError: on `@`, a vector of another length, a product that is not finite, or an operator that is not symmetric.
    """

    known_symmetric = False
    """Whether there is nothing to check, by construction."""

    def __init__(self, size: int, dtype: torch.dtype, device: torch.device) -> None:
        self.size, self.dtype, self.device = size, dtype, device
        self.products = 0
        self._checks = 0
        self._pair: tuple[Tensor, Tensor] | None = None

    @abstractmethod
    def _product(self, vector: Tensor) -> Tensor:
        """The matrix times a vector of shape (size,)."""

    @property
    def setting(self) -> Setting | None:
        """What is measured, None for a plain matrix."""
        return None

    def __matmul__(self, other: Tensor) -> Tensor:
        if other.ndim == 2:
            return torch.stack([self @ column for column in other.unbind(1)], dim=1)
        if other.shape != (self.size,):
            raise ValueError(f"expected a vector of shape ({self.size},), got {tuple(other.shape)}")
        vector = other.to(self.device, self.dtype)
        product = self._finite(vector)
        self.products += 1
        if not self.known_symmetric and self._checks < CHECKED:
            self._check(vector, product)
        return product

    def _finite(self, vector: Tensor) -> Tensor:
        product = self._product(vector)
        if not bool(torch.isfinite(product).all()):
            raise ValueError("a product with the operator is not finite: the loss has no second derivative here")
        return product

    def _check(self, vector: Tensor, product: Tensor) -> None:
        """`<u, A v> = <v, A u>` for random signs u, drawn once, the same on every rank."""
        if self._pair is None:
            signs = 2 * torch.randint(2, (self.size,), generator=torch.Generator().manual_seed(0)) - 1
            probe = signs.to(self.device, self.dtype)
            self._pair = probe, self._finite(probe)
        probe, probed = (kept.double() for kept in self._pair)
        v, av = vector.double(), product.double()
        norm = torch.linalg.vector_norm
        scale = torch.maximum(norm(av), norm(v) * norm(probed) / math.sqrt(self.size))
        difference = float((torch.dot(probe, av) - torch.dot(v, probed)).abs())
        if difference > ASYMMETRY * float(scale):
            raise asymmetric(difference)
        self._checks += 1
        if self._checks == CHECKED:
            self._pair = None


class MatrixOperator(SymmetricOperator):
    """A matrix that is at hand, as an operator.

    Args:
        matrix: shape (n, n), symmetric, float32 or float64.

    Raises:
        ValueError: the matrix is not square or not symmetric.

    Example:
        >>> (MatrixOperator(torch.diag(torch.tensor([2.0, 3.0]))) @ torch.ones(2)).tolist()
        [2.0, 3.0]
    """

    known_symmetric = True

    def __init__(self, matrix: Tensor) -> None:
        if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or not torch.allclose(matrix, matrix.T):
            raise ValueError(f"expected a symmetric matrix, got one of shape {tuple(matrix.shape)}")
        super().__init__(matrix.shape[0], matrix.dtype, matrix.device)
        self._matrix = matrix

    def _product(self, vector: Tensor) -> Tensor:
        return self._matrix @ vector


class Scaled(SymmetricOperator):
    """`D A D` with a diagonal D.

    Args:
        operator: A.
        scale: the diagonal of D, shape (size,).
        description: added to the operator's own in the results.

    Example:
        >>> identity = MatrixOperator(torch.eye(2))
        >>> (Scaled(identity, torch.tensor([1.0, 3.0])) @ torch.ones(2)).tolist()
        [1.0, 9.0]
    """

    known_symmetric = True  # where A is, which checks itself

    def __init__(self, operator: SymmetricOperator, scale: Tensor, description: str = "scaled") -> None:
        if scale.shape != (operator.size,):
            raise ValueError(f"expected a scale of shape ({operator.size},), got {tuple(scale.shape)}")
        super().__init__(operator.size, operator.dtype, operator.device)
        self._operator, self._scale = operator, scale.to(operator.device, operator.dtype)
        self._description = description

    @property
    def setting(self) -> Setting | None:
        """The operator's own, with the scaling named."""
        from dataclasses import replace

        setting = self._operator.setting
        return setting and replace(setting, curvature=f"{setting.curvature} {self._description}")

    def _product(self, vector: Tensor) -> Tensor:
        return self._scale * (self._operator @ (self._scale * vector))
