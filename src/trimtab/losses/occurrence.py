"""Weights of the terms of a loss: by how often each occurs, or by how each has moved."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from trimtab.checks import below_one, non_negative, positive


def occurrence_weights(counts: Sequence[float] | Tensor, power: float = 1.0) -> Tensor:
    """Weights for targets that do not all occur in every data set: rare ones weigh more, the loss as a whole keeps its size.

    `w_k = c counts_k^-power`, with c such that `sum counts w = sum counts`. A target that never occurs gets 0; in each
    example mask those that are missing there.

    Args:
        counts: examples that hold each target.
        power: 0 (all alike) or more; 1 (default) gives every target the same total.

    Raises:
        ValueError: a count is negative or not finite, none is above 0, or the power is out of range.

    The formula is ours: the paper says that landmarks are weighted by their occurrence across data sets, and no more. What
    its code holds (and never calls) is `DynamicsWeights`.

    Reference: FGTBT, arXiv 2601.12863 (the aim).

    Example:
        >>> occurrence_weights([10, 1, 4])
        tensor([0.5000, 5.0000, 1.2500], dtype=torch.float64)
    """
    non_negative("power", power)
    found = torch.as_tensor(counts, dtype=torch.float64)
    if found.ndim != 1 or not bool((found >= 0).all()) or not bool(found.isfinite().all()) or not bool(found.any()):
        raise ValueError(f"counts must be one row of finite numbers, 0 or more and not all 0, got {found.tolist()}")
    there = found > 0
    weights = torch.where(there, torch.where(there, found, 1) ** -power, 0)
    return weights * (found.sum() / (found * weights).sum())


class DynamicsWeights:
    """Weights by how far each loss stands above its own least value: `x - mean x + 1` with `x = exp(ratio / temperature)`.

    `ratio = (L / L_bar) (L_min / L)`, where `L_min` is the least value so far and `L_bar <- decay L_bar + (1 - decay) L` the
    running mean, both of each loss, from its first value on. With the published decay the mean is all but the last value:
    what counts is `L_min / L`, so that a loss at its least weighs most. This is the rule of FGTBT's code, which never calls it.

    Args:
        decay: in [0, 1). Default 0.01 (authors' code).
        temperature: above 0. Default 3 (authors' code).

    Raises:
        ValueError: a value is out of range, or (at the call) losses that are not above 0 or of another number than before.

    Reference: FGTBT, arXiv 2601.12863 (its code).

    Example:
        >>> weights = DynamicsWeights()
        >>> weights([1.0, 2.0])
        tensor([1., 1.], dtype=torch.float64)
        >>> weights([1.0, 4.0])  # the second has doubled
        tensor([1.1066, 0.8934], dtype=torch.float64)
    """

    def __init__(self, decay: float = 0.01, temperature: float = 3.0) -> None:
        self.decay, self.temperature = below_one("decay", decay), positive("temperature", temperature)
        self._mean: Tensor | None = None
        self._least: Tensor | None = None

    def __call__(self, losses: Sequence[float] | Sequence[Tensor] | Tensor) -> Tensor:
        """One weight a loss, their mean 1; float64, without gradient."""
        values = torch.stack([torch.as_tensor(loss).detach().double().reshape(()).cpu() for loss in losses])
        if not bool((values > 0).all()) or not bool(values.isfinite().all()):
            raise ValueError(f"losses must be finite and above 0, got {values.tolist()}")
        if self._mean is not None and self._mean.shape != values.shape:
            raise ValueError(f"there were {len(self._mean)} losses before, now {len(values)}")
        self._mean = values if self._mean is None else self.decay * self._mean + (1 - self.decay) * values
        self._least = values if self._least is None else torch.minimum(self._least, values)
        raised = ((values / self._mean) * (self._least / values) / self.temperature).exp()
        return raised - raised.mean() + 1

    def state_dict(self) -> dict[str, Any]:
        """Running mean and least values."""
        return {name: None if held is None else held.tolist() for name, held in self._held().items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        found = {
            name: None if state[name] is None else torch.tensor(state[name], dtype=torch.float64)
            for name in self._held()
        }
        self._mean, self._least = found["mean"], found["least"]

    def _held(self) -> dict[str, Tensor | None]:
        return {"mean": self._mean, "least": self._least}

    def __repr__(self) -> str:
        return f"DynamicsWeights(decay={self.decay}, temperature={self.temperature})"
