"""How a guard judges: loss, gradients and weights of a step against what they usually are, on all ranks alike."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from trimtab.collectives import is_distributed, local_part
from trimtab.levers import numbers_of
from trimtab.optimizers.alarm import Alarm, apart, dead, spike
from trimtab.optimizers.usual import Usual
from trimtab.parameters import Entry
from trimtab.tensors.norms import each_norm

APART = 1e-6
"""Relative difference of the norm of replicated weights from which ranks have gone apart [ours]."""
Action = Callable[[str], tuple[str, int | None]]


class Judging:
    """What is usual so far, and the alarms that followed.

    Args:
        kinds: what is judged: some of "loss", "gradient", "update", "dead", "ranks".
        usual: makes the memory of a number; told whether its logarithm counts.
        dead_after: steps of a gradient of zero.

    Attributes:
        alarms: in order.
        listeners: called with every alarm.
        signals: z of what was judged in this step.
    """

    def __init__(self, kinds: Sequence[str], usual: Callable[..., Usual], dead_after: int) -> None:
        self.kinds, self.dead_after = kinds, dead_after
        self._new = usual
        self.alarms: list[Alarm] = []
        self.listeners: list[Callable[[Alarm], object]] = []
        self.signals: dict[str, float] = {}
        self._usual: dict[str, Usual] = {}
        self._zeros: dict[str, int] = {}
        """Steps in a row in which a tensor's gradient was zero everywhere; only of those whose gradient once was not."""
        self._apart = False
        self._said: set[str] = set()

    def read(self, parameters: Sequence[Entry], loss: Any, at: int) -> dict[str, float]:
        """Joint norm of the gradients and loss, means over the ranks; one wait for the device, one collective."""
        given = [(entry, entry.parameter.grad) for entry in parameters if entry.parameter.grad is not None]
        found: dict[str, float] = {}
        if ("gradient" in self.kinds or "dead" in self.kinds) and given:
            gradients = [gradient for _, gradient in given]
            norms = each_norm([numbers_of(gradient) for gradient in gradients], gradients)
            if isinstance(loss, Tensor):
                *each, loss = torch.cat([norms, loss.reshape(1).to(norms)]).tolist()
            else:
                each = norms.tolist()
            if "gradient" in self.kinds:
                sound = all(map(math.isfinite, each))
                found["gradient"] = math.sqrt(math.fsum(value * value for value in each)) if sound else math.nan
            if "dead" in self.kinds:
                self._look_for_dead([entry.name for entry, _ in given], each, at)
        if loss is not None and "loss" in self.kinds:
            found["loss"] = float(loss)
        if is_distributed() and found:
            row = torch.tensor(list(found.values()), dtype=torch.float64)
            row = row.to(local_part(parameters[0].parameter).device)
            dist.all_reduce(row)
            found = dict(zip(found, (row / dist.get_world_size()).tolist(), strict=True))
        return found

    def moved(
        self, places: Sequence[Tensor], before: Sequence[Tensor], owners: Sequence[Tensor]
    ) -> tuple[float, float]:
        """Norms of the weights' change and of the weights before it; one wait for the device."""
        changes = torch._foreach_add(list(places), list(before), alpha=-1)
        norms = [each_norm([numbers_of(one) for one in of], owners).square().sum().sqrt() for of in (changes, before)]
        update, weight = torch.stack(norms).tolist()
        return update, weight

    def judge(self, kind: str, value: float, at: int, action: Action) -> Alarm | None:
        """Learn from a value; an alarm where it is far above usual.

        Args:
            kind: what it is.
            value: of this step.
            at: the step.
            action: says what is done about this kind, and to which step the run goes back.
        """
        usual = self._usual.setdefault(kind, self._new(logarithm=kind != "loss"))
        if not math.isfinite(value) and not usual.count:
            if kind == "loss":
                raise FloatingPointError(f"the loss is {value} at the first step; look at data and learning rate")
            return None
        z, was = usual.z(value), usual.value if usual.count else 0.0
        usual.learn(value)
        self.signals[f"{kind}_z"] = z
        return self._tell(spike(at, kind, value, was, z, *action(kind))) if z > usual.threshold else None

    def _look_for_dead(self, names: Sequence[str], norms: Sequence[float], at: int) -> None:
        for name, norm in zip(names, norms, strict=True):
            if norm:
                self._zeros[name] = 0
            elif name in self._zeros:
                self._zeros[name] += 1
                if self._zeros[name] == self.dead_after:
                    self._tell(dead(at, name, self.dead_after))

    def compare_ranks(self, weight: float, device: torch.device, at: int) -> None:
        """An alarm when the norm of the weights differs between the ranks, and did not in the step before; one collective."""
        if "ranks" not in self.kinds or not is_distributed():
            return
        ends = torch.tensor([weight, -weight], dtype=torch.float64, device=device)
        dist.all_reduce(ends, dist.ReduceOp.MAX)
        most, least = ends[0].item(), -ends[1].item()
        differ = not most - least <= APART * abs(most)
        if differ and not self._apart:
            self._tell(apart(at, most - least))
        self._apart = differ

    def _tell(self, alarm: Alarm) -> Alarm:
        self.alarms.append(alarm)
        if alarm.kind not in self._said:
            self._said.add(alarm.kind)
            warnings.warn(f"{alarm} (of each kind the first is said; SpikeGuard.alarms has all)", stacklevel=2)
        for listener in list(self.listeners):
            listener(alarm)
        return alarm

    def state_dict(self) -> dict[str, Any]:
        """What is usual, and the alarms."""
        return {
            "usual": {kind: usual.state_dict() for kind, usual in self._usual.items()},
            "alarms": [asdict(alarm) for alarm in self.alarms],
            "zeros": dict(self._zeros),
            "apart": self._apart,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take it over."""
        self._usual = {}
        for kind, held in state["usual"].items():
            self._usual[kind] = self._new(logarithm=kind != "loss")
            self._usual[kind].load_state_dict(held)
        self.alarms = [Alarm(**alarm) for alarm in state["alarms"]]
        self._zeros, self._apart = dict(state["zeros"]), bool(state["apart"])
