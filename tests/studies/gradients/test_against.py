"""Variance against the baseline's, paired over seeds; what is drawn around a mean."""

from __future__ import annotations

import pytest

from tests.report.factory import make_dynamics
from trimtab.studies.gradients.against import ends, variance_ratio


def test_the_ratio_of_variances_is_the_square_of_that_of_deviations() -> None:
    base = make_dynamics(("sgd",), (0, 1, 2), steps=40)
    tripled = [run.model_copy(update={"std": [None if v is None else 3 * v for v in run.std]}) for run in base]
    found = variance_ratio(tripled, base)
    assert found is not None
    assert found.value == pytest.approx(9.0)
    assert (found.low, found.high) == (pytest.approx(9.0), pytest.approx(9.0))
    assert found.certain
    two = variance_ratio(tripled[:2], base[:2])
    assert two is not None
    assert not two.certain  # two seeds have ends, and no test
    assert variance_ratio(tripled[:1], base[1:]) is None


def test_under_three_seeds_the_ends_are_what_was_seen() -> None:
    assert ends([2.0]) is None
    assert ends([2.0, 5.0]) == (2.0, 5.0)
    low, high = ends([1.0, 2.0, 3.0]) or (0.0, 0.0)
    assert (low, high) == (
        pytest.approx(2 - 4.302653 / 3**0.5, rel=1e-6),
        pytest.approx(2 + 4.302653 / 3**0.5, rel=1e-6),
    )
