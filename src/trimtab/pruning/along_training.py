"""What levers share that change weights while the network trains: which ones, masks that hold, state, values behind masks."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from trimtab.levers import refuse_state_elsewhere, takes_closure
from trimtab.parameters import Entry, Judged, Rule, rule_or
from trimtab.parameters.zeros import TRAINED_WEIGHTS, keep_zeros_, parts_gone
from trimtab.pruning.masks import Pairs
from trimtab.sparse import refuse_sparse
from trimtab.tensors.passes import refuse_sharded
from trimtab.tensors.zeros import laid_like, weights_or_refusal


def of_run(fraction: float, total_steps: int) -> int:
    """The step at that fraction of a run, rounded to the nearest.

    Example:
        >>> of_run(0.75, 10)
        8
    """
    return math.floor(fraction * total_steps + 0.5)


class AlongTraining(ABC):
    """Masks weights while the network trains; subclasses say after which steps, and which ones.

    Masked weights get no gradient and are zero after every step. A step that `GradScaler` skips does not count, micro-batches
    that are accumulated are one step. SAM, ASAM and CrAM on the same optimizer perturb the kept weights only.

    Where `behind` is true, parameters show other values to the network than those that are trained: before the optimizer's
    step the trained ones are put in their place, after it what is to be shown. So gradients are those at the shown weights
    (straight through), and nothing is added to the module.

    Args:
        rule: which weights take part. Default: what `one_shot` prunes and the optimizer trains.

    Attributes:
        steps: steps taken.
        left_out: the parameters that take no part, each with the reason.
    """

    one_optimizer = "its masks are of one optimizer's parameters; make one for each optimizer"
    needs_recalibration = False
    default_rule = TRAINED_WEIGHTS
    behind = False
    resets_state = False
    """Whether what the optimizer remembers of masked weights is set to zero."""

    def __init__(self, rule: Rule | None) -> None:
        self.rule = rule_or(rule, TRAINED_WEIGHTS)
        self.steps = 0
        self.left_out: list[tuple[Entry, str]] = []
        self._gone: dict[str, Tensor] = {}
        self._dense: dict[str, Tensor] = {}
        """Where `behind`: the trained values of the weights that show others."""
        self._judged: Judged[list[Entry]] = Judged()
        self._optimizer: torch.optim.Optimizer | None = None
        self._entries: Sequence[Entry] = ()
        self._last_size = 0
        """Elements of the chosen weights when the lever was let go."""

    # what subclasses say

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """What decides when and how much; a saved state fits only where these agree."""

    @abstractmethod
    def _act(self, chosen: list[Entry]) -> None:
        """Change the masks where `steps` steps taken ask for it."""

    def _on_gradients(self, chosen: list[Entry]) -> None:  # noqa: B027
        """Where `behind`: change the gradients, once the trained values are in their place."""

    def _due_at_start(self) -> bool:
        return False

    def _reason_against(self, entry: Entry) -> str | None:
        """Why a weight that can hold zeros takes no part all the same."""
        if self.behind and entry.computed is not None:
            return "computed from other parameters: no values behind a mask"
        return None

    # what a handle calls

    def bind(self, optimizer: torch.optim.Optimizer, model: nn.Module | None, parameters: Sequence[Entry]) -> None:
        """Know the optimizer, and act at the start of training where something is due; called by `trimtab.attach`.

        Raises:
            ValueError: sharded weights, no weight to act on, values behind masks with an optimizer that needs a closure, or
                state to be reset that lies on other ranks.
        """
        if self.behind and takes_closure(optimizer):
            raise ValueError(
                f"{self!r} cannot put the weights behind the mask back inside a step of {type(optimizer).__name__}, which "
                "moves them while it evaluates its closure"
            )
        refuse_sharded(f"{type(self).__name__} selects over", parameters)
        if self.resets_state:
            refuse_state_elsewhere(f"{type(self).__name__} resets", optimizer)
        self._optimizer, self._entries = optimizer, parameters
        if self._gone:  # of a state that was loaded before
            self._take(self._gone)
        if not any(is_lazy(entry.parameter) for entry in parameters):
            self._chosen(parameters)  # what does not fit is said now, not after the first step
        if self.steps == 0 and self._due_at_start():
            with torch.no_grad():
                self._act(self._chosen(parameters))

    def unbind(self) -> None:
        """Let the optimizer go; called by `Handle.remove`. What the lever tells of itself stays."""
        self._last_size = self._size()
        self._optimizer, self._entries = None, ()

    @torch.no_grad()
    def before_step(self, parameters: Sequence[Entry]) -> None:
        """Set the gradients of masked weights to zero; where `behind`, put the trained values back; called by `attach`.

        Raises:
            TypeError: a gradient is sparse.
        """
        chosen = self._dense_ones(parameters)
        if self.behind:
            self._to_dense(chosen)
            self._on_gradients(chosen)
        else:
            self._mask_gradients(chosen)

    def _mask_gradients(self, chosen: list[Entry]) -> None:
        for entry in chosen:
            gone = self._gone.get(entry.name)
            for part, where in parts_gone(entry, gone) if gone is not None else ():
                if part.grad is not None:
                    part.grad.masked_fill_(where, 0)

    def _to_dense(self, chosen: list[Entry]) -> None:
        """Put the trained values in the place of the shown ones."""
        for entry in chosen:
            if (dense := self._dense.get(entry.name)) is not None:
                weight = entry.parameter
                weight.copy_(torch.where(self._gone[entry.name], dense, weight))

    @torch.no_grad()
    def after_step(self, parameters: Sequence[Entry]) -> None:
        """Hold the masks, count the step, and change them where it is time; called by `trimtab.attach`."""
        chosen = self._chosen(parameters)
        self.steps += 1
        self._entries = parameters
        self._keep(chosen)
        self._act(chosen)

    def removed(self) -> Pairs:
        """Each masked parameter with a bool tensor that is True where its weights are gone; none where these are trained."""
        return [] if self.behind else self._pairs()

    def _pairs(self) -> Pairs:
        chosen = self._chosen(self._entries) if self._gone and self._entries else []
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
        elements = self._size()
        return self._zeros() / elements if elements else 0.0

    def _size(self) -> int:
        """Elements of the chosen weights, where any is masked."""
        if not (self._gone and self._entries):
            return self._last_size if self._gone else 0
        return sum(entry.parameter.numel() for entry in self._chosen(self._entries))

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
        found, self.left_out = weights_or_refusal(self, parameters, self.rule)
        judged = [(entry, self._reason_against(entry)) for entry in found]
        self.left_out += [(entry, reason) for entry, reason in judged if reason is not None]
        chosen = [entry for entry, reason in judged if reason is None]
        if not chosen:
            reasons = "; ".join(f"{entry.name}: {reason}" for entry, reason in self.left_out[-3:])
            raise ValueError(f"{self!r} finds nothing to act on ({reasons})")
        for entry in chosen:
            gone = self._gone.get(entry.name)
            if gone is not None and gone.shape != entry.parameter.shape:
                raise ValueError(
                    f"{entry.name} has the shape {tuple(entry.parameter.shape)}, its mask {tuple(gone.shape)}: it was replaced "
                    "since it was pruned"
                )
        return chosen

    def _without_first(self, chosen: list[Entry], kept: str) -> list[Entry]:
        """The chosen ones but the network's first layer, which is left `kept`; ValueError where there is no other."""
        first = min(chosen, key=lambda entry: entry.places[0])
        self.left_out.append((first, f"first layer, left {kept} (first_layer)"))
        if len(chosen) == 1:
            raise ValueError(f"{self!r} finds no weight beside the first layer {first.name}, which is left {kept}")
        return [entry for entry in chosen if entry is not first]

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

    def _state_of(self, parameter: Tensor) -> dict[str, Any]:
        return {} if self._optimizer is None else self._optimizer.state.get(parameter, {})

    # state

    def state_dict(self) -> dict[str, Any]:
        """Steps taken, masks, the settings, and the trained values where others are shown."""
        gone, dense = ({name: kept.clone() for name, kept in of.items()} for of in (self._gone, self._dense))
        behind = {"dense": dense} if self.behind else {}
        return {"steps": self.steps, "gone": gone, "settings": self.settings(), **behind}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take a saved state over; ValueError when its settings are not this object's."""
        if state.get("settings") != self.settings():
            raise ValueError(f"the saved state is of {state.get('settings')}, which does not fit {self!r}")
        self._take(state["gone"])
        self._dense = self._laid(state.get("dense", {}))
        self.steps = int(state["steps"])

    def _laid(self, saved: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Copies in the memory order and on the devices of the weights of these names."""
        places = self._places()
        return {name: laid_like(kept, places.get(name)) for name, kept in saved.items()}

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
        self._gone = self._laid(gone)

    def _places(self) -> dict[str, Tensor]:
        """The weights by name; none before the lever is attached."""
        return {entry.name: entry.parameter for entry in self._chosen(self._entries)} if self._entries else {}

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in self.settings().items())})"
