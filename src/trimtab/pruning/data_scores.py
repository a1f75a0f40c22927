"""Scores that are computed from calibration data."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor, nn

from trimtab.parameters import Entry
from trimtab.pruning.calibration import Calibration


class DataScore(ABC):
    """A score that looks at data as well as at weights; `one_shot` and `sweep` take one as `score`.

    Attributes:
        scope: where its scores are compared unless `one_shot` is told otherwise.
        propagate: whether a layer's inputs come from layers that are already pruned.
        by: the steps of that: "layer" or "block".
        calibration: the data.
    """

    scope: ClassVar[str] = "global"
    propagate: bool = False
    by: str = "block"
    calibration: Calibration

    @abstractmethod
    def reason_against(self, entry: Entry) -> str | None:
        """Why this score cannot tell anything of the entry, or None."""

    @abstractmethod
    def of(self, model: nn.Module, chosen: Sequence[Entry], *, early: bool = False) -> list[Tensor]:
        """A score of each weight's shape; the model is left as it was.

        Args:
            model: the network.
            chosen: the weights.
            early: whether a batch's pass may end where the last of them was reached.
        """

    def settings(self) -> dict[str, object]:
        """What changes the scores, for `repr`."""
        return {}

    def __repr__(self) -> str:
        told = ", ".join(f"{name}={value!r}" for name, value in self.settings().items())
        return f"{type(self).__name__}({told})"
