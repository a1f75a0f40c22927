"""Random rotations by Walsh-Hadamard matrices: outliers are spread over a block before it is rounded."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from trimtab.checks import whole
from trimtab.precision.randomness import seed_for
from trimtab.precision.scaling import dimension

FACTOR = 16


@dataclass(frozen=True)
class Hadamard:
    """Blocks of `size` entries along `dim`, each times random signs and the orthonormal Walsh-Hadamard matrix: y = H D x.

    H has the entries +-1 / sqrt(size), D the signs that `seed` draws, the same for every block and on every device. Both
    operands of a product turned along its contraction leave it as it is, since (H D)' H D = 1. A block's cost is
    O(size log size): products with matrices of at most 16 rows.

    Args:
        size: a power of two, default 16 as in arXiv 2509.25149 (128 in 2601.22813).
        seed: default 0.
        dim: default the last.

    Raises:
        ValueError: a size that is no power of two; a length that `size` does not divide (zeros may be put behind it, which
            leave a product as it is).

    Example:
        >>> turn = Hadamard(4)
        >>> turn(torch.tensor([1.0, 0.0, 0.0, 0.0])).abs()
        tensor([0.5000, 0.5000, 0.5000, 0.5000])
        >>> turn.inverse(turn(torch.tensor([1.0, 2.0, 3.0, 4.0])))
        tensor([1., 2., 3., 4.])
    """

    size: int = 16
    seed: int = 0
    dim: int = -1

    def __post_init__(self) -> None:
        whole("size of a Hadamard transform", self.size, 2)
        if self.size & (self.size - 1):
            low = 1 << (self.size.bit_length() - 1)
            raise ValueError(
                f"the size of a Hadamard transform must be a power of two, got {self.size}; the nearest are {low} and {2 * low}"
            )
        whole("seed", self.seed)

    def signs(self, x: Tensor) -> Tensor:
        """The diagonal of D, on the device of x; shape (size,)."""
        return _signs(self.size, self.seed).to(x.device, _wide(x))

    def __call__(self, x: Tensor) -> Tensor:
        """H D x, in the shape and dtype of x; float16 and bfloat16 are turned in float32."""
        return self._turn(x, inverse=False)

    def inverse(self, y: Tensor) -> Tensor:
        """D H y."""
        return self._turn(y, inverse=True)

    def _turn(self, x: Tensor, *, inverse: bool) -> Tensor:
        if not x.is_floating_point():
            raise TypeError(f"a Hadamard transform is of real floating-point tensors, got {x.dtype}")
        dim = dimension(self.dim, x)
        if x.shape[dim] % self.size:
            raise ValueError(
                f"a Hadamard transform in blocks of {self.size} needs a length that they divide, got {x.shape[dim]} along "
                f"dimension {self.dim} of {tuple(x.shape)}; zeros put behind it leave products as they are"
            )
        moved = x.movedim(dim, -1)
        blocks = moved.to(_wide(x)).reshape(-1, self.size)
        signs = self.signs(x)
        turned = walsh(blocks) * signs if inverse else walsh(blocks * signs)
        return turned.to(x.dtype).reshape(moved.shape).movedim(-1, dim)


def walsh(rows: Tensor) -> Tensor:
    """Each row times the orthonormal Walsh-Hadamard matrix in Sylvester's order; the length is a power of two."""
    size = rows.shape[-1]
    inner = min(size, FACTOR)
    rows = rows.reshape(-1, inner) @ _matrix(inner).to(rows.device, rows.dtype)
    done = inner
    while done < size:  # H of a * b is the Kronecker product of those of a and b
        outer = min(size // done, FACTOR)
        left = _matrix(outer).to(rows.device, rows.dtype)
        rows = torch.matmul(left, rows.reshape(-1, outer, done))
        done *= outer
    return rows.reshape(-1, size).mul_(1 / math.sqrt(size))


@functools.cache
def _matrix(size: int) -> Tensor:
    """Entries +-1, in Sylvester's order."""
    matrix = torch.ones(1, 1, dtype=torch.float64)
    while len(matrix) < size:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    return matrix


@functools.lru_cache(64)
def _signs(size: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed_for(seed, "hadamard", size))
    return torch.randint(0, 2, (size,), generator=generator).double() * 2 - 1


def _wide(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32
