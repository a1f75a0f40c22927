"""ZClip: the joint norm is clipped where it lies too many standard deviations above its running mean."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from trimtab.checks import below_one, flag, non_negative, one_of, positive, whole
from trimtab.gradients.base import EVERY_TENSOR, GradientTransform
from trimtab.parameters import Entry, Rule
from trimtab.tensors.norms import joint_norm
from trimtab.tensors.passes import gradients_of, local_gradients, shift_and_scale_

Bound = Literal["reciprocal", "mean", "fixed"]
BOUNDS = ("reciprocal", "mean", "fixed")
ADDED = 1e-6
"""To the norm before the division by it, as torch and the authors do."""


class ZClip(GradientTransform):
    """ZClip: spikes of the gradient's norm are cut back towards its running mean, by how unlikely they are.

    With N the joint norm of all chosen gradients, m and v its running mean and variance: `z = (N - m) / (sqrt(v) + eps)`, and
    where `z > threshold` the gradients are scaled to the norm

    | `bound` | scaled to |
    |---|---|
    | `"reciprocal"` (default) | `m + threshold^2 / z * sqrt(v)`: the rarer, the harder |
    | `"mean"` | `m` |
    | `"fixed"` | `m + threshold * sqrt(v)` |

    Then x, the norm so bounded, is learned from: `m <- decay m + (1 - decay) x`, `v <- decay v + (1 - decay) (x - m)^2` with
    the new m. The first `warmup` steps only collect; their mean and (population) variance begin.

    Args:
        decay: of mean and variance, in [0, 1). Default 0.97 (paper).
        threshold: z above which a norm is a spike; above 0. Default 2.5 (paper).
        max_norm: the norm is never above it, from the first step on; above 0. Default 1.0 (authors' code);
            None for no such bound.
        warmup: steps that collect; 1 or more. Default 25 (paper).
        bound: where a spike is brought to, see above.
        eps: added to the standard deviation; 0 or more. Default 1e-6 (authors' code).
        learn_from_spikes: let bounded spikes move mean and variance, as published. Default True.
        rule: which tensors count. Default all trainable ones, `Rule(min_ndim=0)`, as in the authors' code.

    Raises:
        ValueError: a number is out of range, or `bound` is unknown.
        TypeError: (at the step) a chosen tensor is complex or its gradient sparse.

    A norm that is not finite changes nothing and is not learned from [ours]. `max_norm` bounds the gradients and not what mean
    and variance learn, as in the authors' code.

    Reference: Kumar et al., arXiv 2504.02507.

    Example:
        >>> import trimtab
        >>> net = torch.nn.Linear(1, 1, bias=False)
        >>> optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        >>> lever = trimtab.gradients.ZClip(warmup=2, max_norm=None)
        >>> handle = trimtab.attach(optimizer, lever)
        >>> for size in (0.9, 1.1, 3.0):
        ...     net.weight.grad = torch.tensor([[size]])
        ...     optimizer.step()
        >>> net.weight.grad, lever.signals()["z"].item()
        (tensor([[1.0312]]), 19.99...)
    """

    default_rule = EVERY_TENSOR
    one_optimizer = "it remembers the norm of all tensors together; make one for each optimizer"

    def __init__(
        self,
        decay: float = 0.97,
        threshold: float = 2.5,
        max_norm: float | None = 1.0,
        warmup: int = 25,
        *,
        bound: Bound = "reciprocal",
        eps: float = 1e-6,
        learn_from_spikes: bool = True,
        rule: Rule | None = None,
    ) -> None:
        super().__init__(rule)
        self.decay = below_one("decay", decay)
        self.threshold = positive("threshold", threshold)
        self.max_norm = None if max_norm is None else positive("max_norm", max_norm)
        self.warmup = whole("warmup", warmup, least=1)
        self.bound = one_of("bound", bound, BOUNDS)
        self.eps = non_negative("eps", eps)
        self.learn_from_spikes = flag("learn_from_spikes", learn_from_spikes)
        self._memory = torch.zeros(3, dtype=torch.float64)
        """Steps counted, mean, variance."""
        self._signals: dict[str, Tensor] = {}

    def settings(self) -> dict[str, Any]:
        """All numbers of the formula."""
        names = ("decay", "threshold", "max_norm", "warmup", "bound", "eps", "learn_from_spikes")
        return {name: getattr(self, name) for name in names}

    def signals(self) -> dict[str, Tensor]:
        """`norm` and `z` before clipping (z is 0 while it collects), and `factor`, what the gradients were multiplied by."""
        return dict(self._signals)

    def transform_(self, chosen: Sequence[Entry]) -> None:
        """Scale the gradients of a spike, and learn from the norm."""
        gradients = local_gradients(chosen)
        owners = gradients_of(chosen)
        norm = joint_norm(gradients, owners)
        self._memory = self._memory.to(norm.device)
        steps, mean, variance = self._memory.unbind()
        deviation = variance.sqrt()
        ready = steps >= self.warmup
        z = torch.where(ready, (norm - mean) / (deviation + self.eps), 0.0).nan_to_num(0.0)
        spike = z > self.threshold
        share = {"reciprocal": self.threshold / z, "mean": torch.zeros_like(z), "fixed": torch.ones_like(z)}[self.bound]
        learned = torch.where(spike, mean + self.threshold * share * deviation, norm)
        wanted = learned if self.max_norm is None else learned.clamp(max=self.max_norm)
        usable = norm.isfinite()
        factor = torch.where(usable & (norm > wanted), wanted / (norm + ADDED), 1.0)
        after = self._after(learned)
        self._memory = torch.where(usable if self.learn_from_spikes else usable & ~spike, after, self._memory)
        self._signals = {"norm": norm, "z": z, "factor": factor}
        if factor.device.type != "cpu" or factor < 1:
            shift_and_scale_(gradients, None, factor)

    def _after(self, learned: Tensor) -> Tensor:
        """Steps, mean and variance with one norm more: all alike while collecting, then exponential."""
        steps, mean, variance = self._memory.unbind()
        weight = torch.where(steps < self.warmup, 1 / (steps + 1), 1 - self.decay)
        moved = mean + weight * (learned - mean)
        collected = (1 - weight) * (variance + weight * (learned - mean).square())
        running = (1 - weight) * variance + weight * (learned - moved).square()
        return torch.stack([steps + 1, moved, torch.where(steps < self.warmup, collected, running)])

    def state_dict(self) -> dict[str, Any]:
        """The settings, steps counted, mean and variance of the norm."""
        steps, mean, variance = self._memory.tolist()
        return {**self.settings(), "steps": int(steps), "mean": mean, "variance": variance}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved state; ValueError when its settings are others."""
        self._check_settings(state, ("steps", "mean", "variance"))
        held = [state["steps"], state["mean"], state["variance"]]
        self._memory = torch.tensor(held, dtype=torch.float64, device=self._memory.device)
