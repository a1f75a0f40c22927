"""How `LowPrecision` is saved, resumed and shown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from trimtab.collectives import local_part
from trimtab.parameters import Entry, Rule
from trimtab.precision.master_weights import MasterWeights
from trimtab.precision.meter import ShrinkageMeter
from trimtab.precision.operands import OperandRounding
from trimtab.precision.recipes import Recipe
from trimtab.precision.tensor_rounding import TensorRounding


class SavedRounding:
    """State of the lever: its settings, what rounding counted, the masters, what operands remember, what the meter holds."""

    rounding: TensorRounding
    formats: dict[str, Any]
    operands: OperandRounding | None
    matmul: Recipe | None
    total_steps: int | None
    master: bool
    before_reduce: bool
    momentum_keys: tuple[str, ...]
    rule: Rule
    meter: ShrinkageMeter | None
    _optimizer: torch.optim.Optimizer | None
    _chosen: list[Entry]
    _masters: MasterWeights

    def _round_weights(self, chosen: Sequence[Entry]) -> None:
        raise NotImplementedError

    def settings(self) -> dict[str, Any]:
        """What changes the result; a saved state fits only where these agree."""
        return {
            **self.rounding.settings(),
            "master": self.master,
            "before_reduce": self.before_reduce,
            "momentum_keys": list(self.momentum_keys),
            **({} if self.matmul is None else {"matmul": repr(self.matmul), "total_steps": self.total_steps}),
        }

    def state_dict(self) -> dict[str, Any]:
        """Settings, number of the step, weights (the masters; of sharded ones this rank's part), and what the meter holds."""
        weights = self._masters.state_dict()
        if "weights" in self.formats and not self.master:
            weights = {entry.name: local_part(entry.parameter.detach()).clone() for entry in self._chosen}
        meter = None if self.meter is None else self.meter.state_dict()
        kept = {"weights": weights, "meter": meter}
        if self.operands is not None:
            kept["operands"] = self.operands.state_dict()
        return {"settings": self.settings(), **self.rounding.state_dict(), **kept}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where the saved lever stood, with its weights rounded to the same numbers; ValueError where they do not fit."""
        if state.get("settings") != self.settings():
            raise ValueError(f"the saved settings {state.get('settings')} are not those of {self!r}, {self.settings()}")
        if self.operands is not None:
            self.operands.delayed.check(state.get("operands", {}))
        if self._optimizer is not None and "weights" in self.formats:
            masters = self._masters
            if not self.master:
                masters = MasterWeights()
                masters.keep(self._chosen)
            masters.load_state_dict(state["weights"])
            masters.restore(self._chosen)
        self.rounding.load_state_dict(state)
        if self.master:
            self._round_weights(self._chosen)
        self.rounding.load_state_dict(state)  # what the rounding just measured was measured before
        if self.operands is not None:
            self.operands.load_state_dict(state.get("operands", {}))
        if self.meter is not None and state["meter"] is not None:
            self.meter.load_state_dict(state["meter"])

    def __repr__(self) -> str:
        parts = self.rounding.in_words()
        if self.matmul is not None:
            parts = [*([] if not self.formats else parts), f"matmul={self.matmul.name}"]
        parts += ["master=False"] if "weights" in self.formats and not self.master else []
        parts += ["before_reduce=True"] if self.before_reduce else []
        parts.append(f"min_ndim={self.rule.min_ndim}")
        parts += [f"{name}={value!r}" for name in ("include", "exclude") if (value := getattr(self.rule, name))]
        return f"LowPrecision({', '.join(parts)})"
