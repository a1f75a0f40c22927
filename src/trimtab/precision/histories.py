"""Delayed scaling of the factors of products: one history for each factor of each layer, one entry a step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from trimtab.checks import whole
from trimtab.collectives import max_over_ranks
from trimtab.inexact import recomputing
from trimtab.precision.delayed import Delayed
from trimtab.precision.format import Format
from trimtab.precision.recipes import FACTORS, Recipe
from trimtab.precision.scaling import PerTensor, absmax


@dataclass(frozen=True, eq=False, repr=False)
class Known(PerTensor):
    """One scale for the tensor, for a largest magnitude that is known, shape (1, 1); beyond it entries saturate."""

    largest: Tensor = field(kw_only=True)

    @property
    def overflows(self) -> bool:
        """Entries that have grown saturate."""
        return True

    def of_tensor(self, x: Tensor, format: Format) -> Tensor:
        """The magnitude."""
        return self.largest


class Magnitudes:
    """The largest magnitudes of many tensors over the steps: what delayed scaling remembers of the operands of products.

    An entry of the history is the largest magnitude that a tensor had in a step: in all its calls, micro-batches and ranks
    [ours: TransformerEngine makes an entry of each micro-batch]. So a pass that activation checkpointing computes again adds
    nothing, and within a step all passes have the same scale. A step in which a tensor did not come, or was not finite, is no
    entry.

    Args:
        keys: of the tensors; the same, in the same order, on every rank.
        history: entries that are kept.

    Example:
        >>> seen = Magnitudes(["w"], 2)
        >>> for step in (3.0, 5.0):
        ...     seen.see("w", torch.tensor([step]))
        ...     seen.end_step()
        >>> seen.of("w")
        tensor([3., 5.])
    """

    def __init__(self, keys: Sequence[str], history: int) -> None:
        self.history = whole("history", history, 1)
        self._place = {key: place for place, key in enumerate(keys)}
        self._seen = torch.zeros(len(keys), history)
        self._now = torch.full((len(keys),), -1.0)
        self.entries = 0

    @property
    def keys(self) -> list[str]:
        """Of the tensors, in order."""
        return list(self._place)

    def of(self, key: str) -> Tensor:
        """The magnitudes of the steps before, oldest first, zeros where there were none."""
        return self._seen[self._place[key]]

    def see(self, key: str, own: Tensor) -> None:
        """Take in a magnitude of this step, shape (1,)."""
        if self._seen.device != own.device:
            self._seen, self._now = self._seen.to(own.device), self._now.to(own.device)
        place = self._place[key]
        here = self._now[place : place + 1]
        torch.maximum(here, torch.where(own.isfinite(), own, -1.0), out=here)

    def forget(self) -> None:
        """Let go what came in this step, which was not taken."""
        self._now.fill_(-1.0)

    def end_step(self) -> None:
        """Make this step's an entry, over all ranks; every rank calls this in the same steps."""
        now = max_over_ranks(self._now)[:, None]
        self._seen = torch.where(now >= 0, torch.cat([self._seen[:, 1:], now], 1), self._seen)
        self.forget()
        self.entries += 1

    def state_dict(self) -> dict[str, Any]:
        """The magnitudes remembered, of whole steps and of the one that is under way."""
        last = min(self.entries, self.history)
        seen = self._seen[:, self.history - last :].cpu()
        return {"keys": self.keys, "seen": seen.clone(), "now": self._now.cpu().clone(), "entries": self.entries}

    def check(self, state: Mapping[str, Any]) -> Tensor:
        """The saved histories; ValueError where they are of other tensors or of a longer history."""
        seen = torch.as_tensor(state["seen"], dtype=torch.float32)
        if list(state["keys"]) != self.keys:
            other = sorted(set(state["keys"]) ^ set(self.keys))
            raise ValueError(f"the saved magnitudes are of other operands than those here; they differ in {other[:4]}")
        if seen.shape[1] > self.history:
            raise ValueError(f"saved magnitudes are of {seen.shape[1]} steps, the history here holds {self.history}")
        return seen

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with those; ValueError where they do not fit."""
        seen = self.check(state)
        self._seen = torch.zeros(len(seen), self.history)
        self._seen[:, self.history - seen.shape[1] :] = seen
        self._now = torch.as_tensor(state["now"], dtype=torch.float32).clone()
        self.entries = int(state["entries"])


class DelayedScales:
    """The scalings of those factors that a recipe scales by the steps before.

    Args:
        recipe: which these are.
        standing: whether gradients stand that a backward pass would add to. Where none do, what earlier passes of the step
            saw belongs to a step that was not taken, and is let go.

    Attributes:
        magnitudes: what is remembered, where there are such factors and layers are known.
    """

    def __init__(self, recipe: Recipe, standing: Callable[[], bool]) -> None:
        self.recipe, self._standing = recipe, standing
        self._by_place = {
            (product, place): operand.scaling
            for product, factors in FACTORS.items()
            for place in range(len(factors))
            if (operand := recipe[product][place]) is not None and isinstance(operand.scaling, Delayed)
        }
        self.magnitudes: Magnitudes | None = None
        self._saved: Mapping[str, Any] | None = None
        self._went_back = False

    @property
    def delays(self) -> bool:
        """Whether the recipe has such factors."""
        return bool(self._by_place)

    def begin(self, layers: Sequence[str]) -> None:
        """Remember the factors of these layers; ValueError where a state that was loaded is of others."""
        if self._by_place:
            factors = dict.fromkeys(self._key(layer, *place) for layer in layers for place in self._by_place)
            own = Magnitudes(list(factors), max(each.history for each in self._by_place.values()))
            if self._saved is not None:
                own.load_state_dict(self._saved)
            elif self.magnitudes is not None and self.magnitudes.keys == own.keys:  # attached to the same layers again
                own = self.magnitudes
            self.magnitudes, self._saved = own, None

    def _key(self, layer: str, product: str, place: int) -> str:
        """Whose magnitudes: a factor is the same in two products, unless one of them turns it."""
        turned = "" if self.recipe[product].hadamard is None else f", turned for {product}"
        return f"{FACTORS[product][place]} of {layer}{turned}"

    def scaling(self, matrix: Tensor, product: str, place: int, layer: str, *, training: bool) -> Known | None:
        """The scaling of a factor, which is remembered when it trains; None where the recipe does not delay it."""
        delayed = self._by_place.get((product, place))
        if delayed is None:
            return None
        assert self.magnitudes is not None
        if training and self._went_back and product == "fprop" and not recomputing():
            self._went_back = False
            if not self._standing():
                self.magnitudes.forget()
        own, key = absmax(matrix.detach().reshape(1, -1)).float().view(1), self._key(layer, product, place)
        used = delayed.magnitude(self.magnitudes.of(key).to(own.device), own) + (own - own)  # what is not finite shows
        if training:
            self._went_back |= product != "fprop"
            self.magnitudes.see(key, own)
        return Known(largest=used, rule=delayed.rule)

    def end_step(self) -> None:
        """Make what this step's factors were an entry of the histories; every rank calls this in the same steps."""
        self._went_back = False
        if self.magnitudes is not None:
            self.magnitudes.end_step()

    def state_dict(self) -> dict[str, Any]:
        """What is remembered."""
        found = self._saved if self.magnitudes is None else self.magnitudes.state_dict()
        return {} if found is None else {"magnitudes": found}

    def check(self, state: Mapping[str, Any]) -> None:
        """ValueError where magnitudes are of other layers."""
        if self.magnitudes is not None and "magnitudes" in state:
            self.magnitudes.check(state["magnitudes"])

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with what was remembered; ValueError where it is of other layers."""
        self._went_back, saved = False, state.get("magnitudes")
        if self.magnitudes is None:
            self._saved = saved
        elif saved is not None:
            self.magnitudes.load_state_dict(saved)
