"""Penalties that act on the weights after the step, in proportion to the learning rate, as AdamW's decay does."""

from __future__ import annotations

import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from trimtab.parameters import Entry, Judged, Rule, group_places, rule_or, select
from trimtab.sparse import refuse_sparse

COMPUTED = "a part of a weight that is computed from several; what acts after the step changes weights themselves"


class Stepped(NamedTuple):
    """A tensor that takes part in a step, and the learning rate of that step."""

    entry: Entry
    rate: float


class DecoupledPenalty(ABC):
    """Changes the weights after the step of the optimizer, by an amount in proportion to the learning rate of their group.

    Neither momentum nor Adam's second moment ever sees it, and so neither multiplies it: see `ProximalL1`. A tensor without
    a gradient in a step is left alone, as the optimizer leaves it alone.

    Args:
        rule: which tensors count. Default at least two dimensions, weights by their owner's word [ours].

    Attributes:
        left_out: the parameters that the rule left out, each with the reason.
    """

    one_optimizer = "it acts by the learning rates of one optimizer; make one for each"

    def __init__(self, rule: Rule | None = None) -> None:
        self.rule = rule_or(rule, Rule())
        self.left_out: list[tuple[Entry, str]] = []
        self._optimizer: Callable[[], torch.optim.Optimizer | None] = lambda: None
        self._judged: Judged[list[tuple[Entry, int]]] = Judged()
        self._taking_part: list[Stepped] = []

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """What changes the formula; a saved state fits only where these agree."""

    @abstractmethod
    def act_(self, stepped: Sequence[Stepped]) -> None:
        """Change the weights of these tensors, in place."""

    def check(self, stepped: Sequence[Stepped]) -> None:  # noqa: B027 - by default there is nothing to refuse
        """Refuse a step before it is taken."""

    def bind(self, optimizer: torch.optim.Optimizer, model: nn.Module | None, parameters: Sequence[Entry]) -> None:
        """Remember whose learning rates count, choose the tensors; called by `trimtab.attach`."""
        self._optimizer = weakref.ref(optimizer)  # which must not live on for its levers
        self._judged = Judged()
        self._judged(parameters, self._judge)

    def unbind(self) -> None:
        """Let the optimizer go; called by `Handle.remove`."""
        self._optimizer = lambda: None
        self._judged = Judged()
        self._taking_part = []

    def _judge(self, parameters: Sequence[Entry]) -> list[tuple[Entry, int]]:
        """The chosen tensors, each with the place of its group; ValueError when there is none."""
        optimizer = self._optimizer()
        assert optimizer is not None
        selection = select(parameters, self.rule)
        self.left_out = selection.left_out + [(entry, COMPUTED) for entry in selection.chosen if entry.computed]
        chosen = [entry for entry in selection.chosen if entry.computed is None]
        if not chosen:
            examples = "; ".join(f"{entry.name}: {reason}" for entry, reason in self.left_out[:3])
            raise ValueError(f"{self!r} finds nothing to act on among {len(self.left_out)} parameter(s) ({examples})")
        groups = group_places(optimizer)
        return [(entry, groups[id(entry.parameter)]) for entry in chosen]

    def before_step(self, parameters: Sequence[Entry]) -> None:
        """Note which tensors will be stepped and at which rate, and refuse what does not fit; called by `trimtab.attach`."""
        optimizer = self._optimizer()
        if optimizer is None:
            raise RuntimeError(f"{self!r} acts by the optimizer's learning rate; use trimtab.attach(optimizer, lever)")
        groups = optimizer.param_groups  # loading a state replaces them, so they are asked for by place
        self._taking_part = []
        for entry, group in self._judged(parameters, self._judge):
            if entry.parameter.grad is not None:
                refuse_sparse(self.__class__.__name__, entry.name, entry.parameter.grad)
                self._taking_part.append(Stepped(entry, float(groups[group]["lr"])))
        self.check(self._taking_part)

    @torch.no_grad()
    def after_step(self, parameters: Sequence[Entry]) -> None:
        """Act on the weights; called by `trimtab.attach`."""
        taking_part, self._taking_part = [one for one in self._taking_part if one.rate], []
        if taking_part:
            self.act_(taking_part)

    def state_dict(self) -> dict[str, Any]:
        """The settings."""
        return self.settings()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to take over; ValueError when the saved settings are not this object's."""
        if state != self.settings():
            raise ValueError(f"the saved state {state} does not fit {self!r}, whose settings are {self.settings()}")

    def __repr__(self) -> str:
        parts = [f"{name}={value!r}" for name, value in self.settings().items()]
        parts.append(f"min_ndim={self.rule.min_ndim}")
        parts += [f"{name}={value!r}" for name in ("include", "exclude") if (value := getattr(self.rule, name))]
        return f"{type(self).__name__}({', '.join(parts)})"


def rates_of(stepped: Sequence[Stepped], device: torch.device) -> Tensor:
    """The learning rates, shape (tensors,), float64."""
    return torch.tensor([one.rate for one in stepped], dtype=torch.float64, device=device)
