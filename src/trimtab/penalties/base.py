"""What every penalty is: a lever with a differentiable value and a closed-form gradient."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from trimtab.checks import non_negative
from trimtab.collectives import is_sharded
from trimtab.parameters import Entry, Rule, Source, rule_or, select
from trimtab.tensors.passes import working_dtype


class Penalty(ABC):
    """A term `strength * psi(w)`, `psi(w) = sum over tensors of psi(tensor)`, added to the loss.

    Use it in one of two ways, never in both at once: `loss + penalty.value(model)`, which autograd differentiates, or
    `trimtab.attach(optimizer, penalty)`, which adds the closed-form gradient once per step, after accumulation and
    unscaling.

    Args:
        strength: lambda, the factor before psi; finite, 0 or more. May be changed between steps.
        rule: which tensors count. Default `Rule()`: trainable, at least two dimensions, weights by their owner's word [ours].

    Attributes:
        left_out: the parameters that the rule left out last, each with the reason.

    A weight that is computed from others (weight_norm, spectral_norm, orthogonal) counts as the one that the product uses, and
    its gradient goes on to the parts; with `attach` that needs `model=model`.
    """

    def __init__(self, strength: float, rule: Rule | None = None) -> None:
        self.strength = non_negative("strength", strength)
        self.rule = rule_or(rule, Rule())
        self.left_out: list[tuple[Entry, str]] = []
        self._warned = False

    @abstractmethod
    def psi(self, weight: Tensor) -> Tensor:
        """The penalty of one whole tensor, without the strength; differentiable; shape ()."""

    @abstractmethod
    def add_gradient_(self, params: Source) -> None:
        """Add `strength * d psi / d w` to the gradients of the chosen tensors, in place, without autograd."""

    @abstractmethod
    def per_layer(self, params: Source) -> dict[str, float]:
        """psi of every chosen tensor by name, without the strength; one synchronisation with the device."""

    def settings(self) -> dict[str, Any]:
        """What changes the formula; a saved state fits only where these agree."""
        return {}

    def chosen(self, params: Source) -> list[Entry]:
        """The tensors the rule picks from `params`; ValueError when there is none."""
        selection = select(params, self.rule, computed=True)
        self.left_out = selection.left_out
        if not selection.chosen:
            examples = "; ".join(f"{entry.name}: {reason}" for entry, reason in selection.left_out[:3])
            raise ValueError(
                f"{self!r} finds nothing to penalise among {len(selection.left_out)} parameter(s)"
                + (f" ({examples})" if examples else "")
            )
        return selection.chosen

    def value(self, params: Source) -> Tensor:
        """`strength * psi`, differentiable; computed in float32 at least, in float64 for float64 tensors; shape ().

        Sharded tensors are gathered whole, so this is the slow form.

        Raises:
            ValueError: the rule chooses no tensor.
        """
        terms = []
        for entry in self.chosen(params):
            weight = entry.parameter
            if is_sharded(weight):
                weight = weight.full_tensor()  # type: ignore[attr-defined]
            terms.append(self.psi(weight if weight.dtype == torch.float64 else weight.float()))
        # dtypes promote: one float64 tensor makes the sum float64
        total = terms[0]
        for term in terms[1:]:
            total = total + term.to(total.device)
        return self.strength * total

    @contextmanager
    def with_gradients(self, params: Source) -> Iterator[list[list[Entry]]]:
        """The chosen tensors that have a gradient, by device and precision; none when the strength is 0.

        For a weight that is computed from parts a leaf stands in; what is added to its gradient goes on to those of the parts.
        """
        chosen, computed = [], []
        found = self.chosen(params)
        for entry in found if self.strength else ():
            if entry.computed is None:
                chosen += [entry] if entry.parameter.grad is not None else []
            elif any(part.grad is not None for part in entry.computed.parts.values()):
                leaf = entry.parameter.detach().requires_grad_()
                leaf.grad = torch.zeros_like(leaf)
                chosen.append(replace(entry, parameter=leaf))
                computed.append((entry, leaf))
        yield by_device_and_dtype(chosen)
        for entry, leaf in computed:
            assert entry.computed is not None
            assert leaf.grad is not None
            entry.computed.add_gradient_(entry.parameter, leaf.grad)

    def before_step(self, parameters: Sequence[Entry]) -> None:
        """Add the gradient to the parameters about to be stepped; called by `trimtab.attach`."""
        self.add_gradient_(parameters)

    def exceeds(self, task_loss: float | Tensor, params: Source, factor: float = 10.0) -> bool:
        """Whether `strength * psi > factor * |task_loss|`; warns the first time, naming the largest tensors.

        Reads psi once (one synchronisation), so call it now and then: every hundred steps, or once per epoch.

        Args:
            task_loss: the loss without the penalty.
            params: as for `value`.
            factor: default 10 [ours].

        Example:
            >>> net = torch.nn.Linear(3, 3)
            >>> _ = torch.nn.init.constant_(net.weight, 0.1)
            >>> from trimtab.penalties import L1
            >>> L1(strength=1e-3).exceeds(2.3, net)
            False
        """
        layers = self.per_layer(params)
        total = self.strength * sum(layers.values())
        loss = abs(float(task_loss.detach() if isinstance(task_loss, Tensor) else task_loss))
        too_large = not total <= factor * loss
        if too_large and not self._warned:
            self._warned = True
            largest = sorted(layers, key=lambda name: -layers[name])[:3]
            shares = ", ".join(f"{name}: {self.strength * layers[name]:.3g}" for name in largest)
            warnings.warn(
                f"{self!r} adds {total:.3g} to a task loss of {loss:.3g}, more than {factor:g} times it; the largest "
                f"terms are {shares}. Lower strength, or leave these tensors out with rule=Rule(exclude=...)",
                stacklevel=2,
            )
        return too_large

    def state_dict(self) -> dict[str, Any]:
        """The strength (it may follow a schedule) and the settings of the formula."""
        return {"strength": self.strength, **self.settings()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over the saved strength; ValueError when the saved settings are not this object's."""
        saved = {name: value for name, value in state.items() if name != "strength"}
        if "strength" not in state or saved != self.settings():
            raise ValueError(f"the saved state {state} does not fit {self!r}, whose settings are {self.settings()}")
        self.strength = non_negative("strength", state["strength"])

    def __repr__(self) -> str:
        parts = [f"strength={self.strength:g}"]
        parts += [f"{name}={value!r}" for name, value in self.settings().items()]
        parts.append(f"min_ndim={self.rule.min_ndim}")
        parts += [f"{name}={value!r}" for name in ("include", "exclude") if (value := getattr(self.rule, name))]
        if self.rule.frozen:
            parts.append("frozen=True")
        return f"{type(self).__name__}({', '.join(parts)})"


def by_device_and_dtype(chosen: list[Entry]) -> list[list[Entry]]:
    """The entries that one pass may take together."""
    groups: dict[tuple[torch.device, torch.dtype], list[Entry]] = {}
    for entry in chosen:
        groups.setdefault((entry.parameter.device, working_dtype(entry.parameter)), []).append(entry)
    return list(groups.values())
