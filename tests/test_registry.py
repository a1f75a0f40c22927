"""Registry, battery, cards and documentation hold the same names."""

from __future__ import annotations

import importlib.util
import inspect
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests import reference
from tests.battery import PROBES, ROWS
from trimtab.registry import LEVERS, TRAINED

DOCS = Path(__file__).parents[1] / "docs"
TRAINED_NAMES = [name for name, row in LEVERS.items() if row.home in TRAINED]


@pytest.fixture(scope="module")
def cards() -> ModuleType:
    spec = importlib.util.spec_from_file_location("cards_of_docs", DOCS / "_cards.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_lever_is_in_the_battery_and_nothing_else() -> None:
    assert {row.name for row in ROWS} == set(TRAINED_NAMES)
    assert {probe.name for probe in PROBES} == LEVERS.keys() - set(TRAINED_NAMES)
    for labels in (list(map(str, ROWS)), list(map(str, PROBES))):
        assert len(set(labels)) == len(labels)


def test_every_lever_has_a_card_in_the_navigation(cards: ModuleType) -> None:
    config: dict[str, Any] = {"nav": [{"Levers": "levers.md"}, {"Method cards": []}]}
    cards.on_config(config)
    found: dict[str, str] = {}
    for group in config["nav"][1]["Method cards"]:
        for home, rows in group.items():
            for row in rows:
                ((names, file),) = row.items()
                assert (DOCS / file).is_file()
                assert LEVERS[names.split(", ")[0]].home.replace("_", " ") == home
                assert file not in found.values()
                found |= dict.fromkeys(names.split(", "), file)
    assert found == {name: row.card_file for name, row in LEVERS.items()}


def test_the_index_has_a_line_for_every_lever(cards: ModuleType) -> None:
    assert "<!-- levers -->" in (DOCS / "levers.md").read_text(encoding="utf-8")
    lines = re.findall(r"^\| \[`(\S+)`\]\((\S+)\) \| (.*) \| (.*) \| `(\S+)` \|$", cards.table(), re.MULTILINE)
    expected = [
        (name, row.card_file, row.line.replace("|", r"\|"), row.source, row.path.replace(":", "."))
        for name, row in LEVERS.items()
    ]
    assert sorted(lines) == sorted(expected)


def test_no_card_is_without_a_place(cards: ModuleType) -> None:
    """Cards that belong to no lever stand in the navigation by hand."""
    by_hand = (DOCS.parent / "mkdocs.yml").read_text(encoding="utf-8")
    known = {row.card_file for row in LEVERS.values()}
    for file in sorted(DOCS.glob("methods/*.md")):
        place = f"methods/{file.name}"
        assert (place in known) != (place in by_hand), place


@pytest.mark.parametrize("name", LEVERS)
def test_a_card_names_its_lever(name: str) -> None:
    row = LEVERS[name]
    text = (DOCS / row.card_file).read_text(encoding="utf-8")
    assert row.path.partition(":")[2] in text or f"`{name}`" in text


@pytest.mark.parametrize(("name", "formula"), inspect.getmembers(reference, inspect.isfunction))
def test_a_reference_is_short(name: str, formula: Any) -> None:
    body = inspect.getsource(formula).splitlines()
    end = next(at for at, line in enumerate(body) if re.match(r"( {4})?\) -> .*:|.*\) -> .*:( |$)", line))
    assert len([line for line in body[end + 1 :] if line.strip()]) <= 15, name
