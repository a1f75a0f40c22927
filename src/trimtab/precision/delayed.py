"""Delayed scaling: the scale comes from magnitudes of the steps before, so that one pass over the tensor is enough."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from trimtab.checks import one_of, whole
from trimtab.precision.format import Format
from trimtab.precision.scaling import PerTensor, absmax

Choice = Literal["max", "most_recent"]


@dataclass(frozen=True, eq=False, repr=False)
class Delayed(PerTensor):
    """One scale for the tensor, from the largest magnitudes that it had in the calls before (the older FP8 recipe).

    With A_1, A_2, ... the largest magnitudes of the last `history` tensors,

        s = 2^margin max_i A_i / max        or, by `choice="most_recent"`,        s = 2^margin A_last / max

    and what has grown since beyond the range saturates. The first tensor, and one after zeros alone, has its own [ours].
    Magnitudes that are not finite are not remembered, nor is a tensor that overflow="raise" refuses, and a NaN stays by
    itself. To ask for `scales` changes nothing.

    An object with a memory: one for each tensor that is rounded over and over, such as the weight of one layer. Its
    `state_dict` goes into the checkpoint. In an `Operand` it says history, margin and choice alone: `LowPrecision` keeps the
    memory of each factor of each layer, with one entry a step (`fp8-delayed`).

    Args:
        history: how many are remembered, default 1024 (TransformerEngine's).
        margin: default 0.
        choice: "max" (default) or "most_recent".

    Example:
        >>> from trimtab.precision import quantize
        >>> scaling = Delayed(history=2)
        >>> [quantize(torch.tensor([x]), "e2m1", scaling=scaling).item() for x in (6.0, 12.0, 12.0)]
        [6.0, 6.0, 12.0]
    """

    history: int = 1024
    margin: int = field(default=0, kw_only=True)
    choice: Choice = field(default="max", kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        whole("history of delayed scaling", self.history, 1)
        whole("margin of delayed scaling", self.margin)
        one_of("choice", self.choice, get_args(Choice))
        if self.rule not in ("absmax", "power_of_two"):
            raise ValueError(f"delayed scaling has the rules absmax and power_of_two, got {self.rule!r}")
        object.__setattr__(self, "_seen", torch.empty(0))

    def __repr__(self) -> str:
        return f"Delayed(rule={self.rule!r}, history={self.history}, margin={self.margin}, choice={self.choice!r})"

    @property
    def overflows(self) -> bool:
        """Entries that have grown saturate."""
        return True

    @property
    def biases(self) -> str | None:
        """What is not biased."""
        return "PerTensor() scales by the tensor itself"

    @property
    def seen(self) -> Tensor:
        """The magnitudes remembered, oldest first."""
        found: Tensor = self._seen  # type: ignore[attr-defined]
        return found

    def of_tensor(self, x: Tensor, format: Format) -> Tensor:
        """The magnitude that the scale is made for."""
        own = absmax(x.reshape(1, -1)).float()
        object.__setattr__(self, "_own", own.view(1))  # for `remember`, so that there is one pass
        return self.magnitude(self.seen.to(own.device), own)

    def magnitude(self, seen: Tensor, own: Tensor) -> Tensor:
        """What the scale is made for, shape (1, 1): from the magnitudes of the calls before, or the tensor's own."""
        last = seen[-self.history :]
        used = own if not last.numel() else (last[-1:] if self.choice == "most_recent" else last.amax().view(1))
        return torch.where(used > 0, used, own.view(1)).view(1, 1) * 2.0**self.margin

    def remember(self, x: Tensor, whole: Tensor | None) -> None:
        """Keep the magnitude of x, which `of_tensor` has just seen, for the next call."""
        own: Tensor = self._own  # type: ignore[attr-defined]
        seen = self.seen.to(own.device)
        finite = torch.where(own.isfinite(), own, seen[-1:] if seen.numel() else torch.zeros_like(own))
        object.__setattr__(self, "_seen", torch.cat([seen, finite])[-self.history :])
        object.__setattr__(self, "_used", whole)

    def of_last(self, x: Tensor, format: Format) -> Tensor:
        """The magnitude that the scale was last made for; x's own before the first."""
        found: Tensor | None = getattr(self, "_used", None)
        return self.of_tensor(x, format) if found is None else found.to(x.device)

    def state_dict(self) -> dict[str, Any]:
        """The magnitudes remembered."""
        return {"seen": self.seen.clone()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with those; ValueError where there are more than `history`."""
        seen = torch.as_tensor(state["seen"], dtype=torch.float32)
        if seen.ndim != 1 or len(seen) > self.history:
            raise ValueError(
                f"saved magnitudes must be a line of at most {self.history}, got shape {tuple(seen.shape)}"
            )
        object.__setattr__(self, "_seen", seen.clone())
