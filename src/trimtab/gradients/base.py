"""What every gradient transform is: a lever that changes the gradients of the tensors its rule picks, in place."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from trimtab.parameters import Entry, Judged, Rule, no_axis, rule_or
from trimtab.sparse import is_sparse, refuse_sparse

EVERY_TENSOR = Rule(min_ndim=0)
"""What the two clipping transforms act on by default: biases and norm scales too."""


def _as_real(entry: Entry) -> Entry:
    """The entry itself, or a stand-in of a real dtype for a complex one, so that a rule can judge it."""
    parameter = entry.parameter
    if not parameter.is_complex():
        return entry
    return replace(entry, parameter=torch.empty(parameter.shape, device="meta"))


class GradientTransform(ABC):
    """A lever that replaces the gradients of the chosen tensors by a function of them, in place, once per step.

    Attached with `trimtab.attach`, it sees gradients that are unscaled, accumulated and reduced. Half gradients are
    computed in float32 and rounded once. A chosen tensor without a gradient is skipped. What is not finite is passed on
    as it is: a statistic that is NaN or infinite changes nothing, so that a NaN neither spreads nor turns into a zero
    [ours].

    Args:
        rule: which tensors count. Default `Rule()`: trainable, at least two dimensions, weights by their owner's word [ours].

    Attributes:
        left_out: the parameters left alone in the last step, each with the reason; frozen ones are not listed.

    Raises:
        TypeError: (at the step) a chosen tensor is complex or its gradient sparse; the message names it.
    """

    default_rule = Rule()
    needs_axis = False
    """Whether the transform works on channels, so that it leaves out what has no known output dimension."""
    takes_sparse = False
    """Whether `transform_` also takes sparse COO gradients."""

    def __init__(self, rule: Rule | None = None) -> None:
        self.rule = rule_or(rule, self.default_rule)
        self.left_out: list[tuple[Entry, str]] = []
        self._candidates: Judged[list[Entry]] = Judged()

    @abstractmethod
    def transform_(self, chosen: Sequence[Entry]) -> None:
        """Change the gradients of these entries, each of which has a real one, dense unless `takes_sparse`."""

    def chosen(self, parameters: Sequence[Entry]) -> list[Entry]:
        """The entries that the rule picks and that have a gradient now."""
        picked = []
        for entry in self._candidates(parameters, self._judge):
            parameter = entry.parameter
            gradient = parameter.grad
            # a parameter may be frozen or thawed between steps, so this is asked every time
            if gradient is None or not (parameter.requires_grad or self.rule.frozen):
                continue
            if gradient.is_complex():
                self._refuse_complex(entry, gradient)
            if gradient.layout is not torch.strided and not (self.takes_sparse and is_sparse(parameter)):
                refuse_sparse(self, entry.name, gradient)
            picked.append(entry)
        return picked

    def _judge(self, parameters: Sequence[Entry]) -> list[Entry]:
        """What the rule picks, were it trainable; the others go to `left_out`."""
        rule = replace(self.rule, frozen=True)
        candidates, self.left_out = [], []
        for entry in parameters:
            reason = rule.reason_against(_as_real(entry)) or (no_axis(entry) if self.needs_axis else None)
            if reason is None:
                candidates.append(entry)
            else:
                self.left_out.append((entry, reason))
        return candidates

    def _refuse_complex(self, entry: Entry, gradient: Tensor) -> None:
        raise TypeError(
            f"{type(self).__name__} acts on real gradients, {entry.name} is {gradient.dtype}; leave it out with "
            "rule=Rule(exclude=...)"
        )

    @torch.no_grad()
    def before_step(self, parameters: Sequence[Entry]) -> None:
        """Transform the gradients about to be used; called by `trimtab.attach`."""
        if chosen := self.chosen(parameters):
            self.transform_(chosen)

    def signals(self) -> dict[str, Tensor]:
        """What the last step did, as tensors of shape () still on the device; empty before the first step."""
        return {}

    def settings(self) -> dict[str, Any]:
        """What changes the formula; a saved state fits only where these agree."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """The settings, and what the transform remembers of earlier steps."""
        return self.settings()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved state; ValueError when its settings are not this object's."""
        self._check_settings(state)

    def _check_settings(self, state: dict[str, Any], memory: Sequence[str] = ()) -> None:
        settings = {name: value for name, value in state.items() if name not in memory}
        if settings != self.settings() or any(name not in state for name in memory):
            raise ValueError(f"the saved state {state} does not fit {self!r}, whose settings are {self.settings()}")

    def __repr__(self) -> str:
        parts = [f"{name}={value!r}" for name, value in self.settings().items()]
        parts.append(f"min_ndim={self.rule.min_ndim}")
        parts += [f"{name}={value!r}" for name in ("include", "exclude") if (value := getattr(self.rule, name))]
        if self.rule.frozen:
            parts.append("frozen=True")
        return f"{type(self).__name__}({', '.join(parts)})"
