"""VarianceAmplifier (VAR): spread the magnitudes of each layer's weights, so that few are large and many near zero."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from trimtab.checks import non_negative, one_of
from trimtab.collectives import local_part, sum_over_shards
from trimtab.parameters import Entry, Rule, select
from trimtab.penalties.balanced import BalancedPenalty
from trimtab.penalties.base import by_device_and_dtype
from trimtab.penalties.magnitude import Law
from trimtab.penalties.magnitude_pass import MagnitudePass, Magnitudes
from trimtab.tensors.unit_sums import unit_squares

Form = Literal["variance", "relative", "as_printed"]
WITHOUT_SPREAD = 100.0
"""Variance of the magnitudes, in eps, up to which a tensor counts as one that starts without spread [ours]."""


class VarianceAmplifier(BalancedPenalty):
    """Rewards a large variance of the smoothed magnitudes of each weight tensor.

    With `w~ = sqrt(w^2 + r)`, its mean m and its biased variance V over the n weights of a tensor, psi is the sum over
    tensors of

    * `form="variance"`: `1 / (V + eps)`, the paper's penalty;
    * `form="relative"` [ours]: `m^2 / (V + eps)`, free of the weights' scale while r and eps are small beside them;
    * `form="as_printed"`: `1 / (m - m^2 + eps)`, what one transcription of the paper prints (a square is missing); it
      is kept for comparison and is singular near m = 1.

    Closed-form gradient of the first: `-(2 / n) (V + eps)^-2 (w~_i - m) w_i / w~_i`. Under gradient descent weights
    above the tensor's mean magnitude grow and those below it shrink.

    Args:
        strength: lambda. Default 1e-5 (the paper, its Figure 1). One strength does not fit all scales: Gaussian weights
            of standard deviation s have V = s^2 (1 - 2 / pi), so at 1e-5 a layer with s = 0.1 adds 0.003 and one with
            s = 0.001 adds 27. `exceeds` warns.
        form: see above. Default "variance".
        r: smoothing of the absolute value at 0, in squared weight units. Default 1e-8 (the paper).
        eps: keeps the denominator from 0, in squared weight units. Default 1e-8 (the paper).
        bound: of a tensor that starts with magnitudes (almost) all equal, such as zeros, the attached penalty's gradient is
            kept at most so many times as large as the task's. Default 10 [ours]; None for no bound. See below.
        rule: which tensors count. Default at least two dimensions [ours]: a norm scale of ones has V = 0 and would add
            1e8 with gradient 0.

    Raises:
        ValueError: an unknown form; a strength, r or eps below 0 or not finite; eps = 0; a bound of 0 or less.

    Tensors that start without spread [ours]: where V <= 100 eps when the penalty is attached (LoRA's B, zero-initialised
    heads and blocks), 1 / (V + eps) is near its ceiling and its gradient grows a million times above the task's as soon
    as weights leave zero. `attach` warns and names these tensors; their gradient is then multiplied by
    `min(1, bound ||g|| / (strength ||d psi||))`, with g the gradient that the penalty finds (accumulated, unscaled, whole)
    and `||d psi|| <= |slope| sqrt(n V) + |constant| sqrt(n)` in closed form. Their names are in the saved state, so that a
    resumed run bounds the same ones. All other tensors are never
    touched by the bound, nor weights that are computed from parts, nor `value`.

    Source: arXiv 2511.14282.

    Example:
        >>> penalty = VarianceAmplifier(strength=1e-5)
        >>> weight = torch.tensor([[0.1, -0.3], [0.2, 0.4]], requires_grad=True)
        >>> penalty.value([weight])
        tensor(0.0008, grad_fn=<MulBackward0>)
        >>> penalty
        VarianceAmplifier(strength=1e-05, form='variance', r=1e-08, eps=1e-08, bound=10.0, min_ndim=2)
    """

    def __init__(
        self,
        strength: float = 1e-5,
        form: Form = "variance",
        r: float = 1e-8,
        eps: float = 1e-8,
        rule: Rule | None = None,
        bound: float | None = 10.0,
    ) -> None:
        super().__init__(strength, rule)
        one_of("form", form, get_args(Form))
        self.form: Form = form
        self.balances = form == "variance"
        self.r = self.smoothing = non_negative("r", r)
        self.eps = non_negative("eps", eps)
        if self.eps == 0:
            raise ValueError("eps must be above 0, or a tensor of equal magnitudes divides by zero")

        self.bound = None if bound is None else non_negative("bound", bound)
        if self.bound == 0:
            raise ValueError("bound must be above 0, or None for no bound, got 0")
        self.bounded: set[str] = set()
        """Names of the tensors that started without spread."""

    def settings(self) -> dict[str, Any]:
        """The form, r, eps and the bound."""
        return {"form": self.form, "r": self.r, "eps": self.eps, "bound": self.bound}

    @torch.no_grad()
    def bind(self, optimizer: torch.optim.Optimizer, model: nn.Module | None, parameters: Sequence[Entry]) -> None:
        """Find and name the tensors that start without spread; called by `trimtab.attach`."""
        super().bind(optimizer, model, parameters)
        found = []
        # of a weight that is computed from parts the task's gradient is not at hand: no bound
        chosen = [entry for entry in select(parameters, self.rule, computed=True).chosen if entry.computed is None]
        for group in by_device_and_dtype(chosen):
            variance = MagnitudePass([entry.parameter for entry in group], self.smoothing).moments().variance
            flat = (variance <= WITHOUT_SPREAD * self.eps).tolist()
            found += [entry.name for entry, is_flat in zip(group, flat, strict=True) if is_flat]
        self.bounded |= set(found)
        if found and self.strength:
            shown = ", ".join(found[:3]) + (f" and {len(found) - 3} more" if len(found) > 3 else "")
            kept = (
                "bound=None lets it explode as soon as they leave that value"
                if self.bound is None
                else f"it is kept at most bound={self.bound:g} times as large as the task's"
            )
            warnings.warn(
                f"{self!r}: the magnitudes of {shown} start (almost) all equal, where the penalty's gradient knows no "
                f"measure; {kept}. To leave such tensors out: rule=Rule(exclude=...)",
                stacklevel=2,
            )

    def strengths(self, group: Sequence[Entry], statistics: Magnitudes, law: Law) -> Tensor | float:
        """The strength; for tensors that started without spread as much of it as the bound allows."""
        positions = [at for at, entry in enumerate(group) if entry.name in self.bounded]
        if self.bound is None or not positions:
            return self.strength
        squares, owners = [], []
        for at in positions:
            gradient = group[at].parameter.grad
            assert gradient is not None
            squares.append(unit_squares([local_part(gradient).reshape(1, -1)]).squeeze(0))
            owners.append(gradient)
        task = sum_over_shards(torch.stack(squares), owners).squeeze(1).sqrt()
        index = torch.tensor(positions, device=task.device)
        number, _, variance = (column[index] for column in statistics)
        ours = law.slope[index].abs() * (number * variance).sqrt() + law.constant[index].abs() * number.sqrt()
        allowed = self.bound * task / (self.strength * ours)
        found = torch.full_like(statistics.mean, self.strength)
        # 0 / 0: nothing is added anyway; NaN of the task stays the task's
        found[index] = self.strength * allowed.nan_to_num(1.0, 1.0).clamp(max=1.0)
        return found

    def state_dict(self) -> dict[str, Any]:
        """Strength, settings and clock, and the names of the tensors that are bounded."""
        return {**super().state_dict(), "bounded": sorted(self.bounded)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what was saved; ValueError when the saved settings are not this object's."""
        rest = {name: value for name, value in state.items() if name != "bounded"}
        super().load_state_dict({"bound": self.bound, **rest})  # states of before there was a bound hold none
        self.bounded = set(state.get("bounded", self.bounded))

    def psi(self, weight: Tensor) -> Tensor:
        """psi of one tensor, differentiable; shape ()."""
        magnitude = self.magnitudes(weight)
        mean = magnitude.mean()
        if self.form == "as_printed":
            return 1 / (mean - mean.square() + self.eps)
        variance = (magnitude - mean).square().mean()
        return (mean.square() if self.form == "relative" else 1) / (variance + self.eps)

    def law(self, statistics: Magnitudes) -> Law:
        """psi and its gradient's coefficients, per tensor."""
        count, mean, variance = statistics
        if self.form == "as_printed":
            inverse = 1 / (mean - mean * mean + self.eps)
            return Law(inverse, -(1 - 2 * mean) * inverse * inverse / count, torch.zeros_like(mean))
        inverse = 1 / (variance + self.eps)
        slope = -2 * inverse * inverse / count
        if self.form == "variance":
            return Law(inverse, torch.zeros_like(mean), slope)
        square = mean * mean
        return Law(square * inverse, 2 * mean * inverse / count, square * slope)
