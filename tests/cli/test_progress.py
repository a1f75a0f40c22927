"""The time left stands in the bar also where reports are far apart."""

from __future__ import annotations

import pytest

from trimtab.cli.console import _bar


@pytest.mark.parametrize("seconds", [1.0, 50.0, 200.0])
def test_time_left_is_known_from_the_second_report_on(seconds: float) -> None:
    now = 0.0
    bar = _bar(quiet=True)
    bar.get_time = lambda: now
    task = bar.add_task("run", total=100, text="")
    for done in (20, 40):
        now += seconds
        bar.update(task, completed=done)
    assert bar.tasks[0].time_remaining == pytest.approx(3 * seconds, abs=1)
