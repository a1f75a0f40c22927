"""What levers that prune along training share: masks that hold while the optimizer steps, their state, their end."""

from __future__ import annotations

import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from trimtab.checks import number, one_of, whole
from trimtab.parameters import Entry, Judged, Rule, rule_or
from trimtab.parameters.zeros import (
    TRAINED_WEIGHTS,
    keep_zeros_,
    parts_gone,
    set_zeros_,
    weight_now,
)
from trimtab.pruning.masks import Pairs
from trimtab.pruning.scopes import quotas
from trimtab.sparse import refuse_sparse
from trimtab.tensors.zeros import laid_like, refuse_sharded, smallest_or_refusal, weights_or_refusal

Scope = Literal["global", "layer"]
MOMENTA = ("momentum_buffer", "exp_avg")
"""Names of first moments in torch's optimizers."""


def of_run(fraction: float, total_steps: int) -> int:
    """The step at that fraction of a run, rounded to the nearest.

    Example:
        >>> of_run(0.75, 10)
        8
    """
    return math.floor(fraction * total_steps + 0.5)


class MaskedTraining(ABC):
    """Prunes by magnitude while the network trains; subclasses say after which steps, and how much.

    Masked weights get no gradient and are zero after every step. A step that `GradScaler` skips does not count, micro-batches
    that are accumulated are one step. SAM, ASAM and CrAM on the same optimizer perturb the kept weights only.

    Args:
        sparsity: fraction of the weights that is zero in the end, in (0, 1).
        total_steps: optimizer steps of the whole run.
        scope: "global" or "layer": where magnitudes are compared.
        rule: which weights take part. Default: what `one_shot` prunes and the optimizer trains.

    Attributes:
        steps: steps taken.
        left_out: the parameters that take no part, each with the reason.
    """

    one_optimizer = "its masks are of one optimizer's parameters; make one for each optimizer"
    needs_recalibration = False
    default_rule = TRAINED_WEIGHTS

    def __init__(self, label: str, sparsity: float, total_steps: int, scope: Scope, rule: Rule | None) -> None:
        self._final = number(label, sparsity, above=0, below=1)
        self.total_steps = whole("total_steps", total_steps, 1)
        self.scope: Scope = one_of("scope", scope, ("global", "layer"))  # type: ignore[assignment]
        self.rule = rule_or(rule, TRAINED_WEIGHTS)
        self.steps = 0
        self.left_out: list[tuple[Entry, str]] = []
        self._gone: dict[str, Tensor] = {}
        self._judged: Judged[list[Entry]] = Judged()
        self._optimizer: torch.optim.Optimizer | None = None
        self._entries: Sequence[Entry] = ()

    # what subclasses say

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """What decides when and how much; a saved state fits only where these agree."""

    @abstractmethod
    def _act(self, chosen: list[Entry]) -> None:
        """Change the masks where `steps` steps taken ask for it."""

    # what a handle calls

    def bind(self, optimizer: torch.optim.Optimizer, model: nn.Module | None, parameters: Sequence[Entry]) -> None:
        """Know the optimizer, and act at the start of training where something is due; called by `trimtab.attach`.

        Raises:
            ValueError: sharded weights, or no weight to prune.
        """
        refuse_sharded(self, parameters)
        self._optimizer, self._entries = optimizer, parameters
        if self._gone:  # of a state that was loaded before
            self._take(self._gone)
        if self.steps == 0 and self._due_at_start():
            with torch.no_grad():
                self._act(self._chosen(parameters))

    def _due_at_start(self) -> bool:
        return False

    def unbind(self) -> None:
        """Let the optimizer go; called by `Handle.remove`."""
        self._optimizer, self._entries = None, ()

    @torch.no_grad()
    def before_step(self, parameters: Sequence[Entry]) -> None:
        """Set the gradients of masked weights to zero; called by `trimtab.attach`.

        Raises:
            TypeError: a gradient is sparse.
        """
        for entry in self._dense_ones(parameters):
            gone = self._gone.get(entry.name)
            for part, where in parts_gone(entry, gone) if gone is not None else ():
                if part.grad is not None:
                    part.grad.masked_fill_(where, 0)

    @torch.no_grad()
    def after_step(self, parameters: Sequence[Entry]) -> None:
        """Set masked weights to zero, count the step, and prune where it is time; called by `trimtab.attach`."""
        chosen = self._chosen(parameters)
        self.steps += 1
        self._entries = parameters
        self._keep(chosen)
        self._act(chosen)

    @torch.no_grad()
    def finish(self, parameters: Sequence[Entry]) -> None:
        """Where training ended before its time, prune to the final sparsity now; called by `Handle.finish`."""
        chosen = self._chosen(parameters)
        self._entries = parameters
        self.needs_recalibration = self._zeros() < sum(self._counts(chosen, self._final))
        if self.needs_recalibration:
            self._prune(chosen, self._final)

    def removed(self) -> Pairs:
        """Each masked parameter with a bool tensor that is True where its weights are gone."""
        chosen = self._chosen(self._entries) if self._gone else []
        return [
            pair for entry in chosen if entry.name in self._gone for pair in parts_gone(entry, self._gone[entry.name])
        ]

    # masks

    @property
    def masks(self) -> dict[str, Tensor]:
        """Per weight a bool tensor, True where it stays, as `one_shot` gives them; empty while nothing is pruned."""
        return {name: ~gone for name, gone in self._gone.items()}

    @property
    def sparsity_now(self) -> float:
        """Fraction of the weights that is masked now."""
        elements = sum(entry.parameter.numel() for entry in self._chosen(self._entries)) if self._gone else 0
        return self._zeros() / elements if elements else 0.0

    def describe(self) -> dict[str, float]:
        """For a run's record: the sparsity now."""
        return {"sparsity": self.sparsity_now}

    def _zeros(self) -> int:
        return sum(int(gone.count_nonzero()) for gone in self._gone.values())

    def _chosen(self, parameters: Sequence[Entry]) -> list[Entry]:
        return self._judged(parameters, self._find)

    def _dense_ones(self, parameters: Sequence[Entry]) -> list[Entry]:
        """The chosen ones; TypeError when the gradient of one is sparse."""
        chosen = self._chosen(parameters)
        for entry in chosen:
            for part in (entry.parameter,) if entry.computed is None else entry.computed.parts.values():
                if part.grad is not None:
                    refuse_sparse(self, entry.name, part.grad)
        return chosen

    def _find(self, parameters: Sequence[Entry]) -> list[Entry]:
        chosen, self.left_out = weights_or_refusal(self, parameters, self.rule)
        for entry in chosen:
            gone = self._gone.get(entry.name)
            if gone is not None and gone.shape != entry.parameter.shape:
                raise ValueError(
                    f"{entry.name} has the shape {tuple(entry.parameter.shape)}, its mask {tuple(gone.shape)}: it was replaced "
                    "since it was pruned"
                )
        return chosen

    def _groups(self, chosen: list[Entry], sparsity: float) -> Iterator[tuple[list[Entry], int]]:
        """Weights that are compared with each other, and how many of them are zero at that sparsity."""
        for positions, count in quotas([entry.parameter for entry in chosen], sparsity, self.scope):
            yield [chosen[position] for position in positions], count

    def _counts(self, chosen: list[Entry], sparsity: float) -> list[int]:
        return [count for _, count in self._groups(chosen, sparsity)]

    def _prune(self, chosen: list[Entry], sparsity: float) -> None:
        """Add the smallest weights to the masks until exactly that fraction is masked: `floor(sparsity * n + 0.5)`."""
        for group, count in self._groups(chosen, sparsity):
            weights = [weight_now(entry) for entry in group]
            known = [self._gone.get(entry.name) for entry in group]
            more = count - sum(int(gone.count_nonzero()) for gone in known if gone is not None)
            if more <= 0:
                continue
            # masked weights stay so: they are out of the comparison
            open_ = [
                w if gone is None else w.masked_fill(gone, math.inf) for w, gone in zip(weights, known, strict=True)
            ]
            found = smallest_or_refusal(self, self.steps, group, open_, more)
            for entry, weight, gone, new in zip(group, weights, known, found, strict=True):
                # in the weight's own memory order, so that masking is one pass
                own = torch.empty_like(weight, dtype=torch.bool).copy_(new)
                self._gone[entry.name] = own if gone is None else own.logical_or_(gone)
                set_zeros_(entry, self._gone[entry.name])

    def _keep(self, chosen: list[Entry]) -> None:
        for entry in chosen:
            if (gone := self._gone.get(entry.name)) is not None:
                keep_zeros_(entry, gone)

    def _reset_state(self, chosen: list[Entry]) -> None:
        """Set what the optimizer remembers of masked weights to zero, entry by entry."""
        for entry in chosen:
            gone = self._gone.get(entry.name)
            for part, where in parts_gone(entry, gone) if gone is not None else ():
                for value in self._state_of(part).values():
                    if isinstance(value, Tensor) and value.shape == part.shape and value.is_floating_point():
                        value.masked_fill_(where, 0)

    def _reset_momentum(self) -> None:
        """Set the optimizer's first moments to zero, of all its parameters."""
        for group in () if self._optimizer is None else self._optimizer.param_groups:
            for parameter in group["params"]:
                for name in MOMENTA:
                    if isinstance(value := self._state_of(parameter).get(name), Tensor):
                        value.zero_()

    def _state_of(self, parameter: Tensor) -> dict[str, Any]:
        return {} if self._optimizer is None else self._optimizer.state.get(parameter, {})

    # state

    def state_dict(self) -> dict[str, Any]:
        """Steps taken, masks, and the settings."""
        gone = {name: mask.clone() for name, mask in self._gone.items()}
        return {"steps": self.steps, "gone": gone, "settings": self.settings()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take a saved state over; ValueError when its settings are not this object's."""
        if state.get("settings") != self.settings():
            raise ValueError(f"the saved state is of {state.get('settings')}, which does not fit {self!r}")
        self._take(state["gone"])
        self.steps = int(state["steps"])

    def _take(self, gone: Mapping[str, Tensor]) -> None:
        """Take masks over, where weights are known in their memory order; ValueError when they do not fit."""
        places = self._places()
        if strangers := [name for name in gone if places and name not in places]:
            raise ValueError(
                f"the saved masks are of {strangers[:3]}, which are no weights here; weights are {list(places)[:5]}"
            )
        for name in places.keys() & gone.keys():
            if places[name].shape != gone[name].shape:
                raise ValueError(
                    f"the saved mask of {name} has the shape {tuple(gone[name].shape)}, its weight {tuple(places[name].shape)}"
                )
        self._gone = {name: laid_like(mask, places.get(name)) for name, mask in gone.items()}

    def _places(self) -> dict[str, Tensor]:
        """The weights by name; none before the lever is attached."""
        return {entry.name: entry.parameter for entry in self._chosen(self._entries)} if self._entries else {}

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in self.settings().items())})"


def takes_closure(optimizer: torch.optim.Optimizer) -> bool:
    """Whether the optimizer's step needs a closure, which it calls several times."""
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    return closure is not None and closure.default is inspect.Parameter.empty
