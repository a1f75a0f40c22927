"""Optimal brain surgery of one layer, column by column: what SparseGPT does to a weight, given the Gram of its inputs."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from trimtab.tensors.selection import kth_threshold, removed_count, smallest_in_groups, smallest_masks

RAISES = 3
"""How often the damping is multiplied by ten before a layer is given up."""
LEAST_ROWS = 512
"""Rows that are worked on together at least: fewer take as long."""


class RowGrid:
    """Rounds to `2**bits` even steps between the least and the largest weight of each output row; 0 is one of them.

    The published quantiser: asymmetric, per row, from the weights before pruning.
    """

    def __init__(self, weight: Tensor, bits: int) -> None:
        least, most = weight.amin(1).clamp(max=0), weight.amax(1).clamp(min=0)
        empty = (least == 0) & (most == 0)
        least, most = least.masked_fill(empty, -1), most.masked_fill(empty, 1)
        self.top: float = 2.0**bits - 1
        self.scale = (most - least) / self.top
        self.zero = torch.round(-least / self.scale)

    def __call__(self, column: Tensor) -> Tensor:
        """The nearest steps of a column, one weight of each row."""
        steps = torch.clamp(torch.round(column / self.scale) + self.zero, 0, self.top)
        return self.scale.mul(steps - self.zero)


def inverse_factor(gram: Tensor, damping: float, name: str) -> tuple[Tensor, Tensor]:
    """The upper Cholesky factor of `(gram + damping mean(diagonal) I)^-1`, in the place of `gram`, and which inputs are dead.

    Inputs that are always zero count as 1 on the diagonal. Where float32 does not reach, the damping is raised tenfold up to
    three times, and a warning says so. At no time are there more than three matrices of its size.

    Raises:
        ValueError: not even then.
    """
    diagonal = gram.diagonal()
    dead = diagonal == 0
    diagonal.masked_fill_(dead, 1)
    mean, plain = diagonal.mean(), diagonal.clone()
    for raised in range(RAISES + 1):
        diagonal.copy_(plain + damping * 10**raised * mean)
        lower, failed = torch.linalg.cholesky_ex(gram)
        if int(failed):
            continue
        torch.cholesky_inverse(lower, out=gram)
        torch.linalg.cholesky_ex(gram, upper=True, out=(gram, failed))
        if not int(failed) and bool(diagonal.isfinite().all()):
            if raised:
                warnings.warn(
                    f"{name}: the Gram matrix of its inputs is not positive with damping {damping:g}; "
                    f"{damping * 10**raised:g} was used. More calibration data help",
                    stacklevel=4,
                )
            return gram, dead
        torch.mm(lower, lower.T, out=gram)  # as it was, for the next damping
    raise ValueError(
        f"{name}: the Gram matrix of its inputs cannot be inverted, not even with damping {damping * 10**RAISES:g}; give more "
        "calibration data or a larger damping"
    )


def _blocks(columns: int, block: int) -> Iterator[tuple[int, int]]:
    for start in range(0, columns, block):
        yield start, min(start + block, columns)


def solve_(
    weight: Tensor,
    factor: Tensor,
    dead: Tensor,
    *,
    sparsity: float,
    groups: tuple[int, int] | None,
    block: int,
    quantize: int | Callable[[Tensor], Tensor] | None,
) -> Tensor:
    """Prune `weight` (rows, columns) in place, the weights that stay making up for those that go; True where they go.

    Args:
        weight: float32 or float64.
        factor, dead: of the Gram matrix of its inputs, as `inverse_factor` gives them.
        sparsity: exactly `floor(sparsity * n + 0.5)` of the n weights go, chosen block by block.
        groups: (N, M) instead of a sparsity: N of every M columns stay.
        block: columns that are decided together.
        quantize: bits, a function of a column, or None.
    """
    rows, columns = weight.shape
    weight[:, dead] = 0
    if groups is not None:
        block = max(block // groups[1], 1) * groups[1]
    # a function sees a column as a whole: what it rounds by may be of all of it
    bands = [slice(0, rows)] if callable(quantize) else _bands(rows, columns, block)
    grids = [RowGrid(weight[band], quantize) if isinstance(quantize, int) else quantize for band in bands]
    gone = torch.zeros_like(weight, dtype=torch.bool)
    for start, end in _blocks(columns, block):
        if groups is None:
            count = removed_count(sparsity, rows * end) - removed_count(sparsity, rows * start)
            scores = (weight[:, start:end] / factor.diagonal()[start:end]).square_()
            (gone[:, start:end],) = smallest_masks([scores], *kth_threshold([scores], [count]))
            del scores
        for band, grid in zip(bands, grids, strict=True):
            _solve_block_(weight[band], gone[band], factor, start, end, groups, grid)
    return gone


def _bands(rows: int, columns: int, block: int) -> list[slice]:
    """Rows that are worked on together: what is copied of them in a block takes less than a matrix of the inputs' size."""
    size = max(columns * columns // (4 * min(block, columns)), LEAST_ROWS)
    return [slice(first, min(first + size, rows)) for first in range(0, rows, size)]


def _solve_block_(
    weight: Tensor,
    gone: Tensor,
    factor: Tensor,
    start: int,
    end: int,
    groups: tuple[int, int] | None,
    grid: Callable[[Tensor], Tensor] | None,
) -> None:
    """One block of columns of some rows; with groups, what goes is decided as they are reached, and marked in `gone`."""
    inside = factor[start:end, start:end]
    spread = inside.diagonal()
    work = weight[:, start:end].T.contiguous()  # columns are read and changed one after the other
    mask = gone[:, start:end].T.contiguous()
    errors = torch.empty_like(work)
    for column in range(end - start):
        if groups is not None and column % groups[1] == 0:
            part = slice(column, column + groups[1])
            mask[part] = smallest_in_groups((work[part] / spread[part, None]).square_(), *groups, axis=0)
        before = work[column]
        after = before if grid is None else grid(before)
        after = after.masked_fill(mask[column], 0)
        torch.div(before - after, spread[column], out=errors[column])
        work[column:].addr_(inside[column, column:], errors[column], alpha=-1)
        work[column] = after
    weight[:, start:end] = work.T
    if groups is not None:
        gone[:, start:end] = mask.T
    weight[:, end:].addmm_(errors.T, factor[start:end, end:], alpha=-1)
