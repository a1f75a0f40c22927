"""Penalties that are a function of the mean and variance of a tensor's magnitudes, and their gradient in closed form.

With magnitudes `w~ = sqrt(w^2 + r)` (`|w|` where r = 0), n their number, m their mean and V their biased variance, the
variance amplifier, L1 and Hoyer-Square are all `psi = f(n, m, V)`, and then

    d psi / d w_i = s_i * (constant + slope * (w~_i - m)),     s_i = w_i / w~_i  (sign(w_i) where r = 0)

with `constant = (df/dm) / n` and `slope = 2 (df/dV) / n`. One pass reads the sums, one pass adds the gradient.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from trimtab.parameters import Entry, Source
from trimtab.penalties.base import Penalty, by_device_and_dtype
from trimtab.penalties.magnitude_pass import MagnitudePass, Magnitudes
from trimtab.sparse import refuse_sparse


class Law(NamedTuple):
    """psi and the two coefficients of its gradient, per tensor; float64, each of shape (tensors,)."""

    psi: Tensor
    constant: Tensor
    slope: Tensor


class MagnitudePenalty(Penalty):
    """A penalty `psi = f(n, m, V)` of the magnitudes of each tensor."""

    smoothing: float = 0.0
    """r in `w~ = sqrt(w^2 + r)`."""

    @abstractmethod
    def law(self, statistics: Magnitudes) -> Law:
        """psi and its gradient's coefficients from the count, mean and variance of the magnitudes."""

    def magnitudes(self, weight: Tensor) -> Tensor:
        """`sqrt(w^2 + r)`, differentiable; `|w|` where r = 0 (its derivative at 0 is then 0)."""
        return torch.sqrt(weight * weight + self.smoothing) if self.smoothing else weight.abs()

    @torch.no_grad()
    def per_layer(self, params: Source) -> dict[str, float]:
        """psi of every chosen tensor by name, without the strength; one synchronisation with the device.

        Raises:
            ValueError: the rule chooses no tensor.
        """
        chosen = self.chosen(params)
        values: dict[str, float] = {}
        for group in by_device_and_dtype(chosen):
            psi = self.law(MagnitudePass([entry.parameter for entry in group], self.smoothing).moments()).psi
            values.update(zip([entry.name for entry in group], psi.tolist(), strict=True))
        return {entry.name: values[entry.name] for entry in chosen}

    @torch.no_grad()
    def add_gradient_(self, params: Source) -> None:
        """Add `strength * d psi / d w` to the gradients of the chosen tensors, in place, without autograd.

        A tensor without a gradient in this step is left alone, as the optimizer leaves it alone. bf16 and fp16 are
        computed in float32 and rounded once into the gradient's dtype. The statistics of a sharded tensor are of the
        whole tensor; all sharded tensors of a device and precision share one collective. Nothing waits for the device.

        Raises:
            ValueError: the rule chooses no tensor.
            TypeError: a chosen tensor's gradient is sparse; the message names it.
        """
        with self.with_gradients(params) as groups:
            for group in groups:
                for entry in group:
                    assert entry.parameter.grad is not None
                    refuse_sparse(self, entry.name, entry.parameter.grad)
                weights = MagnitudePass([entry.parameter for entry in group], self.smoothing, gradients=True)
                statistics = weights.moments()
                law = self.law(statistics)
                strength = self.strengths(group, statistics, law)
                self.acted(group, statistics, law, strength)
                weights.add_gradients_(statistics.mean, law.constant * strength, law.slope * strength)

    def strengths(self, group: Sequence[Entry], statistics: Magnitudes, law: Law) -> Tensor | float:
        """The strength, or one for each tensor, shape (tensors,)."""
        return self.strength

    def acted(self, group: Sequence[Entry], statistics: Magnitudes, law: Law, strength: Tensor | float) -> None:
        """Called with what a step is made of; nothing by default."""
