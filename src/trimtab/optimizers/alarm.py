"""What a guard tells: an alarm, and its sentence."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

WORDS = {"loss": "loss", "gradient": "norm of the gradients", "update": "norm of the weights' change"}
GROWING = {
    "update": "the weights' change, as a share of them and of the learning rate,",
    "running": "the change of the running statistics",
}
DONE = {
    "warn": "nothing is done",
    "skip": "the step is not taken",
    "undo": "the step is undone",
    "lower_lr": "the learning rate is lowered",
    "rollback": "the run goes back",
}


@dataclass(frozen=True)
class Alarm:
    """What went wrong at a step, and what was done about it.

    Attributes:
        step: 0-based number of the step.
        kind: "loss", "gradient", "update"; "dead" (the gradient of a tensor, or of many of its units, is zero for long),
            "growth" (a number grows for long), "running" (running statistics move too far, or no more), "ranks" (their weights
            have gone apart); or the name of a watched signal.
        value, usual: what it was, and what it usually is.
        z: deviations above usual.
        action: "warn", "skip", "undo", "lower_lr" or "rollback".
        text: all of it in a sentence.
    """

    step: int
    kind: str
    value: float
    usual: float
    z: float
    action: str
    text: str

    def __str__(self) -> str:
        return self.text


def spike(step: int, kind: str, value: float, usual: float, z: float, action: str, back_to: int | None) -> Alarm:
    """A number far above usual; `back_to` is the step of the snapshot that the run goes back to."""
    far = f"{z:.3g} deviations above" if math.isfinite(z) else "not finite, against"
    done = DONE[action] + (f" to step {back_to}" if action == "rollback" else "")
    text = f"step {step}: {WORDS.get(kind, kind)} is {value:.3g}, {far} the usual {usual:.3g}; {done}"
    return Alarm(step, kind, value, usual, z, action, text)


def dead(step: int, name: str, steps: int) -> Alarm:
    """A tensor that no longer learns."""
    text = f"step {step}: the gradient of {name} has been zero everywhere for {steps} steps"
    return Alarm(step, "dead", 0.0, 0.0, math.inf, "warn", text)


def silent(step: int, name: str, share: float, steps: int) -> Alarm:
    """A weight many of whose units no longer learn."""
    text = f"step {step}: the gradient of {share:.0%} of the units of {name} has been zero for {steps} steps"
    return Alarm(step, "dead", share, 0.0, math.inf, "warn", text)


def grown(step: int, kind: str, name: str, value: float, times: float) -> Alarm:
    """A number that has grown for long."""
    what = GROWING.get(name, name)
    text = f"step {step}: {what} has grown to {times:.3g} times what is usual, over many steps; it is {value:.3g}"
    return Alarm(step, kind, value, value / times, math.inf, "warn", text)


def still(step: int, steps: int) -> Alarm:
    """Running statistics that stand still while their layers train."""
    text = f"step {step}: the running statistics have not changed for {steps} steps of training"
    return Alarm(step, "running", 0.0, 0.0, math.inf, "warn", text)


def apart(step: int, names: Sequence[str], of: int) -> Alarm:
    """Ranks whose weights should be the same and are not."""
    where = f"{len(names)} of {of} tensors, first {names[0]}"
    text = f"step {step}: the ranks' weights differ in {where}: the ranks have gone apart"
    return Alarm(step, "ranks", float(len(names)), 0.0, math.inf, "warn", text)
