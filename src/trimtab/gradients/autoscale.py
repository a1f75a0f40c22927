"""Autoscale: centred gradients, all multiplied by one factor made from their global standard deviation."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from trimtab.checks import one_of
from trimtab.gradients.base import GradientTransform
from trimtab.gradients.channels import centre_channels_, centre_known_, finite_or, gradient_items, unit_statistics
from trimtab.gradients.statistics import moments_of
from trimtab.gradients.z_score import GRANULARITIES, Granularity
from trimtab.parameters import Entry, Rule
from trimtab.tensors.moments import Moments, pooled
from trimtab.tensors.passes import local_gradients, shift_and_scale_

ScaleRule = Literal["running_max", "first", "ema", "log"]
SCALE_RULES = ("running_max", "first", "ema", "log")
EMA_DECAY = 0.99
"""Of the rule "ema" [ours]: an average over about the last 100 steps."""
LEAST_ALPHA = torch.finfo(torch.float32).tiny
"""alpha stays above 0, also where sigma is 0 (and the centred gradients with it)."""

Callback = Callable[[float, Sequence[float]], float]


class Autoscale(GradientTransform):
    """Gradient autoscaled normalisation: subtract every tensor's mean, multiply all by one alpha_t in (0, 1].

    `g_l <- alpha_t (g_l - mean(g_l))`, alpha_t from sigma_t, the biased standard deviation of all chosen gradients taken
    together, before centring. The source (arXiv 2509.03677) says that alpha_t has no hyperparameter, is one for all
    layers, is made from the global standard deviation and never amplifies; its closed form is in no readable source. The
    rules are therefore our reconstruction [ours]:

    | `scale` | alpha_t |
    |---|---|
    | `"running_max"` | `sigma_t / max_{s <= t} sigma_s` |
    | `"first"` | `min(1, sigma_t / sigma_1)` |
    | `"ema"` | `min(1, sigma_t / EMA_t)`, EMA of sigma with decay 0.99, bias-corrected, step t included |
    | `"log"` (default) | `1 / (1 + max(0, ln(sigma_1 / sigma_t)))` |

    alpha_t is raised to the smallest normal float32 where a rule gives 0. A step whose sigma_t is not finite is scaled
    by 1 and forgotten: later steps go on as if it had not been [ours].

    Why `"log"` is the default: docs/decisions/007-autoscale-follows-the-logarithm.md.

    Args:
        scale: a rule's name, or `f(sigma_t, history) -> alpha_t` with sigma_t a float and history the finite sigmas of all
            earlier steps, oldest first. A function costs one synchronisation per step, the named rules none.
        granularity: what is centred: `"tensor"` (default) takes the mean of the whole tensor, `"channel"` that of each
            output row.
        rule: which tensors count. Default `Rule()`: trainable, at least two dimensions [ours].

    Raises:
        ValueError: `scale` or `granularity` is unknown; (at the step) a function's alpha is not in (0, 1].
        TypeError: `scale` is neither name nor function; (at the step) a chosen tensor is complex or its gradient sparse.

    Reference: arXiv 2509.03677.

    Example:
        >>> import trimtab
        >>> net = torch.nn.Linear(2, 1, bias=False)
        >>> optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        >>> transform = trimtab.gradients.Autoscale()
        >>> handle = trimtab.attach(optimizer, transform)
        >>> for size in (2.0, 1.0):
        ...     net.weight.grad = torch.tensor([[0.0, size]])
        ...     optimizer.step()
        >>> transform.signals()["alpha"].item(), net.weight.grad
        (0.590..., tensor([[-0.2953,  0.2953]]))
    """

    one_optimizer = "it remembers one sigma of all tensors together; make one for each optimizer"

    def __init__(
        self,
        scale: ScaleRule | Callback = "log",
        granularity: Granularity = "tensor",
        rule: Rule | None = None,
    ) -> None:
        super().__init__(rule)
        if not isinstance(scale, str) and not callable(scale):
            raise TypeError(f"scale must be one of {', '.join(SCALE_RULES)} or a function, got {scale!r}")
        self.scale = one_of("scale", scale, SCALE_RULES) if isinstance(scale, str) else scale
        self.granularity = one_of("granularity", granularity, GRANULARITIES)
        self.needs_axis = self.granularity == "channel"
        self._memory: Tensor | None = None
        """Of the named rules: (steps counted, the rule's reference), float64."""
        self._history: list[float] = []
        self._alpha: Tensor | None = None
        self._sigma: Tensor | None = None

    def settings(self) -> dict[str, Any]:
        """`scale` (`"function"` for a function) and `granularity`."""
        return {
            "scale": self.scale if isinstance(self.scale, str) else "function",
            "granularity": self.granularity,
        }

    def signals(self) -> dict[str, Tensor]:
        """`alpha` and `sigma` of the last step."""
        return {} if self._alpha is None or self._sigma is None else {"alpha": self._alpha, "sigma": self._sigma}

    def transform_(self, chosen: Sequence[Entry]) -> None:
        """Centre and scale."""
        if self.granularity == "channel" and all(type(entry.parameter.grad) is Tensor for entry in chosen):
            items, _ = gradient_items(chosen)  # none is sharded: what all channels sum to is what all gradients do
            known = unit_statistics(items)
            centre_known_(items, self._alpha_for(known.together), known)
            return
        found = moments_of(chosen)
        alpha = self._alpha_for(pooled(found))
        if self.granularity == "channel":
            centre_channels_(chosen, alpha)
        else:
            shift_and_scale_(local_gradients(chosen), finite_or(found.mean, 0.0), alpha, found.std)

    def _alpha_for(self, together: Moments) -> Tensor:
        """The next alpha, from the moments of all gradients together."""
        self._sigma = together.std.squeeze(0)
        self._alpha = self._next_alpha(self._sigma)
        return self._alpha

    def _next_alpha(self, sigma: Tensor) -> Tensor:
        if not isinstance(self.scale, str):
            return torch.full_like(sigma, self._alpha_of_function(self.scale, sigma.item()))
        if self._memory is None:
            self._memory = sigma.new_zeros(2)
        self._memory = self._memory.to(sigma.device)  # a resumed one may come from elsewhere
        steps, reference = self._memory
        usable = torch.isfinite(sigma)
        steps = torch.where(usable, steps + 1, steps)
        first = steps == 1
        if self.scale == "running_max":
            updated = torch.maximum(reference, sigma)
            alpha = sigma / updated
        elif self.scale == "ema":
            updated = EMA_DECAY * reference + (1 - EMA_DECAY) * sigma
            alpha = sigma * (1 - torch.pow(EMA_DECAY, steps)) / updated
        else:
            updated = torch.where(first, sigma, reference)
            ratio = sigma / updated
            alpha = ratio if self.scale == "first" else 1 / (1 - ratio.log().clamp(max=0))
        self._memory = torch.where(usable, torch.stack([steps, updated]), self._memory)
        # 0 / 0, where no gradient was ever other than constant, counts as 1.
        return torch.where(usable, alpha.nan_to_num(1.0, 1.0), 1.0).clamp(LEAST_ALPHA, 1.0)

    def _alpha_of_function(self, rule: Callback, sigma: float) -> float:
        if not math.isfinite(sigma):
            return 1.0
        alpha = float(rule(sigma, tuple(self._history)))
        if not 0 < alpha <= 1:
            raise ValueError(
                f"the function given as scale must return an alpha in (0, 1], got {alpha} for sigma={sigma:g} at step "
                f"{len(self._history) + 1}"
            )
        self._history.append(sigma)
        return alpha

    def state_dict(self) -> dict[str, Any]:
        """Settings, the steps counted, the rule's reference, and the history where a function needs it."""
        steps, reference = (0.0, 0.0) if self._memory is None else self._memory.tolist()
        return {**self.settings(), "steps": int(steps), "reference": reference, "history": list(self._history)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved state; ValueError when scale or granularity is another."""
        self._check_settings(state, ("steps", "reference", "history"))
        device = None if self._memory is None else self._memory.device
        self._memory = torch.tensor([state["steps"], state["reference"]], dtype=torch.float64, device=device)
        self._history = [float(sigma) for sigma in state["history"]]
        self._alpha = self._sigma = None
