"""How many zeros and bits each weight gets: the least rise of the loss for the bytes, by one price for all.

Each weight has options (sparsity x bits) of a size R and a rise of the loss D. For a price p of a byte every weight takes its
option of least `D + p R`; no choice of that size has a smaller sum of D (Shoham and Gersho 1988). The price is bisected.
That the rises add up is an assumption: what one weight costs alone says little of what it costs where the others are coarse
too, so it is measured among the others as a first choice leaves them (decision 100), and the finished file as a whole.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from torch import Tensor

from trimtab.deploy.compact_code import coded
from trimtab.deploy.compact_quantise import COARSE, SCALE_BITS, Quantised, Scales, quantise

MOST_MEASURED = 1 << 17  # [ours] weights of a tensor on which sizes and errors of its options are found
COARSER = 2.0  # [ours] how many times its squared error a weight is given to see what it costs
FINE = 0.01  # [ours] and at least so much of its square more
LEAST_SLOPE = 0.1  # [ours] of the middle one: no weight is taken to cost nothing
HOPELESS = 1e9  # the rise of a loss that is no number any more
TINY = 1e-12  # errors below are taken as this


@dataclass(frozen=True)
class Option:
    """A sparsity and a number of bits, the bytes they take, and the squared error over the weight's own square."""

    bits: int
    sparsity: float
    size: float
    error: float


@dataclass(frozen=True)
class Layer:
    """A weight with its options and the rise of the loss that each is expected to cost."""

    name: str
    weight: Tensor
    axis: int | None
    options: tuple[Option, ...]
    rises: npt.NDArray[np.float64]


def code_bytes(found: Quantised) -> float:
    """Bytes of the streams, tables and scales of a quantised weight; by context it may be a tenth less."""
    return coded(found.numbers).size + found.scales.size * SCALE_BITS[1 < found.bits <= COARSE] / 8


def _part(weight: Tensor, axis: int | None) -> Tensor:
    """At most `MOST_MEASURED` weights, whole channels, evenly spread over the tensor."""
    first = weight.detach().movedim(axis or 0, 0) if weight.ndim else weight.detach().reshape(1)
    rows = first.reshape(first.shape[0], -1)
    keep = max(1, min(len(rows), MOST_MEASURED // max(1, rows.shape[1])))
    return rows[:: math.ceil(len(rows) / keep), :: math.ceil(rows.shape[1] / MOST_MEASURED)]


def options(
    name: str,
    weight: Tensor,
    axis: int | None,
    bits: Sequence[int],
    sparsities: Sequence[float],
    scales: Scales = "auto",
) -> list[Option]:
    """Size and error of every combination; those of a large weight are estimated on a part of it."""
    part = weight if weight.numel() <= MOST_MEASURED else _part(weight, axis)
    own_axis = axis if part is weight or axis is None else 0
    times = weight.numel() / part.numel()
    found = []
    for sparsity in sparsities:
        for width in bits:
            one = quantise(name, part, width, sparsity, own_axis, scales)
            found.append(Option(width, sparsity, code_bytes(one) * times, one.squared_error))
    return found


def by_error(found: Sequence[Option]) -> npt.NDArray[np.float64]:
    """Without data: the relative squared error of the weight, as if each layer's noise counted by its own strength [ours]."""
    return np.array([option.error for option in found])


def coarser(layer: Layer, now: Option) -> Option | None:
    """The smaller option nearest to `COARSER` times the error of `now`; None where there is none."""
    smaller = [option for option in layer.options if option.size < now.size and option.error > now.error + TINY]
    wanted = max(COARSER * now.error, now.error + FINE)
    return min(smaller, key=lambda option: (abs(math.log(option.error / wanted)), option.size), default=None)


def among_the_others(
    layers: Sequence[Layer], taken: Sequence[Option], loss: float, with_option: Callable[[int, Option], float]
) -> list[Layer]:
    """The layers with rises as measured where all weights are as `taken`.

    Each weight in turn takes its `coarser` option. Its rise `D(e) = c e` has the slope that was seen, and from the error that
    was tried on grows with the square of the error, since beyond nothing was seen [ours].

    Args:
        layers, taken: the weights and the option of each.
        loss: of the network of these options.
        with_option: the loss when the weight at a place takes another option.
    """
    slopes, reached = [], []
    for place, (layer, now) in enumerate(zip(layers, taken, strict=True)):
        tried = coarser(layer, now)
        if tried is None:
            slopes.append(math.nan)
            reached.append(now.error)
            continue
        rise = with_option(place, tried) - loss
        slopes.append((rise if math.isfinite(rise) else HOPELESS) / (tried.error - now.error))
        reached.append(tried.error)
    known = [max(slope, 0.0) for slope in slopes if not math.isnan(slope)]
    usual = (float(np.median(known)) or float(np.mean(known)) if known else 1.0) or 1.0
    found = []
    for layer, slope, end in zip(layers, slopes, reached, strict=True):
        own = usual if math.isnan(slope) else max(slope, LEAST_SLOPE * usual)
        errors = by_error(layer.options)
        found.append(replace(layer, rises=own * errors * np.maximum(1.0, errors / max(end, TINY))))
    return found


def _taken(layers: Sequence[Layer], price: float) -> list[Option]:
    taken = []
    for layer in layers:
        costs = layer.rises + price * np.array([option.size for option in layer.options])
        taken.append(layer.options[int(costs.argmin())])
    return taken


def smallest(layers: Sequence[Layer]) -> list[Option]:
    """The option of fewest bytes of each layer."""
    return [min(layer.options, key=lambda option: option.size) for layer in layers]


def largest(layers: Sequence[Layer]) -> list[Option]:
    """The option of least rise of each layer."""
    return [layer.options[int(layer.rises.argmin())] for layer in layers]


def total(taken: Sequence[Option]) -> float:
    """Bytes of all options."""
    return sum(option.size for option in taken)


def allocate(layers: Sequence[Layer], size: float) -> list[Option]:
    """One option for each layer, together of at most `size` bytes where the smallest ones are.

    Example:
        >>> import torch
        >>> rises = np.array([0.0, 1.0])
        >>> both = (Option(8, 0.0, 100.0, 0.0), Option(2, 0.0, 20.0, 0.1))
        >>> layers = [Layer("a", torch.zeros(1), None, both, rises), Layer("b", torch.zeros(1), None, both, 2 * rises)]
        >>> [option.bits for option in allocate(layers, 130)]
        [2, 8]
    """
    if total(found := largest(layers)) <= size:
        return found
    best, low, high = smallest(layers), -40.0, 40.0
    for _ in range(60):
        middle = (low + high) / 2
        found = _taken(layers, math.exp(middle))
        if total(found) <= size:
            best, high = found, middle
        else:
            low = middle
    return _filled(layers, best, size)


def _filled(layers: Sequence[Layer], taken: list[Option], size: float) -> list[Option]:
    """What is left of `size` spent on the option that lowers the rise most for its bytes, again and again.

    A price reaches the corners of the sizes' lower hull alone; between them the bytes left may still buy something.
    """
    taken, left = list(taken), size - total(taken)
    while True:
        best: tuple[float, int, Option] | None = None
        for place, layer in enumerate(layers):
            now = taken[place]
            risen = float(layer.rises[layer.options.index(now)])
            for option, rise in zip(layer.options, layer.rises, strict=True):
                more = option.size - now.size
                if rise < risen and more <= left:
                    gain = (risen - float(rise)) / max(more, 1e-9)
                    if best is None or gain > best[0]:
                        best = gain, place, option
        if best is None:
            return taken
        left -= best[2].size - taken[best[1]].size
        taken[best[1]] = best[2]
