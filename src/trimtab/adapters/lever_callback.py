"""What the callbacks share: levers attached while the loop trains, their state, pruning when it has ended."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from trimtab.levers import Handle, Lever, attach
from trimtab.observe import GradientTracker
from trimtab.pruning import KeepMasks, Pruned, one_shot
from trimtab.pruning.recalibration import has_batch_norm
from trimtab.pruning.selection_plan import SelectionPlan


class LeverCallback:
    """Levers, a tracker and one-shot pruning for a loop that somebody else owns.

    Args:
        levers: one lever or several, in the order in which they act.
        tracker: attached before the levers, so it sees the gradients that they get; watches what they signal; flushed at
            the end. To record what the levers leave, put a tracker among them instead.
        prune: sparsity to prune to when training has ended, or the settings of `trimtab.pruning.one_shot` as a dict,
            such as `{"pattern": "2:4"}`. They are checked against the model when training starts.
        masks: zeros to keep: masks by name (`Pruned.masks`), or "zeros" for those that the model has when training starts. They
            act behind the levers, as `trimtab.pruning.KeepMasks`.

    Attributes:
        handle: what `trimtab.attach` returned, None before training.
        pruned: what `one_shot` returned, None before the end and when `prune` is None.

    Raises:
        TypeError: a lever is none, or `prune` holds a setting that `one_shot` does not have.
        ValueError: nothing is given; (when training starts) `prune` does not fit the model.
    """

    may_be_empty = False

    def __init__(
        self,
        levers: Lever | Sequence[Lever] = (),
        tracker: GradientTracker | None = None,
        prune: float | Mapping[str, Any] | None = None,
        masks: Mapping[str, Tensor] | Literal["zeros"] | None = None,
    ) -> None:
        if isinstance(masks, str) and masks != "zeros":
            raise ValueError(f"masks must be masks by name, or 'zeros', got {masks!r}")
        self.levers = (levers,) if isinstance(levers, Lever) else tuple(levers)
        if masks is not None:
            self.levers += (KeepMasks(None if isinstance(masks, str) else masks),)
        self.tracker = tracker
        self.empty = not (self.levers or tracker is not None or prune is not None)
        if self.empty and not self.may_be_empty:
            raise ValueError("TrimtabCallback has nothing to do: give levers, tracker, prune or masks")
        if tracker is not None and self.levers:
            tracker.watch(self.levers)
        self.prune = {"sparsity": prune} if prune is not None and not isinstance(prune, Mapping) else prune
        inspect.signature(one_shot).bind(None, **(self.prune or {}))
        self.handle: Handle | None = None
        self.pruned: Pruned | None = None
        self._saved: dict[str, Any] = {}

    def state_dict(self) -> dict[str, Any]:
        """State of the tracker and of every lever; empty before the first training."""
        return self._saved or ({} if self.handle is None else self.handle.state_dict())

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Keep a saved state until the levers are attached; ValueError then when it is of other levers."""
        self._saved = state

    def _start(
        self, optimizer: torch.optim.Optimizer | Sequence[torch.optim.Optimizer], model: nn.Module, clips: str | None
    ) -> None:
        """Attach to `optimizer`, or to several as one; `clips` names the loop's own clipping where it is on."""
        self._stop()
        if self.prune is not None:
            call = inspect.signature(one_shot).bind(model, **self.prune)
            call.apply_defaults()
            settings = dict(call.arguments)
            sparsity = settings.pop("sparsity")
            SelectionPlan(settings.pop("model"), **settings).check_sparsity(sparsity)
        chain = self.levers if self.tracker is None else (self.tracker, *self.levers)
        if chain and clips:
            warnings.warn(
                f"{clips} clips the gradients before the levers get them; to clip last, turn it off and give "
                "trimtab.gradients.ClipNorm as the last lever",
                stacklevel=2,
            )
        self.handle = attach(optimizer, *chain, model=model)
        if self._saved:
            self.handle.load_state_dict(self._saved)
            self._saved = {}

    def _stop(self) -> None:
        """Detach; trackers flush."""
        if self.handle is not None:
            self.handle.remove()

    def _finish(self, model: nn.Module) -> None:
        """Training has come to its end: the levers do what they do last, leave, and the model is pruned."""
        if self.handle is not None and self.handle.finish() and has_batch_norm(model):
            warnings.warn(
                "the levers changed the weights at the end of training, so BatchNorm statistics no longer fit: call "
                "trimtab.pruning.recalibrate(model, loader) with training batches",
                stacklevel=2,
            )
        self._stop()
        self._prune(model)

    def _prune(self, model: nn.Module) -> None:
        if self.prune is not None:
            self.pruned = one_shot(model, **self.prune)
