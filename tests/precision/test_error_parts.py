"""The parts of a rounding error, and weights that go back and forth: closed forms, and NumPy with other words."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from trimtab.precision import MX, Oscillation, named, quantize, shrinkage, shrinkage_sums


def parts(original: torch.Tensor, rounded: torch.Tensor) -> tuple[float, float, float]:
    found = shrinkage(shrinkage_sums(original, rounded))
    return found.scale_bias.item(), found.dead_zone.item(), found.grid_noise.item()


def test_halving_is_bias_zeroing_is_dead_zone_and_what_is_orthogonal_is_noise() -> None:
    g = torch.tensor([3.0, 4.0, 0.5])
    whole = 25.25
    assert parts(g, g) == (0, 0, 0)
    assert parts(g, g / 2) == pytest.approx((0.25, 0, 0), abs=1e-15)
    assert parts(g, torch.tensor([3.0, 4.0, 0.0])) == pytest.approx((0, 0.25 / whole, 0), abs=1e-15)
    assert parts(g, torch.tensor([3.0, 4.0, 0.0]) / 2) == pytest.approx((0.25 * 25 / whole, 0.25 / whole, 0), abs=1e-15)
    across = torch.tensor([-0.4, 0.3, 0.0])  # at right angles to g
    assert parts(g, g + across) == pytest.approx((0, 0, 0.25 / whole), rel=1e-6, abs=1e-9)
    assert parts(g, torch.zeros(3)) == (0, 1, 0)
    assert all(np.isnan(parts(torch.zeros(3), torch.zeros(3))))
    assert all(np.isnan(parts(torch.tensor([1.0, torch.nan]), torch.tensor([1.0, torch.nan]))))


@pytest.mark.filterwarnings("ignore:stochastic rounding is biased under MX:UserWarning")  # as meant
@pytest.mark.parametrize("rule", ["floor", "ceil"])
@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
def test_the_parts_are_those_of_a_regression_and_add_up(rule: str, rounding: str) -> None:
    x = torch.randn(64, 96, generator=torch.Generator().manual_seed(0)) ** 3
    generator = torch.Generator().manual_seed(1)
    rounded = quantize(x, "e2m1", rounding, scaling=MX(rule=rule), generator=generator)  # type: ignore[arg-type]
    g, q = x.double().numpy().ravel(), rounded.double().numpy().ravel()
    lives = q != 0
    slope = np.linalg.lstsq(g[lives, None], q[lives], rcond=None)[0][0]
    whole = (g**2).sum()
    expected = (
        ((slope * g[lives] - g[lives]) ** 2).sum() / whole,
        (g[~lives] ** 2).sum() / whole,
        ((q[lives] - slope * g[lives]) ** 2).sum() / whole,
    )
    assert parts(x, rounded) == pytest.approx(expected, rel=1e-9)
    assert sum(expected) == pytest.approx(((q - g) ** 2).sum() / whole, rel=1e-12)
    assert expected[1] > 0


def watched(values: list[list[float]], window: int = 3, format: str = "e2m1") -> list[int]:
    seen, counts = Oscillation(window, named(format)), []
    for step, row in enumerate(values):
        seen.see(step, torch.tensor(row))
        counts.append(int(seen.count(step)))
    return counts


def test_there_and_back_oscillates_and_onwards_does_not() -> None:
    assert watched([[1.0], [1.5], [1.0], [1.0], [1.0], [1.0]]) == [0, 0, 1, 1, 1, 0]
    assert watched([[1.0], [1.5], [2.0], [3.0]]) == [0, 0, 0, 0]
    assert watched([[1.0], [1.5], [1.5], [1.5], [1.5], [1.0]]) == [0] * 6  # back too late
    assert watched([[0.0], [0.5], [0.0], [-0.5]]) == [0, 0, 1, 1]
    assert watched([[1.0, 1.0], [1.5, 1.5], [1.0, 2.0]]) == [0, 0, 1]


def test_a_scale_that_drifts_is_no_change_of_the_number() -> None:
    assert watched([[1.0], [1.1], [1.0], [1.1]]) == [0, 0, 0, 0]
    assert watched([[1.0], [1.1], [1.0], [1.1]], format="e4m3") == [0, 0, 1, 1]  # there it is a step


def test_what_is_watched_goes_on_from_a_saved_state_and_begins_anew_with_another_shape() -> None:
    first = Oscillation(3, named("e2m1"))
    for step, value in enumerate((1.0, 1.5)):
        first.see(step, torch.tensor([value]))
    first.see(1, torch.tensor([9.0]))  # the same step again: a second micro-batch
    second = Oscillation(3, named("e2m1"))
    second.load_state_dict(first.state_dict())
    for one in (first, second):
        one.see(2, torch.tensor([1.0]))
        assert one.count(2) == 1
    second.see(3, torch.zeros(2))
    assert second.count(3) == 0
    with pytest.raises(ValueError, match="window of an oscillation"):
        Oscillation(1, named("e2m1"))
