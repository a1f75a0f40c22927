"""When a run gives up, and when it warns: losses that are not finite, steps that are all skipped, penalties out of scale."""

from __future__ import annotations

import math
import warnings

import torch
from torch import nn

from trimtab.runs.recipe import Recipe
from trimtab.runs.steering import Steering

SKIPPED_AT_MOST = 20
"""Steps in a row whose gradients hold inf or NaN, before a run gives up [ours]."""
OUT_OF_SCALE = 10.0
"""A penalty's value over the task loss from which it is warned of [ours]."""


def check_finite(recipe: Recipe, epoch: int, loss: float, steering: Steering) -> None:
    """Refuse to go on where nothing is learned any more.

    Args:
        recipe: for the message.
        epoch: epochs done.
        loss: sum of the epoch's losses so far.
        steering: what counts the skipped steps.

    Raises:
        FloatingPointError: the loss is inf or NaN, or the last `SKIPPED_AT_MOST` steps were all skipped.
    """
    where = f"in epoch {epoch + 1} of method {recipe.method!r} (seed {recipe.seed}); lower the learning rate"
    if not math.isfinite(loss):
        raise FloatingPointError(f"the training loss became {loss} {where} or the penalty's strength")
    if steering.skipped_in_a_row >= SKIPPED_AT_MOST:
        raise FloatingPointError(
            f"the gradients held inf or NaN in the last {steering.skipped_in_a_row} steps, which were skipped, {where}"
        )


@torch.no_grad()
def penalty_row(steering: Steering, model: nn.Module, loss: float) -> dict[str, float]:
    """What an epoch's row says of penalties: the sum of their values; warns where one is far above the task loss."""
    values = [(penalty, float(penalty.value(model))) for penalty in steering.penalties]
    for penalty, value in values:
        if value > OUT_OF_SCALE * loss:
            warnings.warn(
                f"penalty {penalty!r} is {value:.3g}, more than {OUT_OF_SCALE:g} x the task loss {loss:.3g}: its strength is "
                "too high for weights this small",
                stacklevel=2,
            )
    return {"penalty": sum(value for _, value in values)} if values else {}
