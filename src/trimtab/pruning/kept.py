"""Keep pruned weights at zero while training goes on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from trimtab.levers import Handle, attach
from trimtab.parameters import Entry
from trimtab.parameters.zeros import TRAINED_WEIGHTS
from trimtab.pruning.masks import Pairs, zeroing
from trimtab.pruning.own_zeros import masks_of


class KeepMasks:
    """A lever that sets masked weights to zero after every step; momentum would revive them otherwise.

    A weight under `weight_norm` is kept at zero through its parts, for which the model is needed. Masks that no longer fit are
    said in a warning: weights under a mask that are not zero when it is put on, and (where the model is known) a parameter that
    was replaced in it later, whose mask ends then.

    For `attach`, and among the levers of a callback for the Hugging Face Trainer or Lightning. SAM, ASAM and CrAM on the same
    optimizer perturb the kept weights only.

    Args:
        masks: per parameter name a bool tensor, True where the weight stays (`Pruned.masks`). Default: the zeros that the
            weights have when it is attached (`masks_of`), for a sparse network that came as a file.

    Raises:
        ValueError: (at attach) no masks are given and no weight holds a zero; masks name no parameter of the optimizer (each is
            listed), or a mask has another shape, or is of a sharded parameter (DTensor).
        TypeError: (at attach) a mask is not a bool tensor.

    Example:
        >>> import trimtab
        >>> from trimtab.pruning import one_shot
        >>> net = nn.Linear(4, 1)
        >>> optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
        >>> handle = trimtab.attach(optimizer, KeepMasks(one_shot(net, 0.5).masks), model=net)
        >>> net(torch.ones(1, 4)).sum().backward()
        >>> optimizer.step()
        >>> int((net.weight == 0).sum())
        2
    """

    one_optimizer = "its masks are of one optimizer's parameters; make one for each optimizer, with its masks"

    def __init__(self, masks: Mapping[str, Tensor] | None = None) -> None:
        self.masks = dict(masks or {})
        self._own = masks is None
        self._bound: tuple[torch.optim.Optimizer, nn.Module | None] | None = None
        self._zero: Callable[[], None] | None = None
        self._removed: Callable[[], Pairs] = list

    def bind(self, optimizer: torch.optim.Optimizer, model: nn.Module | None, parameters: Sequence[Entry]) -> None:
        """Find the masks' parameters, or the masks in the parameters; called by `trimtab.attach`."""
        if self._own:
            self.masks, self._own = masks_of(parameters, TRAINED_WEIGHTS), False
        self._zero, self._removed = zeroing(optimizer, self.masks, model)
        self._bound = (optimizer, model)

    def unbind(self) -> None:
        """Let the parameters go; called by `Handle.remove`."""
        self._bound = self._zero = None
        self._removed = list

    def before_step(self, parameters: Sequence[Entry]) -> None:
        """Nothing."""

    @torch.no_grad()
    def after_step(self, parameters: Sequence[Entry]) -> None:
        """Set the masked weights to zero; called by `trimtab.attach`."""
        if self._zero is not None:
            self._zero()

    def removed(self) -> Pairs:
        """Each masked parameter with a bool tensor that is True where its weights are gone; empty when not attached."""
        return self._removed()

    def state_dict(self) -> dict[str, Any]:
        """The masks."""
        return {"masks": {name: mask.clone() for name, mask in self.masks.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take saved masks over; ValueError or TypeError when they do not fit."""
        given, before = dict(state["masks"]), self.masks
        try:
            self.masks, self._own = given, False
            if self._bound is not None:
                self._zero, self._removed = zeroing(self._bound[0], given, self._bound[1])
        except BaseException:
            self.masks = before
            raise

    def __repr__(self) -> str:
        kept = sum(int(mask.sum()) for mask in self.masks.values())
        return f"KeepMasks({kept} of {sum(mask.numel() for mask in self.masks.values())} weights in {len(self.masks)} tensors)"


def keep_masks(optimizer: torch.optim.Optimizer, masks: Mapping[str, Tensor], model: nn.Module | None = None) -> Handle:
    """Set masked weights to zero after every step of `optimizer`: `attach(optimizer, KeepMasks(masks), model=model)`.

    Args:
        optimizer: any optimizer, or a wrapper (Trimtab's, accelerate's, ...).
        masks: per parameter name a bool tensor, True where the weight stays (`Pruned.masks`).
        model: gives the optimizer's parameters their names; not needed when the optimizer was built from
            `model.named_parameters()`.

    Returns:
        A handle whose `remove()` ends it.

    Raises:
        ValueError, TypeError: as `KeepMasks`.

    Example:
        >>> from trimtab.pruning import one_shot
        >>> net = nn.Linear(4, 1)
        >>> optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
        >>> handle = keep_masks(optimizer, one_shot(net, 0.5).masks, net)
    """
    return attach(optimizer, KeepMasks(masks), model=model)
