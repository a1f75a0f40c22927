"""What a weight costs among the others: against the slopes of a loss that is known in closed form."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch

from trimtab.deploy.compact_choice import HOPELESS, LEAST_SLOPE, Layer, Option, among_the_others, by_error, coarser

ERRORS = (0.0, 0.03, 0.1, 0.22, 0.6)
OWN = (Option(8, 0.0, 100.0, 0.0), *(Option(4, 0.0, 80.0 / (1 + at), error) for at, error in enumerate(ERRORS[1:])))
Loss = Callable[[Sequence[float]], float]


def measured(loss: Loss, taken: Sequence[Option]) -> list[Layer]:
    layers = [Layer(str(at), torch.zeros(1), None, OWN, by_error(OWN)) for at in range(len(taken))]
    errors = [option.error for option in taken]

    def with_option(place: int, option: Option) -> float:
        return loss([option.error if at == place else error for at, error in enumerate(errors)])

    return among_the_others(layers, taken, loss(errors), with_option)


def test_the_next_coarser_option_has_about_twice_the_error_and_fewer_bytes() -> None:
    layer = Layer("w", torch.zeros(1), None, (*OWN, Option(5, 0.0, 500.0, 0.2)), by_error(OWN))
    assert coarser(layer, OWN[2]) == OWN[3]  # 0.1 -> 0.22; the one of 0.2 takes more bytes
    assert coarser(layer, OWN[0]) == OWN[1]  # from nothing: 0.01 is wanted
    assert coarser(layer, OWN[4]) is None


def test_the_slope_is_the_one_where_the_others_are_coarse_too() -> None:
    def loss(
        e: Sequence[float],
    ) -> float:  # the first costs nothing alone, 20 * 0.1 an error where the second is coarse
        return 20 * e[0] * e[1] + e[1]

    first, second = measured(loss, [OWN[1], OWN[2]])
    # tried were 0.1 and 0.22: up to there linear, beyond with the square
    assert first.rises == pytest.approx([20 * 0.1 * e * max(1, e / 0.1) for e in ERRORS])
    assert second.rises == pytest.approx([(1 + 20 * 0.03) * e * max(1, e / 0.22) for e in ERRORS])


def test_no_weight_costs_nothing_and_what_could_not_be_tried_costs_as_usual() -> None:
    kept = np.array([e * max(1, e / 0.22) for e in ERRORS])
    free, usual, costly, coarsest = measured(lambda e: -e[0] + 2 * e[1] + 3 * e[2], [OWN[2]] * 3 + [OWN[4]])
    assert free.rises == pytest.approx(LEAST_SLOPE * 2 * kept)  # the loss falls: a tenth of the middle slope
    assert usual.rises == pytest.approx(2 * kept)
    assert costly.rises == pytest.approx(3 * kept)
    assert coarsest.rises == pytest.approx([2 * e for e in ERRORS])  # none coarser: the middle one


def test_a_loss_that_does_not_change_leaves_the_squared_error_and_one_that_breaks_is_hopeless() -> None:
    for layer in measured(lambda _: 1.0, [OWN[4], OWN[4]]):
        assert layer.rises == pytest.approx(ERRORS)
    broken, _, _ = measured(lambda e: math.nan if e[0] > 0.1 else e[1] + e[2], [OWN[2]] * 3)
    assert broken.rises[3] == pytest.approx(HOPELESS * 0.22 / 0.12)
