"""SpikeGuard: watches loss, gradient and update of every step, and skips or undoes the step that goes wrong."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from trimtab.checks import below_one, number, one_of, positive, some_of, whole
from trimtab.collectives import local_part
from trimtab.levers import attached, refuse_state_elsewhere, takes_closure
from trimtab.optimizers import snapshot
from trimtab.optimizers.alarm import Alarm
from trimtab.optimizers.growth import Growth
from trimtab.optimizers.judging import Judging
from trimtab.optimizers.running_change import running_change, running_statistics
from trimtab.optimizers.scaled_rates import ScaledRates
from trimtab.optimizers.usual import Usual
from trimtab.parameters import Entry, unwrapped
from trimtab.tensors.passes import refuse_sharded

Policy = Literal["warn", "skip", "lower_lr", "rollback"]
POLICIES = ("warn", "skip", "lower_lr", "rollback")
JUDGED = ("loss", "gradient", "update", "growth", "dead", "running", "ranks")
JUDGE = Sequence[Literal["loss", "gradient", "update", "growth", "dead", "running", "ranks"]]


COLLECT = 4
"""Growth is judged after so many times `warmup` steps [ours]: what grows while training sets in is well."""


class SpikeGuard:
    """Watches over every step: an alarm, in the same step, when loss, gradient or update leave what is usual.

    Judged are the loss and the gradients' joint norm before the step, and the norm of the weights' change after it, norms
    by their logarithm: `z = (v - m) / max(s, least)` with running mean m and deviation s, an alarm where
    `z > threshold` or where a number is not finite (see `trimtab.optimizers.usual.Usual`). Then

    | `policy` | before the step (loss, gradient) | after it (update) |
    |---|---|---|
    | `"warn"` (default) | said | said |
    | `"skip"` | step not taken: weights, moments and counts stay, buffers as before the batch | weights put back |
    | `"lower_lr"` | taken with `lr * usual / norm`, then with `factor * lr`, which recovers | shortened to the usual norm |
    | `"rollback"` | model, optimizer, levers and random numbers as at the last snapshot; the data go on | the same |

    Told but never acted on is what goes wrong slowly:

    * growth: the weights' change, as a share of them and of the learning rate, has become `growth` times what is usual, which
      follows by 0.1 % a step, or a watched signal `growth`^2 times (see `trimtab.optimizers.growth.Growth`);
    * dead: the gradient of a tensor, or of a share `silent` of its units, once not zero, is zero for `dead_after` steps;
    * running: running statistics of normalisation layers move `growth` times as far as usual, or stand still for `dead_after`
      steps of training (of the model given to `attach`);
    * ranks: replicated weights are not the same on all ranks, bit for bit.

    All ranks decide alike, from the mean over the ranks; a watched signal is this rank's.

    Args:
        policy: see above.
        threshold: deviations above usual; above 0. Default 6 [ours].
        warmup: steps that collect; 2 or more. Default 50 [ours]; growth is judged after four times as many. What is not finite
            makes an alarm from the second step on.
        decay: of mean and deviation, in [0, 1). Default 0.97, as ZClip.
        judge: some of "loss", "gradient", "update", "growth", "dead", "running", "ranks". Default all. The loss is judged where
            someone tells it: `guard.see(loss)` before the step, a closure, `trimtab train`.
        factor: of the learning rate after an alarm; in (0, 1). Default 0.5 [ours].
        recover: steps in which that factor is made up for again; 1 or more. Default 100 [ours].
        every: steps between snapshots, each taken after loss and gradient were found sound; 1 or more. Default 50 [ours].
        dead_after: steps; 1 or more. Default 20 [ours].
        patience: steps in a row that may be withheld before it gives up; 1 or more. Default 20 [ours].
        growth: how many times its usual self a number may become before that is said, squared for watched signals, which grow
            while a network learns; above 1. Default 1.8 [ours].
        silent: share of a weight's units that may fall silent before that is said; above 0, at most 1. Default 0.25 [ours].

    Attributes:
        alarms: every `Alarm`, in order.

    Raises:
        ValueError: a number is out of range or a word unknown; (at attach) a policy that acts, with an optimizer that needs a
            closure; "rollback" with sharded weights or an optimizer whose state lies on other ranks.
        FloatingPointError: the first loss is not finite, or `patience` steps in a row were withheld.

    Order: anywhere among the levers, which see no gradient of a step that is not taken; before levers that change weights after
    the step, whose work it else would undo. Chained schedulers and `GradScaler` are not rolled back.

    Reference: [ours]; going back and past the data after Chowdhery et al., PaLM, arXiv 2204.02311, section 5.1.

    Example:
        >>> import trimtab
        >>> net = nn.Linear(1, 1, bias=False)
        >>> optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        >>> guard = SpikeGuard("skip", warmup=2)
        >>> handle = trimtab.attach(optimizer, guard, model=net)
        >>> for size in (1.0, 1.1, 500.0):
        ...     net.weight.grad = torch.tensor([[size]])
        ...     optimizer.step()
        >>> print(guard.alarms[0])
        step 2: norm of the gradients is 500, 61.7 deviations above the usual 1.05; the step is not taken
    """

    one_optimizer = "it judges the steps of one optimizer; make one for each"

    def __init__(
        self,
        policy: Policy = "warn",
        threshold: float = 6.0,
        warmup: int = 50,
        decay: float = 0.97,
        *,
        judge: JUDGE = JUDGED,  # type: ignore[assignment]
        factor: float = 0.5,
        recover: int = 100,
        every: int = 50,
        dead_after: int = 20,
        patience: int = 20,
        growth: float = 1.8,
        silent: float = 0.25,
    ) -> None:
        self.policy = one_of("policy", policy, POLICIES)
        self.threshold = positive("threshold", threshold)
        self.warmup = whole("warmup", warmup, least=2)
        self.decay = below_one("decay", decay)
        self.judge = some_of("judge", judge, JUDGED)
        self.factor = number("factor", factor, above=0, below=1)
        self.recover = whole("recover", recover, least=1)
        self.every = whole("every", every, least=1)
        self.dead_after = whole("dead_after", dead_after, least=1)
        self.patience = whole("patience", patience, least=1)
        self.growth = number("growth", growth, above=1)
        self.silent = number("silent", silent, above=0, most=1)
        self._judging = Judging(
            self.judge,
            partial(Usual, self.decay, self.warmup, self.threshold),
            self._new_growth,
            self.dead_after,
            self.silent,
        )
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

    @property
    def alarms(self) -> list[Alarm]:
        """Every alarm so far, in order."""
        return self._judging.alarms

    def _new_growth(self, name: str) -> Growth:
        factor = self.growth if name in ("update", "running") else self.growth**2
        return Growth(factor, COLLECT * self.warmup)

    # What it is told

    def see(self, loss: Any) -> None:
        """The loss of the step to come, of this rank: a tensor or a number."""
        self._loss = loss.detach() if isinstance(loss, Tensor) else loss

    def watch(self, *observers: Any) -> SpikeGuard:
        """Also judge the positive numbers that these signal, such as the meters of `trimtab.observe`, as spikes and for their
        growth: told, never acted on. One with `judged`, a tuple of names, has only these judged. `trimtab train` lets its guard
        watch the activations and the attention that it tracks.
        """
        self._watched += observers
        return self

    def subscribe(self, listener: Callable[[Alarm], object]) -> Callable[[], None]:
        """Call `listener(alarm)` at every alarm, on every rank; returns a function that ends it."""
        listeners = self._judging.listeners
        listeners.append(listener)
        return lambda: listeners.remove(listener) if listener in listeners else None

    def bind(self, optimizer: torch.optim.Optimizer, model: nn.Module | None, parameters: Sequence[Entry]) -> None:
        """Remember whose steps are judged; called by `trimtab.attach`."""
        if self.policy != "warn" and takes_closure(optimizer):
            raise ValueError(
                f"policy={self.policy!r} cannot undo a step of {type(optimizer).__name__}, which moves the weights while it "
                'evaluates its closure; use "warn"'
            )
        if self.policy == "rollback":
            refuse_sharded(f"{type(self).__name__} with policy='rollback' keeps", parameters)
            refuse_state_elsewhere(f"{type(self).__name__} with policy='rollback' keeps", optimizer)
        self._optimizer = weakref.ref(optimizer)  # which must not live on for its levers
        self._model = None if model is None else unwrapped(model)
        self._keep_buffers()

    def unbind(self) -> None:
        """Let optimizer and model go; called by `Handle.remove`."""
        self._optimizer, self._model = lambda: None, None

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

    def _others(self) -> tuple[torch.optim.Optimizer, Sequence[Any], SpikeGuard]:
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

    # What it says

    def signals(self) -> dict[str, float]:
        """Of the last step: `loss_z`, `gradient_z`, `update_z` (deviations above usual), `update_ratio`, `running_change`."""
        return dict(self._judging.signals)

    def describe(self) -> dict[str, float]:
        """Alarms so far, steps withheld, and returns to a snapshot."""
        counts = self._counts
        return {"alarms": len(self.alarms), "withheld": counts["withheld"], "rollbacks": counts["rollbacks"]}

    def settings(self) -> dict[str, Any]:
        """All that decides."""
        names = (
            "policy",
            "threshold",
            "warmup",
            "decay",
            "judge",
            "factor",
            "recover",
            "every",
            "dead_after",
            "patience",
            "growth",
            "silent",
        )
        return {name: getattr(self, name) for name in names}

    def state_dict(self) -> dict[str, Any]:
        """Settings, what is usual, alarms, counts, and with "rollback" the snapshot."""
        return {
            "settings": self.settings(),
            **self._judging.state_dict(),
            "step": self.step,
            "counts": dict(self._counts),
            "lowered": self._lowered,
            "buffers": dict(self._buffers),
            "running": [list(pair) for pair in self._running],
            "snapshot": self._snapshot,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved state; ValueError when its settings are others."""
        if state.get("settings") != self.settings():
            raise ValueError(f"the saved settings {state.get('settings')} do not fit {self!r}")
        self._judging.load_state_dict(state)
        self.step, self._lowered, self._counts = int(state["step"]), float(state["lowered"]), dict(state["counts"])
        self._buffers, self._snapshot = dict(state["buffers"]), state["snapshot"]
        self._running = [(mean, variance) for mean, variance in state["running"]]

    def __repr__(self) -> str:
        return f"SpikeGuard({', '.join(f'{name}={value!r}' for name, value in self.settings().items())})"
