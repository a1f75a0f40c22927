"""Concentrate: a pull towards zero in proportion to the weights' own scale, without shrinking them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from trimtab.checks import non_negative, one_of
from trimtab.parameters import Rule
from trimtab.penalties.base import by_device_and_dtype
from trimtab.penalties.decoupled import DecoupledPenalty, Stepped, rates_of
from trimtab.penalties.magnitude_pass import MagnitudePass
from trimtab.penalties.shrinking import Shrinking

Scope = Literal["global", "layer"]


class Concentrate(DecoupledPenalty):
    """Moves weights along `w m^2 / E[w^2] - m sign(w)` after the step: few large weights, many near zero, the norm as it was.

    m is the mean magnitude and E[w^2] the mean square, of each tensor (`scope="layer"`) or of all of them together
    (`scope="global"`). The direction is perpendicular to w. With `preserve_norm=False` it is `-m sign(w)`, an L1 pull whose
    strength follows the weights' scale.

    One step, with a = rate * lr: `w <- s sign(w) max(|w| - a m, 0)`, and s restores the norm of the tensor (of all of them).
    Since `s = 1 + a m^2 / E[w^2] + O(a^2)` this is the direction above to first order in a; no weight oversteps zero, and the
    norm is kept exactly, where adding the direction would let it grow by a^2 [ours].

    Why: the variance amplifier with weight decay d settles where its growth equals the decay, and from then on does nothing
    but `-d m sign(w)` (docs/methods/var.md). This does the same from the first step on, at a rate of its own. Per layer the
    direction is Hoyer-Square's (times E[w^2] / 2) and makes every layer equally sparse; the global form pulls all weights
    alike, as global magnitude pruning compares them.

    The relative shape moves by `rate * sum of lr`: T, the clock of the variance amplifier.

    Args:
        rate: share of the mean magnitude that is taken off at a learning rate of 1. Default 0.3 [ours].
        scope: "global" (default [ours]) or "layer".
        preserve_norm: restore the norm. Default True [ours].
        rule: which tensors count. Default at least two dimensions [ours].

    Raises:
        ValueError: an unknown scope; a rate that is negative or not finite; (in training) rate * lr of 1 or more, which
            would take off the whole mean magnitude in one step.
        TypeError: (in training) a chosen tensor's gradient is sparse; the message names it.

    A tensor (globally: all of them) with a weight that is inf or NaN is left alone, so that it does not spread. Of tensors
    with different learning rates each is thresholded by its own; the factor s is common. A rate of 0 leaves a tensor out.

    Source: ours; per layer the direction of Hoyer-Square, arXiv 1908.09979.

    Example:
        >>> import torch, trimtab
        >>> weight = torch.nn.Parameter(torch.tensor([[3.0, -4.0, 0.1]]))
        >>> optimizer = torch.optim.SGD([weight], lr=0.1)
        >>> handle = trimtab.attach(optimizer, Concentrate(rate=0.5))
        >>> weight.grad = torch.zeros(1, 3)
        >>> optimizer.step()
        >>> [round(value, 3) for value in weight.flatten().tolist()], round(weight.norm().item(), 3)
        ([2.981, -4.015, 0.0], 5.001)
    """

    def __init__(
        self, rate: float = 0.3, scope: Scope = "global", *, preserve_norm: bool = True, rule: Rule | None = None
    ) -> None:
        super().__init__(rule)
        self.rate = non_negative("rate", rate)
        one_of("scope", scope, get_args(Scope))
        self.scope: Scope = scope
        self.preserve_norm = preserve_norm

    def settings(self) -> dict[str, Any]:
        """Rate, scope and whether the norm is restored."""
        return {"rate": self.rate, "scope": self.scope, "preserve_norm": self.preserve_norm}

    def check(self, stepped: Sequence[Stepped]) -> None:
        """Refuse a rate that takes off all of the mean magnitude at once."""
        most = max((one.rate for one in stepped), default=0.0)
        if self.rate * most >= 1:
            raise ValueError(
                f"rate must be below 1 / lr: {self!r} at a learning rate of {most:g} would take off "
                f"{self.rate * most:g} of the mean magnitude in one step"
            )

    def act_(self, stepped: Sequence[Stepped]) -> None:
        """One step on all of these tensors together."""
        if not self.rate:
            return
        rates = {id(one.entry): one for one in stepped}
        parts = [
            _Part([rates[id(entry)] for entry in group])
            for group in by_device_and_dtype([one.entry for one in stepped])
        ]
        home = parts[0].device
        if self.scope == "global":
            number, total, squares = _summed([torch.stack(part.sums).sum(1) for part in parts], home)
            mean = total / number
        thresholds = []
        for part in parts:
            own = part.sums[1] / part.sums[0] if self.scope == "layer" else mean.to(part.device)
            thresholds.append((self.rate * part.rates * own).nan_to_num(0.0, 0.0))
        if not self.preserve_norm:
            for part, threshold in zip(parts, thresholds, strict=True):
                part.shrinking.shrink_(threshold)
            return
        left = [part.shrinking.squares_left(threshold) for part, threshold in zip(parts, thresholds, strict=True)]
        if self.scope == "global":
            common = _factor(squares, _summed([squares_of.sum() for squares_of in left], home))
        for part, threshold, rest in zip(parts, thresholds, left, strict=True):
            factor = _factor(part.sums[2], rest) if self.scope == "layer" else common.to(part.device).expand_as(rest)
            part.shrinking.shrink_(threshold, factor)


class _Part:
    """Tensors of one device and precision, with the sums of their magnitudes."""

    def __init__(self, stepped: Sequence[Stepped]) -> None:
        tensors = [one.entry.parameter for one in stepped]
        self.device = tensors[0].device
        self.rates = rates_of(stepped, self.device)
        self.shrinking = Shrinking(tensors)
        number, mean, variance = MagnitudePass(tensors, 0.0).moments()
        self.sums = (number, number * mean, number * (variance + mean * mean))
        """Number, sum and sum of squares of the magnitudes of each tensor."""


def _summed(values: Sequence[Tensor], home: torch.device) -> Tensor:
    return torch.stack([value.to(home) for value in values]).sum(0)


def _factor(before: Tensor, after: Tensor) -> Tensor:
    """What restores the norm; 1 where nothing is left or a value is not finite."""
    return (before / after).sqrt().nan_to_num(1.0, 1.0)
