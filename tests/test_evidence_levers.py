"""The page of evidence on levers is what its figures say, and every lever on it has its card."""

from __future__ import annotations

import doctest
import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "evidence" / "levers"


@pytest.fixture(scope="module")
def page() -> Iterator[Any]:
    """The page's generator, whose folders are no package."""
    before, known = list(sys.path), set(sys.modules)
    sys.path[:0] = [str(FOLDER), str(FOLDER.parent)]
    try:
        yield importlib.import_module("table")
    finally:
        sys.path[:] = before
        for name in set(sys.modules) - known:
            if str(FOLDER.parent) in str(getattr(sys.modules[name], "__file__", "")):
                del sys.modules[name]


def test_the_page_shows_the_kept_figures(page: Any) -> None:
    text = (ROOT / "docs" / "evidence" / "levers.md").read_text(encoding="utf-8")
    for block in (page.block(), page.costs()):
        assert block in text, "run python evidence/levers/table.py"


def test_every_claim_has_its_experiment_and_card(page: Any) -> None:
    for claim in page.CLAIMS:
        assert (FOLDER / f"{claim.file}.py").is_file(), claim.lever
        assert (ROOT / "docs" / "methods" / f"{claim.card}.md").is_file(), claim.lever


def test_every_card_and_the_list_of_systems_say_the_verdicts(page: Any) -> None:
    for card, line in page.cards().items():
        assert line in (ROOT / "docs" / "methods" / f"{card}.md").read_text(encoding="utf-8"), (
            "run evidence/levers/table.py"
        )
    rows = {row["nr"]: row for row in yaml.safe_load((ROOT / "docs" / "systems.yaml").read_text(encoding="utf-8"))}
    for number, words in page.systems().items():
        assert rows[number]["verdict"] == words, f"give system {number} in docs/systems.yaml this verdict"
        assert rows[number]["evidence"] == "levers.md"


def test_verdicts_follow_from_figures_by_one_rule(page: Any) -> None:
    assert doctest.testmod(page).failed == 0
    assert page.verdict([[1.0, 1.0]], [True]) == "holds"
    assert page.verdict([[1.0, 1.0]], [False]) == "does not: not told apart"
    assert page.verdict([[-1.0, -1.0], [1.0, 0.0]], [True, False]) == "does not: the reverse"
    assert page.chance([1.0, 1.0]) == 0
    assert page.chance([0.0, 0.0]) == page.chance([3.0]) == 1
    assert page.chance([1.0, 1.1, 0.9]) == pytest.approx(0.0033, abs=2e-4)  # t = 17.3, two degrees of freedom
    assert page.holm([0.01, 0.02, 0.5]) == [True, True, False]
    assert page.holm([0.02, 0.02, 0.5]) == [False, False, False]
