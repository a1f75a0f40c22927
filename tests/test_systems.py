"""docs/systems.yaml, docs/systems.md and the registry say the same."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest

from trimtab.registry import LEVERS

DOCS = Path(__file__).parents[1] / "docs"
FIELDS = {"nr", "title", "paper", "arxiv", "line", "levers", "command", "verdict", "evidence", "planned", "not_a_lever"}


def _script() -> Any:
    spec = importlib.util.spec_from_file_location("systems_page", DOCS / "_systems.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SCRIPT = _script()
ROWS = SCRIPT.systems()


def test_the_page_is_made_from_the_list_and_the_registry() -> None:
    page = (DOCS / "systems.md").read_text(encoding="utf-8")
    assert page == SCRIPT.page(), "run python docs/_systems.py"
    for row in ROWS:
        (line,) = re.findall(rf"^\| {row['nr']} \| \*\*{re.escape(row['title'])}\*\*.*$", page, re.MULTILINE)
        assert row.get("arxiv", "") in line


def test_eighty_one_systems_each_with_one_state() -> None:
    assert [row["nr"] for row in ROWS] == list(range(1, 82))
    assert len({row["title"] for row in ROWS}) == len(ROWS)
    numbers = [row["arxiv"] for row in ROWS if "arxiv" in row]
    assert len(set(numbers)) == len(numbers)
    assert all(re.fullmatch(r"\d{4}\.\d{5}", number) for number in numbers)
    for row in ROWS:
        assert set(row) <= FIELDS, row
        assert {"title", "line"} <= set(row), row
        assert bool(row.get("levers") or row.get("planned")) != bool(row.get("not_a_lever")), row["title"]
        assert ("verdict" in row) == ("evidence" in row), row["title"]


@pytest.mark.parametrize("row", [row for row in ROWS if row.get("levers")], ids=lambda row: row["title"])
def test_what_is_here_is_registered_and_has_its_card_and_evidence(row: dict[str, Any]) -> None:
    for name in row["levers"]:
        assert (DOCS / LEVERS[name].card_file).is_file()
    if "evidence" in row:
        assert (DOCS / "evidence" / row["evidence"]).is_file()
    if not row.get("command"):
        assert LEVERS[row["levers"][0]].home in ("penalty", "transform", "wrapper", "optimizer", "after_step")


@pytest.mark.parametrize("name", LEVERS)
def test_a_lever_whose_source_is_listed_stands_in_its_row(name: str) -> None:
    for row in ROWS:
        if row.get("arxiv") == LEVERS[name].source:
            assert name in row.get("levers", ()), f"give system {row['nr']} in docs/systems.yaml the lever {name}"
