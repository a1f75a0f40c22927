"""How a guard stands in a step: it judges, withholds, shortens and undoes; what it is told and says is `SpikeGuard`'s."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from trimtab.collectives import local_part
from trimtab.levers import attached
from trimtab.optimizers import snapshot
from trimtab.optimizers.alarm import Alarm
from trimtab.optimizers.judging import Judging
from trimtab.optimizers.running_change import running_change, running_statistics
from trimtab.optimizers.scaled_rates import ScaledRates
from trimtab.parameters import Entry


class Guarding:
    """The work of a guard before and after a step; a subclass sets what decides, then calls `_begin`.

    Attributes:
        step: steps seen.
        policy, judge, factor, recover, every, patience: as `SpikeGuard` takes them.
    """

    policy: str
    judge: Sequence[str]
    factor: float
    recover: int
    every: int
    patience: int
    _judging: Judging

    def _begin(self) -> None:
        self.step = 0
        self._counts = {"withheld": 0, "in_a_row": 0, "rollbacks": 0}
        self._lowered = self._shorten = 1.0
        self._snapshot: snapshot.State | None = None
        self._buffers: dict[str, Tensor] = {}
        self._loss: Any = None
        self._watched: list[Any] = []
        self._optimizer: Callable[[], torch.optim.Optimizer | None] = lambda: None
        self._model: nn.Module | None = None
        self._before: list[tuple[Entry, Tensor]] = []
        self._running: list[tuple[Tensor, Tensor]] = []
        """Running means and variances as they were after the last step."""
        self._rate = 0.0
        self._rates = ScaledRates()

    # Before the step

    @torch.no_grad()
    def vetoes(self, parameters: Sequence[Entry]) -> bool:
        """Judge loss and gradient; True where the step must not be taken. Called by `trimtab.attach` before all levers."""
        at, self.step = self.step, self.step + 1
        self._judging.signals, self._shorten = {}, 1.0
        self._lowered = min(1.0, self._lowered * self.factor ** (-1 / self.recover))
        loss, self._loss = self._loss, None
        found = self._judging.read(parameters, loss, self._running_change(), at)
        judged = [self._judging.judge(kind, value, at, self._action("skip")) for kind, value in found.items()]
        alarms = [alarm for alarm in judged if alarm is not None]
        for name, value in self._signals_watched():
            self._judging.judge(name, value, at, lambda kind: ("warn", None))
            self._judging.grew(name, value, at)
        if not alarms:
            self._counts["in_a_row"] = 0
            if self.policy == "rollback" and (self._snapshot is None or at >= self._snapshot["step"] + self.every):
                self._snapshot = snapshot.take(at, parameters, self._model, *self._others())
        if not alarms or self.policy == "warn":
            return False
        if self.policy == "lower_lr" and all(math.isfinite(alarm.value) for alarm in alarms):
            self._lowered *= self.factor
            self._shorten = min([1.0, *(one.usual / one.value for one in alarms if one.kind == "gradient")])
            return False
        self._withhold(alarms[0], parameters)
        return True

    def _action(self, skipped: str) -> Callable[[str], tuple[str, int | None]]:
        """What is done about a kind of alarm: a withheld step is called `skipped`, "skip" before it and "undo" after it."""

        def of(kind: str) -> tuple[str, int | None]:
            if self.policy == "rollback" and self._snapshot is not None:
                return "rollback", self._snapshot["step"]
            return (skipped if self.policy in ("skip", "rollback") else self.policy), None

        return of

    def _running_change(self) -> Tensor | None:
        """How far the step's forward passes moved the running statistics; None where that is not known."""
        now = running_statistics(self._model) if self._running else []
        return running_change(now, self._running) if now and len(now) == len(self._running) else None

    def _signals_watched(self) -> list[tuple[str, float]]:
        given = [(getattr(one, "judged", None), one.signals()) for one in self._watched]
        found = [
            (name, value) for judged, own in given for name, value in own.items() if judged is None or name in judged
        ]
        return [(name, size) for name, value in found if (size := float(value)) > 0]

    def _withhold(self, alarm: Alarm, parameters: Sequence[Entry]) -> None:
        """Put back what the batch has moved already, or all to the snapshot."""
        self._counts["withheld"] += 1
        self._counts["in_a_row"] += 1
        if self._counts["in_a_row"] >= self.patience:
            raise FloatingPointError(
                f"{type(self).__name__}: the last {self._counts['in_a_row']} steps were withheld. {alarm}. Lower the learning "
                "rate, or raise threshold or patience"
            )
        if self.policy == "rollback" and self._snapshot is not None:
            self._go_back(parameters)
        else:
            snapshot.put_back(snapshot.buffers_of(self._model), self._buffers)

    def _go_back(self, parameters: Sequence[Entry]) -> None:
        assert self._snapshot is not None
        snapshot.restore(self._snapshot, parameters, self._model, *self._others())
        self._counts["rollbacks"] += 1
        self._keep_buffers()

    def _others(self) -> tuple[torch.optim.Optimizer, Sequence[Any], Any]:
        optimizer = self._optimizer()
        if optimizer is None:
            raise RuntimeError(f"{self!r} acts on an optimizer; use trimtab.attach(optimizer, lever)")
        return optimizer, attached(optimizer), self

    @torch.no_grad()
    def before_step(self, parameters: Sequence[Entry]) -> None:
        """Lower the learning rate where it must be, and keep the weights; called by `trimtab.attach`."""
        self._rates.scale(self._optimizer(), min(self._lowered, self._shorten))
        self._before, self._rate = [], 0.0
        if (optimizer := self._optimizer()) is not None:
            self._rate = max((float(group.get("lr", 1.0)) for group in optimizer.param_groups), default=0.0)
        if "update" in self.judge or "growth" in self.judge:
            stepped = [entry for entry in parameters if entry.parameter.grad is not None and entry.computed is None]
            self._before = [(entry, local_part(entry.parameter).detach().clone()) for entry in stepped]

    # After the step

    @torch.no_grad()
    def after_step(self, parameters: Sequence[Entry]) -> None:
        """Judge the weights' change, and undo it where it must be; called by `trimtab.attach`."""
        self._rates.restore()
        before, self._before = self._before, []
        if before:
            self._judge_update(before, parameters)
        self._judging.compare_ranks(parameters, self.step - 1)
        self._keep_buffers()

    def _judge_update(self, before: Sequence[tuple[Entry, Tensor]], parameters: Sequence[Entry]) -> None:
        judging, at = self._judging, self.step - 1
        owners, kept = [entry.parameter for entry, _ in before], [weight for _, weight in before]
        places = [local_part(owner) for owner in owners]
        update, weight = judging.moved(places, kept, owners)
        judging.signals["update_ratio"] = update / weight if weight else math.nan
        if weight and self._rate:
            judging.grew("update", update / weight / self._rate, at)
        alarm = judging.judge("update", update, at, self._action("undo")) if "update" in self.judge else None
        if alarm is None or self.policy == "warn":
            return
        if alarm.action == "rollback":
            self._go_back(parameters)
        elif self.policy == "lower_lr" and math.isfinite(update):
            self._lowered *= self.factor
            torch._foreach_lerp_(places, kept, 1 - alarm.usual / update)
        else:
            torch._foreach_copy_(places, kept)

    def _keep_buffers(self) -> None:
        """Remember the buffers as they are between steps, so that a batch which is not learned from leaves no trace."""
        if self.policy != "warn":
            self._buffers = {n: buffer.detach().clone() for n, buffer in snapshot.buffers_of(self._model).items()}
        if "running" in self.judge:
            self._running = [(mean.clone(), variance.clone()) for mean, variance in running_statistics(self._model)]
