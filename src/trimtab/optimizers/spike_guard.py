"""SpikeGuard: watches loss, gradient and update of every step, and skips or undoes the step that goes wrong."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from trimtab.checks import below_one, number, one_of, positive, some_of, whole
from trimtab.levers import refuse_state_elsewhere, takes_closure
from trimtab.optimizers.alarm import Alarm
from trimtab.optimizers.growth import Growth
from trimtab.optimizers.guarding import Guarding
from trimtab.optimizers.judging import Judging
from trimtab.optimizers.usual import Usual
from trimtab.parameters import Entry, unwrapped
from trimtab.tensors.passes import refuse_sharded

Policy = Literal["warn", "skip", "lower_lr", "rollback"]
POLICIES = ("warn", "skip", "lower_lr", "rollback")
JUDGED = ("loss", "gradient", "update", "growth", "dead", "running", "ranks")
JUDGE = Sequence[Literal["loss", "gradient", "update", "growth", "dead", "running", "ranks"]]


COLLECT = 4
"""Growth is judged after so many times `warmup` steps [ours]: what grows while training sets in is well."""


class SpikeGuard(Guarding):
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
        self._begin()

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
