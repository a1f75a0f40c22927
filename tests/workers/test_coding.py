"""Plans of gradient coding: the sheet's numbers, what bursts are, what the simulation must say in closed cases, bad input."""

from __future__ import annotations

from typing import Any

import pytest

from trimtab.workers import StragglerModel, bursty, coding_plan, simulate_stragglers


def test_the_plan_equals_the_sheets_numbers() -> None:
    plan = {scheme.name: scheme for scheme in coding_plan(n=256, B=1, W=2, lam=27)}
    assert (plan["selective repetition"].stragglers, plan["selective repetition"].delay) == (14, 1)
    assert plan["selective repetition"].load == pytest.approx(0.05859375)
    assert plan["multiplexed"].load == pytest.approx(0.007543103448)
    assert plan["multiplexed"].delay == 1


def test_selective_repetition_is_there_where_bursts_divide_the_window() -> None:
    assert len(coding_plan(n=8, B=2, W=5, lam=2)) == 4
    assert [scheme.name for scheme in coding_plan(n=8, B=2, W=4, lam=2)] == [
        "uncoded",
        "gradient coding",
        "multiplexed",
    ]


def test_loads_rise_with_what_is_borne_and_multiplexing_costs_least() -> None:
    for lam in range(1, 20):
        plan = {scheme.name: scheme.load for scheme in coding_plan(n=64, B=1, W=3, lam=lam)}
        assert 1 / 64 == plan["uncoded"] < plan["multiplexed"] < plan["selective repetition"] <= plan["gradient coding"]


def rounds(*some: set[int]) -> list[frozenset[int]]:
    return [frozenset(one) for one in some]


def test_bursts() -> None:
    assert bursty(rounds({1}, {1}, set()), B=2, W=3, lam=1)
    assert not bursty(rounds({1}, set(), {1}), B=2, W=3, lam=1)  # from first to last three rounds
    assert bursty(rounds({1}, set(), set(), {1}), B=2, W=3, lam=1)  # not in one window
    assert not bursty(rounds({1}, {2}), B=1, W=2, lam=1)  # two different ones


def test_without_slow_workers_time_is_rounds_times_load() -> None:
    model = StragglerModel(start=0.0, jitter=0.0, fixed=1.0, unit=10.0)
    times = simulate_stragglers(n=10, B=1, W=2, lam=2, jobs=50, model=model)
    plan = {scheme.name: scheme for scheme in coding_plan(n=10, B=1, W=2, lam=2)}
    assert times == pytest.approx({name: (50 + one.delay) * (1 + 10 * one.load) for name, one in plan.items()})


def test_with_slow_workers_uncoded_waits_for_the_slowest_of_every_round() -> None:
    model = StragglerModel(start=0.05, recover=0.5, slowdown=10.0, jitter=0.0, fixed=1.0, unit=8.0)
    times = simulate_stragglers(n=16, B=1, W=2, lam=4, jobs=300, model=model, seed=3)
    factors = model.factors(301, 16, 3)[:300]
    assert times["uncoded"] == pytest.approx(float(factors.max(1).sum()) * 1.5)
    few = factors.copy()
    few.sort(1)
    # within the patience of half a round: time is that of the last one waited for, or of the fastest and half again
    load = 1 + 8 * 5 / 16
    expected = sum(load * (row[11] if row[11] > 1.5 else 1.5 if row[-1] > 1.5 else row[-1]) for row in few)
    assert times["gradient coding"] == pytest.approx(expected)
    assert times["multiplexed"] < times["uncoded"]


def test_repetition_waits_only_for_those_who_repeat() -> None:
    from trimtab.workers.coding import _Repetition

    bears = _Repetition(n=4, B=1, s=1)
    assert bears(rounds({0, 1}))  # two of four: one short, so worker 0 does it again
    assert bears.repeating == rounds(set())
    assert bears(rounds({0, 1}, {2}))
    assert bears.repeating[1] == {0}
    assert not bears(rounds({0, 1}, {0}))
    assert bears(rounds({0, 1}, set()))


BAD: list[tuple[Any, str]] = [
    (lambda: coding_plan(1, 1, 2, 0), "n must be a whole number of 2 or more, got 1"),
    (lambda: coding_plan(4, 2, 2, 1), "W must be a whole number of 3 or more, got 2"),
    (lambda: coding_plan(4, 1, 2, 4), r"lam must be a whole number in 0\.\.3, got 4"),
    (lambda: StragglerModel(recover=0), r"recover must lie in \(0, 1\], got 0"),
    (lambda: simulate_stragglers(4, 1, 2, 1, patience=0), "patience must be finite and above 0, got 0"),
]


@pytest.mark.parametrize(("act", "words"), BAD)
def test_bad_input_is_one_error(act: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        act()
