"""Compensate: the step that shrinkage took away, given back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from trimtab.checks import below_one, number, one_of, whole
from trimtab.parameters import Entry
from trimtab.precision.lever import LowPrecision
from trimtab.precision.shrinkage import shrinkage

Granularity = Literal["global", "tensor"]


class Compensate:
    """A lever that divides the step by a running shrinkage q of the gradients that a `LowPrecision` rounded.

        q_k = <Q(g), g> / ||g||^2                  of the step, over all rounded gradients (or of each tensor)
        m <- decay m + (1 - decay) max(q_k, floor),    w <- decay w + (1 - decay)
        g <- Q(g) * min(w / m, cap)

    SGD with step mu and shrinkage q moves as with step mu q (arXiv 2508.07142), so this gives mu back. It is the gradient
    that is scaled, not the learning rate [ours]: schedulers read and write the rate undisturbed, nothing accumulates,
    tensors that were not rounded and weight decay keep their step, and in a momentum buffer each gradient carries the factor
    of its own step. For an optimizer that divides by the gradient's own scale (Adam) a constant factor cancels, as the
    shrinkage itself does: nothing is to be won there.

    It can win back a slow-down where little noise was added. It cannot bring back entries that died, and it scales the noise
    with the signal. A step whose q is NaN (zero or non-finite gradients) is left out of the mean.

    Args:
        lever: the LowPrecision, before this lever in the same chain.
        granularity: "global" (default), one q for all tensors as in the paper, or "tensor", one for each.
        decay: of the running mean, in [0, 1). Default 0.9 [ours].
        floor: least q that enters the mean, so that one step whose gradients died does not take it over; in (0, 1].
            Default 0.01 [ours].
        cap: largest factor, at least 1. Default 10 [ours].
        every: measure q every so-many steps; in between the running one is used. Default 1.

    Raises:
        TypeError, ValueError: arguments out of range, a lever that rounds no gradients.
        RuntimeError: (at the step) the lever has not rounded yet: it must come first.

    Example:
        >>> import torch, trimtab
        >>> from trimtab.precision import LowPrecision
        >>> net = torch.nn.Linear(1, 1, bias=False)
        >>> optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        >>> rounding = LowPrecision("e2m1", rounding="toward_zero")
        >>> handle = trimtab.attach(optimizer, rounding, Compensate(rounding))
        >>> net(torch.tensor([[2.5]])).sum().backward()
        >>> optimizer.step()  # 2.5 became 2, q = 0.8
        >>> net.weight.grad
        tensor([[2.5000]])
    """

    one_optimizer = "it follows its LowPrecision, which acts on one; make one for each optimizer"

    def __init__(
        self,
        lever: LowPrecision,
        *,
        granularity: Granularity = "global",
        decay: float = 0.9,
        floor: float = 0.01,
        cap: float = 10.0,
        every: int = 1,
    ) -> None:
        if not isinstance(lever, LowPrecision) or "gradients" not in lever.formats:
            raise TypeError(f"lever must be a LowPrecision that rounds gradients, got {lever!r}")
        one_of("granularity", granularity, get_args(Granularity))
        self.lever, self.granularity = lever, granularity
        self.decay, self.floor = below_one("decay", decay), number("floor", floor, above=0, most=1)
        self.cap, self.every = number("cap", cap, least=1), whole("every", every, 1)
        self._running: dict[str, Tensor] = {}
        lever.rounding.measure_every.append(every)

    @torch.no_grad()
    def before_step(self, parameters: Sequence[Entry]) -> None:
        """Take the step's q into the running mean, then scale the rounded gradients; called by `trimtab.attach`."""
        present = self.lever.rounded_gradients(parameters)
        if not present:
            return
        if self.lever.step % self.every == 0:
            measured = self.lever.measured
            if measured is None or measured.step != self.lever.step:
                raise RuntimeError(
                    "Compensate needs what its LowPrecision measured in this step; attach that one first"
                )
            if self.granularity == "global":
                self._update([""], shrinkage(measured.together[None]).projection)
            else:
                self._update(measured.names, shrinkage(measured.sums).projection)
        for entry, gradient in present:
            factor = self.factor("" if self.granularity == "global" else entry.name)
            if factor is not None:
                gradient.mul_(factor.to(gradient.device, gradient.dtype))

    def _update(self, names: Sequence[str], projections: Tensor) -> None:
        finite = projections.isfinite()
        weight = finite.double() * (1 - self.decay)
        kept = 1 - weight
        value = torch.where(finite, projections.clamp(min=self.floor), 0.0)
        before = torch.stack([self._running.get(name, torch.zeros(2, device=kept.device).double()) for name in names])
        after = kept[:, None] * before + weight[:, None] * torch.stack([value, torch.ones_like(value)], 1)
        self._running.update(zip(names, after.unbind(), strict=True))

    def factor(self, name: str = "") -> Tensor | None:
        """What the gradient of this tensor (of all, when granularity is "global") is multiplied by; None before the first q.

        A tensor of shape () on the device; 1 as long as no q was a number.
        """
        if name not in self._running:
            return None
        total, weight = self._running[name].unbind()
        return torch.where(weight > 0, (weight / total).clamp(max=self.cap), 1.0)

    def signals(self) -> dict[str, Tensor]:
        """The factors, by tensor when granularity is "tensor"; empty before the first step."""
        found = {f"{name}.factor" if name else "factor": self.factor(name) for name in self._running}
        return {name: factor for name, factor in found.items() if factor is not None}

    def settings(self) -> dict[str, Any]:
        """What changes the formula; a saved state fits only where these agree."""
        return {
            "granularity": self.granularity,
            "decay": self.decay,
            "floor": self.floor,
            "cap": self.cap,
            "every": self.every,
        }

    def state_dict(self) -> dict[str, Any]:
        """The settings and the running means."""
        return {"settings": self.settings(), "running": {name: pair.clone() for name, pair in self._running.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved state; ValueError when its settings are not this object's."""
        if state.get("settings") != self.settings():
            raise ValueError(f"the saved settings {state.get('settings')} are not those of {self!r}")
        self._running = {name: pair.clone() for name, pair in state["running"].items()}

    def __repr__(self) -> str:
        return f"Compensate({', '.join(f'{name}={value!r}' for name, value in self.settings().items())})"
