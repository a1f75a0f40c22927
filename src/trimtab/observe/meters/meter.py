"""What every meter is: a lever that changes nothing and signals a few numbers at some steps."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from trimtab.checks import whole
from trimtab.parameters import Entry, Judged, Rule, rule_or


class Meter(ABC):
    """Looks at some steps; its numbers stay on the device until somebody reads them.

    Attach it with the tracker that shall record it, and let that watch it:
    `attach(optimizer, tracker, meter, model=model); tracker.watch(meter)`. Both with the same `every`.

    Args:
        every: each k-th step from 0 on, or those for which a function of the step is true. Default 1.

    Raises:
        ValueError: `every` is neither a whole number of 1 or more nor a function.
    """

    observes = True
    judged: tuple[str, ...] | None = None
    """Signals that a guard which watches the meter judges; None for all."""

    def __init__(self, every: int | Callable[[int], bool] = 1) -> None:
        self.every = every if callable(every) else whole("every", every, 1)
        self.step = 0
        """Optimizer steps seen so far; the number of the next one."""
        self._signals: dict[str, Tensor] = {}

    @property
    def due(self) -> bool:
        """Whether the step to come is looked at."""
        return bool(self.every(self.step)) if callable(self.every) else self.step % self.every == 0

    @torch.no_grad()
    def before_step(self, parameters: Sequence[Entry]) -> None:
        """Measure, where the step is due; called by `trimtab.attach`."""
        self._signals = self.measure(parameters) if self.due else {}

    @abstractmethod
    def measure(self, parameters: Sequence[Entry]) -> dict[str, Tensor]:
        """The signals of this step, as far as they are known before it."""

    def end_step(self) -> None:
        """Count the step; called by `trimtab.attach`."""
        self.step += 1

    def signals(self) -> Mapping[str, Tensor]:
        """The numbers of the last step, by name; none where it was not looked at."""
        return dict(self._signals)

    def state_dict(self) -> dict[str, Any]:
        """Steps seen."""
        return {"step": self.step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self.step = int(state["step"])

    def __repr__(self) -> str:
        every = getattr(self.every, "__name__", "function") if callable(self.every) else self.every
        return f"{type(self).__name__}(every={every})"


class Picked:
    """The tensors that a rule picks and that have a dense, real gradient now.

    Args:
        rule: which; what is frozen or without a gradient is left out at each step.
    """

    def __init__(self, rule: Rule) -> None:
        self.rule = rule
        self._judged: Judged[list[Entry]] = Judged()

    def __call__(self, parameters: Sequence[Entry]) -> list[Entry]:
        """Those of this step."""
        rule = replace(self.rule, frozen=True)
        listed = self._judged(parameters, lambda given: [one for one in given if rule.reason_against(one) is None])
        return [one for one in listed if one.parameter.grad is not None and one.parameter.grad.layout is torch.strided]


class EachTensor(Meter):
    """A meter with one number for each tensor that a rule picks.

    Args:
        every: as of `Meter`.
        rule: which tensors count. Default `Rule(role="any")`: trainable, at least two dimensions [ours].
    """

    def __init__(self, every: int | Callable[[int], bool] = 1, rule: Rule | None = None) -> None:
        super().__init__(every)
        self.rule = rule_or(rule, Rule(role="any"))
        self._picked = Picked(self.rule)
        self._names: list[str] = []
        self._each: Tensor | None = None

    def layers(self) -> dict[str, float]:
        """The number of each tensor in the last step that was looked at; waits for the device."""
        return {} if self._each is None else dict(zip(self._names, self._each.tolist(), strict=True))
