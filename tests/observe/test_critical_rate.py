"""The critical learning rate on functions whose answer is known."""

from __future__ import annotations

import math

import pytest

from trimtab.observe.critical_rate import FORWARDS, critical_factor


@pytest.mark.parametrize("rate", [0.05, 0.11, 0.3, 0.7, 1.9, 2.3, 9.0])
def test_gradient_descent_on_a_quadratic_is_exact(rate: float) -> None:
    curvature, x = 1.7, 0.4
    step = -rate / curvature * curvature * x  # learning rate in units of 1 / curvature
    found = critical_factor(lambda s: 0.5 * curvature * (x + s * step) ** 2)
    assert found.factor * rate / curvature == pytest.approx(2 / curvature, rel=1e-9) or found.open
    assert found.open == (1 if rate < 2 / 16 else 0)
    assert found.forwards <= FORWARDS


def test_the_ends_of_the_search_are_called_open() -> None:
    calls: list[float] = []

    def falling(s: float) -> float:
        calls.append(s)
        return -s

    found = critical_factor(falling)
    assert (found.factor, found.open, found.forwards) == (16.0, 1, 6)
    assert calls == [0.0, 1.0, 2.0, 4.0, 8.0, 16.0]
    found = critical_factor(lambda s: s)
    assert (found.factor, found.open, found.forwards) == (1 / 16, -1, 6)


def test_a_loss_that_is_not_finite_has_risen() -> None:
    found = critical_factor(lambda s: math.nan if s > 1 else -s)
    assert (found.factor, found.open) == (1.5, 0)
    with pytest.raises(ValueError, match="the loss before the update is nan"):
        critical_factor(lambda s: math.nan)
