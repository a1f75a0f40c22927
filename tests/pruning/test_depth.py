"""Which layers go: written-down plans, every number of calls, interactions, refusals."""

from __future__ import annotations

import pytest

from trimtab.pruning import depth_plan

COSTS = [5.0, 1.0, 4.0, 2.0, 3.0]


def additive(active: tuple[bool, ...]) -> float:
    return sum(cost for cost, stays in zip(COSTS, active, strict=True) if not stays)


def test_plans_are_the_written_down_ones() -> None:
    plan = depth_plan(5, additive, 3, keep_last=0)
    assert [[int(stays) for stays in active] for active in plan.active[1:]] == [
        [1, 0, 1, 1, 1],
        [1, 0, 1, 0, 1],
        [1, 0, 1, 0, 0],
    ]
    assert plan.metric[1:] == (1.0, 3.0, 6.0)
    assert plan.calls == 12 + 1  # and the whole network
    assert plan.records()[2]["layers"] == "1, 3"


def test_the_last_layers_stay() -> None:
    plan = depth_plan(5, additive, 2, keep_last=2)
    assert plan.removed(2) == [1, 2]
    assert depth_plan(3, lambda active: -sum(active), 0).active == ((True, True, True),)


def test_where_layers_make_up_for_each_other_only_all_choices_find_the_best() -> None:
    def metric(active: tuple[bool, ...]) -> float:
        gone = {place for place, stays in enumerate(active) if not stays}
        return {frozenset(): 0.0, frozenset({0, 1}): 0.5}.get(
            frozenset(gone), 1.0 + len(gone) + 0.1 * sum(gone) * (len(gone) == 2)
        )

    greedy = depth_plan(4, metric, 2, keep_last=0)
    every = depth_plan(4, metric, 2, keep_last=0, exhaustive=True)
    assert every.removed(2) == [0, 1]
    assert every.metric[2] <= greedy.metric[2]
    assert every.calls == 1 + 4 + 6


def test_bad_input_is_named() -> None:
    for settings, message in (
        ({"layers": 0, "remove": 0}, "layers must be"),
        ({"layers": 4, "remove": 4}, "remove must be"),
        ({"layers": 4, "remove": 1, "keep_last": 5}, "keep_last must be"),
    ):
        with pytest.raises(ValueError, match=message):
            depth_plan(metric=sum, **settings)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"NaN without the layers \[2\]"):
        depth_plan(4, lambda active: float("nan") if not active[2] else 1.0, 1)
