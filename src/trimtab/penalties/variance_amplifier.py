"""VarianceAmplifier (VAR): spread the magnitudes of each layer's weights, so that few are large and many near zero."""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from torch import Tensor

from trimtab.parameters import Rule
from trimtab.penalties.base import non_negative
from trimtab.penalties.magnitude import Law, MagnitudePenalty
from trimtab.penalties.moments import Magnitudes

Form = Literal["variance", "relative", "as_printed"]


class VarianceAmplifier(MagnitudePenalty):
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
        rule: which tensors count. Default at least two dimensions [ours]: a norm scale of ones has V = 0 and would add
            1e8 with gradient 0.

    Raises:
        ValueError: an unknown form; a strength, r or eps below 0 or not finite; eps = 0.

    Source: arXiv 2511.14282.

    Example:
        >>> penalty = VarianceAmplifier(strength=1e-5)
        >>> weight = torch.tensor([[0.1, -0.3], [0.2, 0.4]], requires_grad=True)
        >>> penalty.value([weight])
        tensor(0.0008, grad_fn=<MulBackward0>)
        >>> penalty
        VarianceAmplifier(strength=1e-05, form='variance', r=1e-08, eps=1e-08, min_ndim=2)
    """

    def __init__(
        self,
        strength: float = 1e-5,
        form: Form = "variance",
        r: float = 1e-8,
        eps: float = 1e-8,
        rule: Rule | None = None,
    ) -> None:
        super().__init__(strength, rule)
        if form not in get_args(Form):
            raise ValueError(f"form must be one of {', '.join(map(repr, get_args(Form)))}, got {form!r}")
        self.form: Form = form
        self.r = self.smoothing = non_negative("r", r)
        self.eps = non_negative("eps", eps)
        if self.eps == 0:
            raise ValueError("eps must be above 0, or a tensor of equal magnitudes divides by zero")

    def settings(self) -> dict[str, Any]:
        """The form, r and eps."""
        return {"form": self.form, "r": self.r, "eps": self.eps}

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
