"""MomentumReset: the optimizer forgets its moments every so many steps, so that no spike lives on in them."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from trimtab.checks import whole
from trimtab.levers import refuse_state_elsewhere
from trimtab.optimizers.scaled_rates import ScaledRates
from trimtab.parameters import Entry


class MomentumReset:
    """Momentum reset of SPAM: after every `every` steps the optimizer's state is as before its first step.

    A spike of the gradient stays in Adam's second moment for thousands of steps and in the first for tens. After a reset the
    learning rate rises again: the t-th step after it is taken with `lr (1 - cos(pi min(t / warmup, 1))) / 2`.

    Args:
        every: steps between resets; 1 or more. Default 500 (paper).
        warmup: steps of the rise; 0 for none. Default 150 (paper).

    Raises:
        ValueError: a number is out of range, or `warmup` is longer than `every`; (at attach) an optimizer
            whose state lies on other ranks.

    The step count that corrects Adam's bias begins anew too [ours]: moments of zeros are as new as at the start. The loop's own
    learning rates are never changed. SPAM's spike-aware clipping is not part of it; put `ZClip` or `AdaGC` beside it.

    Reference: Huang et al., SPAM, arXiv 2501.06842.

    Example:
        >>> import trimtab
        >>> net = nn.Linear(2, 1)
        >>> optimizer = torch.optim.Adam(net.parameters())
        >>> handle = trimtab.attach(optimizer, MomentumReset(every=3, warmup=2), model=net)
        >>> for _ in range(3):
        ...     net(torch.ones(1, 2)).sum().backward()
        ...     optimizer.step()
        >>> len(optimizer.state)
        0
    """

    one_optimizer = "it counts the steps of one optimizer; make one for each"

    def __init__(self, every: int = 500, warmup: int = 150) -> None:
        self.every = whole("every", every, least=1)
        self.warmup = whole("warmup", warmup, least=0)
        if self.warmup > self.every:
            raise ValueError(f"warmup must not be longer than every ({every}), got {warmup}")
        self.step = 0
        self._rates = ScaledRates()
        self._optimizer: Callable[[], torch.optim.Optimizer | None] = lambda: None

    def bind(self, optimizer: torch.optim.Optimizer, model: nn.Module | None, parameters: Sequence[Entry]) -> None:
        """Remember whose state it is; called by `trimtab.attach`."""
        refuse_state_elsewhere(f"{type(self).__name__} forgets", optimizer)
        self._optimizer = weakref.ref(optimizer)  # which must not live on for its levers

    def unbind(self) -> None:
        """Let the optimizer go; called by `Handle.remove`."""
        self._optimizer = lambda: None

    def before_step(self, parameters: Sequence[Entry]) -> None:
        """Lower the learning rate after a reset; called by `trimtab.attach`."""
        since = self.step % self.every + 1
        rising = self.step >= self.every and since < self.warmup
        self._rates.scale(self._optimizer(), (1 - math.cos(math.pi * since / self.warmup)) / 2 if rising else 1.0)

    def after_step(self, parameters: Sequence[Entry]) -> None:
        """Count, and forget; called by `trimtab.attach`."""
        self._rates.restore()
        self.step += 1
        optimizer = self._optimizer()
        if self.step % self.every == 0 and optimizer is not None:
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    optimizer.state.pop(parameter, None)

    def settings(self) -> dict[str, Any]:
        """Both numbers."""
        return {"every": self.every, "warmup": self.warmup}

    def state_dict(self) -> dict[str, Any]:
        """Settings and steps counted."""
        return {**self.settings(), "step": self.step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved state; ValueError when its settings are others."""
        if {name: state.get(name) for name in self.settings()} != self.settings():
            raise ValueError(f"the saved state {state} does not fit {self!r}")
        self.step = int(state["step"])

    def __repr__(self) -> str:
        return f"MomentumReset(every={self.every}, warmup={self.warmup})"
