"""What a guard tells: an alarm, and its sentence."""

from __future__ import annotations

import math
from dataclasses import dataclass

WORDS = {"loss": "loss", "gradient": "norm of the gradients", "update": "norm of the weights' change"}
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
        kind: "loss", "gradient", "update"; "dead" (a tensor's gradient is zero everywhere for long), "ranks" (their weights
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


def apart(step: int, difference: float) -> Alarm:
    """Ranks whose weights should be the same and are not."""
    text = f"step {step}: the norms of the ranks' weights differ by {difference:.3g}: the ranks have gone apart"
    return Alarm(step, "ranks", difference, 0.0, math.inf, "warn", text)
