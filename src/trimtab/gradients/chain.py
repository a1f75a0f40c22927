"""Chain: several levers as one, acting in the order given."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from trimtab.levers import Lever
from trimtab.parameters import Entry


class Chain:
    """Levers that act one after another: `g <- t_k(... t_2(t_1(g)))`.

    `attach(optimizer, Chain(a, b))` does what `attach(optimizer, a, b)` does; a chain is one object to build, pass on,
    save and print.

    Args:
        transforms: gradient transforms, or any other levers, in the order in which they act.

    Raises:
        TypeError: an argument is not a lever.
        ValueError: the chain is empty; (`load_state_dict`) the saved chain has other members.

    Example:
        >>> import torch, trimtab
        >>> chain = Chain(trimtab.gradients.Centralize(), trimtab.gradients.ClipNorm(1.0))
        >>> net = torch.nn.Linear(3, 2)
        >>> handle = trimtab.attach(torch.optim.SGD(net.parameters(), lr=0.1), chain)
    """

    def __init__(self, *transforms: Lever) -> None:
        if not transforms:
            raise ValueError("Chain needs at least one transform")
        for position, transform in enumerate(transforms):
            if isinstance(transform, type) or not isinstance(transform, Lever):
                raise TypeError(f"item {position} of Chain ({transform!r}) is not a lever")
        self.transforms = transforms

    def before_step(self, parameters: Sequence[Entry]) -> None:
        """Let every transform act, in order."""
        for transform in self.transforms:
            transform.before_step(parameters)

    def signals(self) -> dict[str, Tensor]:
        """The signals of all members; one whose name is taken is called by its type and place, `ClipNorm1.norm`."""
        merged: dict[str, Tensor] = {}
        for position, transform in enumerate(self.transforms):
            for name, value in getattr(transform, "signals", dict)().items():
                merged[f"{type(transform).__name__}{position}.{name}" if name in merged else name] = value
        return merged

    def state_dict(self) -> dict[str, Any]:
        """The state of every member, in order."""
        return {
            "transforms": [{"type": type(item).__name__, "state": item.state_dict()} for item in self.transforms],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore every member; ValueError when the saved ones differ in number or type."""
        saved = [item["type"] for item in state.get("transforms", [])]
        present = [type(transform).__name__ for transform in self.transforms]
        if saved != present:
            raise ValueError(f"the saved chain is {saved}, this one {present}; build it with the same members in order")
        for transform, item in zip(self.transforms, state["transforms"], strict=True):
            transform.load_state_dict(item["state"])

    def __repr__(self) -> str:
        return f"Chain({', '.join(map(repr, self.transforms))})"
