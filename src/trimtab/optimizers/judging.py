"""How a guard judges: loss, gradients and weights of a step against what they usually are, on all ranks alike."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from itertools import islice
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from trimtab.collectives import is_distributed, is_sharded, local_part, max_over_ranks
from trimtab.levers import numbers_of
from trimtab.optimizers.alarm import Alarm, apart, dead, grown, silent, spike, still
from trimtab.optimizers.growth import Growth
from trimtab.optimizers.silent_units import SilentUnits
from trimtab.optimizers.usual import Usual
from trimtab.parameters import Entry
from trimtab.tensors.checksums import checksums
from trimtab.tensors.norms import each_norm

LOOK = 5
"""Steps between two looks at units and at the ranks' weights [ours]."""
RUNNING = "running statistics"
Action = Callable[[str], tuple[str, int | None]]


class Judging:
    """What is usual so far, and the alarms that followed.

    Args:
        kinds: what is judged: some of "loss", "gradient", "update", "growth", "dead", "running", "ranks".
        usual: makes the memory of a number; told whether its logarithm counts.
        growth: makes the memory of a number that may grow; told its name.
        dead_after: steps of a gradient of zero.
        silent: share of a weight's units that may fall silent.

    Attributes:
        alarms: in order.
        listeners: called with every alarm.
        signals: z of what was judged in this step.
    """

    def __init__(
        self,
        kinds: Sequence[str],
        usual: Callable[..., Usual],
        growth: Callable[[str], Growth],
        dead_after: int,
        silent: float,
    ) -> None:
        self.kinds, self.dead_after, self.silent = kinds, dead_after, silent
        self._new, self._new_growth = usual, growth
        self.alarms: list[Alarm] = []
        self.listeners: list[Callable[[Alarm], object]] = []
        self.signals: dict[str, float] = {}
        self._usual: dict[str, Usual] = {}
        self._zeros: dict[str, int] = {}
        """Steps in a row in which a number was zero, such as the norm of a tensor's gradient; of those that once were not."""
        self._growths: dict[str, Growth] = {}
        self._units = SilentUnits(-(-dead_after // LOOK))
        self._apart = False
        self._said: set[str] = set()

    def read(self, parameters: Sequence[Entry], loss: Any, running: Tensor | None, at: int) -> dict[str, float]:
        """Joint norm of the gradients, loss and change of the running statistics, means over the ranks; looks for what is dead
        and for running statistics that go wrong. One wait for the device, one collective.
        """
        given = [(entry, entry.parameter.grad) for entry in parameters if entry.parameter.grad is not None]
        parts: dict[str, Tensor] = {}
        units: list[str] = []
        if ("gradient" in self.kinds or "dead" in self.kinds) and given:
            gradients = [gradient for _, gradient in given]
            parts["norms"] = each_norm([numbers_of(gradient) for gradient in gradients], gradients)
        if "dead" in self.kinds and given and at % LOOK == 0:
            units, parts["units"] = self._units.look(parameters)
        if loss is not None and "loss" in self.kinds:
            parts["loss"] = loss.reshape(1) if isinstance(loss, Tensor) else torch.tensor([loss], dtype=torch.float64)
        if running is not None:
            parts["running"] = running.reshape(1)
        if not parts:
            return {}
        device = next(iter(parts.values())).device
        row = iter(torch.cat([part.to(device, torch.float64) for part in parts.values()]).tolist())
        known = {name: list(islice(row, len(part))) for name, part in parts.items()}
        found: dict[str, float] = {name: known[name][0] for name in ("loss", "running") if name in known}
        if "gradient" in self.kinds and "norms" in known:
            sound = all(map(math.isfinite, known["norms"]))
            found["gradient"] = math.sqrt(math.fsum(value * value for value in known["norms"])) if sound else math.nan
        if "dead" in self.kinds and "norms" in known:
            for (entry, _), norm in zip(given, known["norms"], strict=True):
                if self._is_dead(entry.name, norm):
                    self._tell(dead(at, entry.name, self.dead_after))
            for name, share in self._units.news(units, known.get("units", []), self.silent):
                self._tell(silent(at, name, share, self.dead_after))
        if is_distributed() and found:
            shared = torch.tensor(list(found.values()), dtype=torch.float64)
            shared = shared.to(local_part(parameters[0].parameter).device)
            dist.all_reduce(shared)
            found = dict(zip(found, (shared / dist.get_world_size()).tolist(), strict=True))
        if "running" in found:
            self._judge_running(found.pop("running"), at)
        return found

    def _is_dead(self, name: str, value: float) -> bool:
        """Whether a number has been zero for `dead_after` steps, exactly now, and once was not."""
        if value:
            self._zeros[name] = 0
        elif name in self._zeros:
            self._zeros[name] += 1
            return self._zeros[name] == self.dead_after
        return False

    def _judge_running(self, change: float, at: int) -> None:
        self.signals["running_change"] = change
        if self._is_dead(RUNNING, change):
            self._tell(still(at, self.dead_after))
        self.grew("running", change, at, kind="running")

    def grew(self, name: str, value: float, at: int, kind: str = "growth") -> None:
        """Learn from a number of which growth is no good sign; an alarm where it has grown for long."""
        if kind not in self.kinds:
            return
        if name not in self._growths:
            self._growths[name] = self._new_growth(name)
        if times := self._growths[name].learn(value, at):
            self._tell(grown(at, kind, name, value, times))

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

    def compare_ranks(self, parameters: Sequence[Entry], at: int) -> None:
        """An alarm when replicated weights differ between the ranks, bit by bit, and did not at the last look; one collective,
        a second one to find out where.
        """
        replicated = [entry for entry in parameters if not is_sharded(entry.parameter)]
        if "ranks" not in self.kinds or at % LOOK or not replicated or not is_distributed():
            return
        sums = checksums([entry.parameter for entry in replicated])
        ends = torch.stack([sums.sum(), torch.full_like(sums[0], len(replicated))])
        differ = bool(_spans_ranks(ends).any())
        if differ and not self._apart:
            places = _spans_ranks(sums).nonzero().flatten().tolist()
            self._tell(apart(at, [replicated[place].name for place in places], len(replicated)))
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
            "growths": {name: growth.state_dict() for name, growth in self._growths.items()},
            "units": self._units.state_dict(),
            "apart": self._apart,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take it over."""
        self._usual = {}
        for kind, held in state["usual"].items():
            self._usual[kind] = self._new(logarithm=kind != "loss")
            self._usual[kind].load_state_dict(held)
        self._growths = {}
        for name, held in state["growths"].items():
            self._growths[name] = self._new_growth(name)
            self._growths[name].load_state_dict(held)
        self._units.load_state_dict(state["units"])
        self.alarms = [Alarm(**alarm) for alarm in state["alarms"]]
        self._zeros, self._apart = dict(state["zeros"]), bool(state["apart"])


def _spans_ranks(numbers: Tensor) -> Tensor:
    """Which of some whole numbers are not the same on all ranks; one collective."""
    most, least = max_over_ranks(torch.cat([numbers, ~numbers])).chunk(2)
    return most != ~least
