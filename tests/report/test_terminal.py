from __future__ import annotations

import io

import pytest
from rich.console import Console

from tests.report.factory import make_summary
from trimtab.report.weights.terminal import terminal_table
from trimtab.studies.summary import Summary


def printed(summary: Summary, recalibrated: bool = False, width: int = 80) -> str:
    console = Console(width=width, file=io.StringIO(), force_terminal=False)
    console.print(terminal_table(summary, recalibrated=recalibrated, width=width))
    return console.file.getvalue()  # type: ignore[attr-defined]


@pytest.mark.parametrize("width", [80, 100])
@pytest.mark.parametrize("methods", [("sgd", "var", "sam"), ("sgd", "var[var.strength=0.0001]", "[red]x")])
def test_fits_and_keeps_every_label_and_column(width: int, methods: tuple[str, ...]) -> None:
    text = printed(make_summary(methods), width=width)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    for word in (*methods, "dense", "98 %", "3 seeds"):
        assert word in text


def test_numbers_are_the_means_of_the_state_asked_for() -> None:
    summary = make_summary(("sgd",))
    for state in (False, True):
        values = [
            row.accuracy
            for row in summary.rows
            if (row.score, row.scope, row.recalibrated) == ("magnitude", "global", state)
            and abs(row.sparsity - 0.9) < 1e-3
        ]
        assert f"{100 * sum(values) / 3:.1f}±" in printed(summary, state)


def test_one_seed_says_so() -> None:
    text = printed(make_summary(seeds=(4,)))
    assert "one seed: no interval" in text
    assert "±" not in text


def test_best_of_each_column_is_bold() -> None:
    table = terminal_table(make_summary(("sgd", "cram+")))
    column = list(table.columns[4].cells)
    assert [str(cell.style) for cell in column] == ["", "bold"]  # type: ignore[union-attr]


def test_absent_state_is_refused() -> None:
    with pytest.raises(ValueError, match="no rows that are recalibrated"):
        terminal_table(make_summary(recalibrated=False), recalibrated=True)
