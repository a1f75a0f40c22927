"""NormGrowthLimiter: a gradient's norm may grow only so fast from step to step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from trimtab.checks import non_negative, number, one_of
from trimtab.gradients.base import GradientTransform
from trimtab.gradients.memory import NumberOfEach
from trimtab.parameters import Entry, Rule
from trimtab.tensors.norms import each_norm, joint_norm
from trimtab.tensors.passes import gradients_of, local_gradients, shift_and_scale_

Per = Literal["tensor", "global"]
PER = ("tensor", "global")


class NormGrowthLimiter(GradientTransform):
    """Norm-growth limiter: a spike is cut back to what the step before allows, without a threshold to tune.

    With n the gradient's norm and p what the step before left of it:
    `f = max(n / (p + eps), max_growth) / max_growth`, `g <- g / f`, `p <- n / f`. The first gradient is free.

    Args:
        max_growth: greatest growth of the norm in a step, as a factor; 1 or more. Default 1.01, paper and code.
        eps: added to the norm before; 0 or more. Default 1e-8, the authors' code.
        per: `"tensor"` limits each tensor by its own norm, `"global"` all by their joint one. Default "tensor".
        floor: a norm that counts where the one before was smaller; 0 or more, in the units of the gradient. Default 0, as
            published: after a gradient near 0 (a head that was frozen, a dead start) the norm may then grow by 1 % a step only,
            from 1e-6 to 1 in 1389 steps [ours].
        rule: which tensors count. Default `Rule()`: trainable, at least two dimensions, as in Fira, which limits matrices.

    Raises:
        ValueError: a number is out of range, or `per` is unknown.
        TypeError: (at the step) a chosen tensor is complex or its gradient sparse.

    A norm that is not finite changes nothing and is forgotten [ours]. A step that `GradScaler` skips never was.

    Reference: Chen et al., Fira, arXiv 2410.01623.

    Example:
        >>> import trimtab
        >>> net = torch.nn.Linear(2, 1, bias=False)
        >>> optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        >>> handle = trimtab.attach(optimizer, trimtab.gradients.NormGrowthLimiter(max_growth=2.0))
        >>> for size in (1.0, 1000.0):
        ...     net.weight.grad = size * torch.tensor([[0.6, 0.8]])
        ...     optimizer.step()
        >>> net.weight.grad
        tensor([[1.2000, 1.6000]])
    """

    def __init__(
        self,
        max_growth: float = 1.01,
        eps: float = 1e-8,
        *,
        per: Per = "tensor",
        floor: float = 0.0,
        rule: Rule | None = None,
    ) -> None:
        super().__init__(rule)
        self.max_growth = number("max_growth", max_growth, least=1)
        self.eps = non_negative("eps", eps)
        self.per = one_of("per", per, PER)
        self.floor = non_negative("floor", floor)
        self.one_optimizer = "it remembers one norm of all tensors together" if self.per == "global" else None
        self._before = NumberOfEach()
        self._limited: Tensor | None = None
        self._factor: Tensor | None = None

    def settings(self) -> dict[str, Any]:
        """`max_growth`, `eps`, `per` and `floor`."""
        return {"max_growth": self.max_growth, "eps": self.eps, "per": self.per, "floor": self.floor}

    def signals(self) -> dict[str, Tensor]:
        """`limited`: share of the tensors whose gradient was cut; `factor`: the least factor that one was multiplied by."""
        if self._limited is None or self._factor is None:
            return {}
        return {"limited": self._limited, "factor": self._factor}

    def transform_(self, chosen: Sequence[Entry]) -> None:
        """Limit every gradient, and remember what is left."""
        gradients = local_gradients(chosen)
        owners = gradients_of(chosen)
        each = self.per == "tensor"
        norms = each_norm(gradients, owners) if each else joint_norm(gradients, owners).unsqueeze(0)
        before = self._before.read([entry.name for entry in chosen] if each else [""], norms.device)
        growth = norms / (before.clamp(min=self.floor) + self.eps)
        factor = self.max_growth / growth.clamp(min=self.max_growth)
        usable = norms.isfinite()
        factor = torch.where(usable & before.isfinite(), factor.nan_to_num(1.0), 1.0)
        self._before.write(torch.where(usable, norms * factor, before))
        self._limited, self._factor = (factor < 1).double().mean(), factor.min()
        if factor.device.type != "cpu" or self._factor < 1:
            shift_and_scale_(gradients, None, factor if each else factor.squeeze(0))

    def state_dict(self) -> dict[str, Any]:
        """The settings, and the norm that the last step left of every tensor, by name."""
        return {**self.settings(), "before": self._before.as_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved state; ValueError when its settings are others."""
        self._check_settings(state, ("before",))
        self._before.load(state["before"])
