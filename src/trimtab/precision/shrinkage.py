"""How much rounding shrinks a tensor, how much noise it adds, how many entries die: sums first, ratios at the end.

Sums add over chunks, shards, ranks and layers; ratios do not. So tensors are reduced to sums on their device, and the
quantities that people read are computed from them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from trimtab.collectives import local_part
from trimtab.precision.format import Format
from trimtab.precision.rounding import arithmetic_dtype
from trimtab.precision.scaling import Scaling

PIECE_CPU, PIECE_GPU = 1 << 16, 1 << 22
"""Elements summed at a time, so that their float64 copies stay small (measured)."""
SUMS = (
    "n", "nonzero", "kept", "overflow", "nan", "inf", "signal", "product", "error", "lost", "watched", "oscillating", "loss",
)  # fmt: skip
"""What `shrinkage_sums` gives, in this order."""


class Shrinkage(NamedTuple):
    """What rounding g to g~ did, each of the shape of the sums without their last dimension; float64.

    With `q = <g~, g> / ||g||^2` the rounded tensor is `g~ = q g + e` and e is orthogonal to g (arXiv 2508.07142 has the model
    g~ = q g + e; that q is the projection is our reading, under which it does not mix noise in).

    The squared error splits into three without remainder, each given relative to `||g||^2` (the three parts are those of
    arXiv 2605.20402; the sums that tell them are ours): with D the entries that became zero, A the others, and `q_A` the
    projection over A alone,

        ||g~ - g||^2 = (1 - q_A)^2 ||g_A||^2 + ||g_D||^2 + ||g~_A - q_A g_A||^2
                       scale bias              dead zone   grid noise

    Attributes:
        n: entries.
        norm: `||g||`.
        projection: q; NaN where g is zero.
        norm_ratio: `||g~|| / ||g||`; mixes the noise in and may exceed 1.
        noise_to_signal: `||g~ - q g|| / ||g||`.
        cosine: `<g~, g> / (||g~|| ||g||)`; NaN where g~ is zero too.
        dead: fraction of the non-zero entries that became zero.
        overflow: fraction of the non-zero entries whose magnitude, divided by its scale, is above the format's largest
            number; infinities included.
        nan, inf: entries of g that are no number, or infinite; either makes the quantities from `norm` to `cosine` NaN
            or infinite, and the split too.
        scale_bias: what survives is too small or too large as a whole.
        dead_zone: what became zero.
        grid_noise: the rest, orthogonal to what survives.
        oscillating: fraction of the entries whose rounded value goes back and forth (`Oscillation`); NaN where that is not
            watched, null in a meter's table.
        loss_gap: of what a layer puts out, by how much its rounded operands raise the loss, to first order: the loss's
            gradient there times (rounded - exact output). Null in a meter's table for everything else.
    """

    n: Tensor
    norm: Tensor
    projection: Tensor
    norm_ratio: Tensor
    noise_to_signal: Tensor
    cosine: Tensor
    dead: Tensor
    overflow: Tensor
    nan: Tensor
    inf: Tensor
    scale_bias: Tensor
    dead_zone: Tensor
    grid_noise: Tensor
    oscillating: Tensor
    loss_gap: Tensor


@torch.no_grad()
def shrinkage_sums(
    original: Tensor, rounded: Tensor, format: Format | None = None, scaling: Scaling | None = None
) -> Tensor:
    """The sums behind `Shrinkage` in float64 on the tensors' device, without synchronisation; shape (13,), see `SUMS`.

    `signal = ||g||^2`, `error = ||g~ - g||^2` and `product = <g~ - g, g>`: differences are summed, not g~ itself, so that a
    noise of 1e-6 of the signal is not lost. `lost` is the signal of the entries that became zero; `watched`, `oscillating`
    and `loss` are for those to fill in who know them.

    Args:
        original: g, any real floating-point dtype and shape.
        rounded: g~, of the same shape; of DTensors the local parts count.
        format: for the overflow count; None counts no overflow.
        scaling: with which g was rounded.

    Example:
        >>> g = torch.tensor([3.0, 4.0, 0.0])
        >>> shrinkage(shrinkage_sums(g, g / 2)).projection.item()
        0.5
    """
    if original.shape != rounded.shape:
        raise ValueError(
            f"original and rounded must have one shape, got {tuple(original.shape)}, {tuple(rounded.shape)}"
        )
    original, rounded = local_part(original).detach(), local_part(rounded).detach()
    before, after = _flat(original, rounded)
    total = torch.zeros(len(SUMS), dtype=torch.float64, device=original.device)
    piece = PIECE_CPU if original.device.type == "cpu" else PIECE_GPU
    for g, other in zip(torch.split(before, piece), torch.split(after, piece), strict=True):
        wide = g.double()
        error = other.double() - wide
        magnitude = wide.abs()
        counts = (
            torch.count_nonzero(g),
            torch.count_nonzero(other),
            # without scaling every entry has the scale 1
            (magnitude > format.max).sum() if format is not None and scaling is None else total.new_zeros(()),
            torch.isnan(magnitude).sum(),
            torch.isinf(magnitude).sum(),
            wide.dot(wide),
            wide.dot(error),
            error.dot(error),
            wide.dot(wide.mul(other == 0)),
        )
        total[1:-3] += torch.stack([count.double() for count in counts])
    total[0] = original.numel()
    known = scaling is not None and scaling.overflows and not scaling.random  # drawn scales are not drawn again
    if format is not None and scaling is not None and known and original.numel():
        rows = scaling.grouped(scaling.lines(original))
        dtype = arithmetic_dtype(format, original.dtype, scaling)
        limit = scaling.of_rows(rows, format, dtype, scaling.of_last(original, format)).decode.double() * format.max
        total[SUMS.index("overflow")] = (rows.abs().double() > limit).sum()
    return total


def shrinkage(sums: Tensor) -> Shrinkage:
    """The quantities of `Shrinkage` from sums of shape (..., 13); NaN where 0 / 0, never a made-up number.

    Example:
        >>> shrinkage(torch.zeros(13)).projection
        tensor(nan, dtype=torch.float64)
    """
    n, nonzero, kept, overflow, nan, inf, signal, product, error, lost, watched, oscillating, loss = (
        sums.double().unbind(-1)
    )
    alive = (signal + 2 * product + error).clamp(min=0)
    noise = (error - product * product / signal).clamp(min=0)
    survivors = (signal - lost).clamp(min=0)  # of these <g~ - g, g> is product + lost: a lost entry's error is -g
    bias = torch.where(survivors > 0, ((product + lost) / survivors).square(), 0.0)
    return Shrinkage(
        n=n,
        norm=signal.sqrt(),
        projection=1 + product / signal,
        norm_ratio=(alive / signal).sqrt(),
        noise_to_signal=(noise / signal).sqrt(),
        cosine=(signal + product) / (alive * signal).sqrt(),
        dead=(nonzero - kept) / nonzero,
        overflow=overflow / nonzero,
        nan=nan,
        inf=inf,
        scale_bias=(bias := survivors * bias / signal),
        dead_zone=lost / signal,
        grid_noise=(error / signal - lost / signal - bias).clamp(min=0),
        oscillating=oscillating / watched,
        loss_gap=loss,
    )


def _flat(original: Tensor, rounded: Tensor) -> tuple[Tensor, Tensor]:
    """Both in one order of the elements, that of the memory where the layouts agree, which needs no copy."""
    stride = original.stride()
    if stride == rounded.stride() == torch.empty_like(original, device="meta").stride():
        size = (original.numel(),)
        return original.as_strided(size, (1,)), rounded.as_strided(size, (1,))
    return original.reshape(-1), rounded.reshape(-1)


class Measured(NamedTuple):
    """Sums of one step, on the device.

    Attributes:
        step: number of the step, from 0.
        names: of the tensors.
        sums: shape (len(names), 13).
    """

    step: int
    names: Sequence[str]
    sums: Tensor

    @property
    def together(self) -> Tensor:
        """Sums of all tensors together; shape (13,)."""
        return self.sums.sum(0)
