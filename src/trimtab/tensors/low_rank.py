"""Leading singular vectors of a matrix."""

from __future__ import annotations

import torch
from torch import Tensor

MORE, POWERS = 8, 2
"""Vectors beyond the rank, and power iterations, of the randomized form (Halko et al., arXiv 0909.4061)."""


def leading_vectors(matrix: Tensor, rank: int, *, right: bool, seed: int | None = None) -> Tensor:
    """The `rank` leading right singular vectors as rows, shape (rank, columns), or the left ones as columns, (rows, rank).

    Args:
        matrix: of two dimensions, finite.
        rank: at most its smaller side.
        right: which of them.
        seed: of the randomized form; None for the exact one. The same seed gives the same vectors.

    Example:
        >>> leading_vectors(torch.diag(torch.tensor([3.0, 1.0])), 1, right=True).abs()
        tensor([[1., 0.]])
    """
    if seed is None or rank + MORE >= min(matrix.shape):
        left, _, rows = torch.linalg.svd(matrix, full_matrices=False)
        return _taken(left, rows, rank, right=right)
    generator = torch.Generator().manual_seed(seed)
    start = torch.randn(matrix.shape[1], rank + MORE, dtype=matrix.dtype, generator=generator).to(matrix.device)
    basis = torch.linalg.qr(matrix @ start)[0]
    for _ in range(POWERS):
        basis = torch.linalg.qr(matrix @ torch.linalg.qr(matrix.mT @ basis)[0])[0]
    left, _, rows = torch.linalg.svd(basis.mT @ matrix, full_matrices=False)
    return _taken(basis @ left, rows, rank, right=right)


def _taken(left: Tensor, rows: Tensor, rank: int, *, right: bool) -> Tensor:
    return rows[:rank].contiguous() if right else left[:, :rank].contiguous()
