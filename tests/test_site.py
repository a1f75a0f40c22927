"""The documentation's site: formulas, notebooks, pages that are made, help on every word."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
sys.path.insert(0, str(DOCS))

import _commands
import _tutorials

pytest.importorskip("mkdocs", reason="pip install 'trimtab[docs]'")

import _maths
import _pages


@pytest.mark.parametrize("name", _tutorials.pages())
def test_a_notebook_is_its_page(name: str) -> None:
    """Valid, without outputs, every block that runs in the page's order, the same at each build."""
    nbformat = pytest.importorskip("nbformat")
    read = nbformat.reads(_tutorials.notebook(name), as_version=4)
    nbformat.validate(read)
    code = [cell for cell in read.cells if cell.cell_type == "code"]
    assert not any(cell.outputs for cell in code)
    blocks = [part for part in _tutorials.parts((DOCS / "tutorials" / f"{name}.md").read_text("utf-8")) if part[0]]
    assert [cell.source for cell in code if not cell.source.startswith("!")] == [
        content.strip("\n") for kind, content in blocks if kind == "python"
    ]
    assert sum(cell.source.startswith("!") for cell in code) == sum(kind == "sh" for kind, _ in blocks)
    assert _tutorials.notebook(name) == _tutorials.notebook(name)


def test_a_page_runs_in_one_interpreter_and_one_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_tutorials, "TUTORIALS", tmp_path)
    monkeypatch.chdir(tmp_path)
    page = "# A\n\n```python\nx = 2\n```\n\ntext\n\n```sh\necho three > made.txt\n```\n\n"
    page += "```python\nprint(x, open('made.txt').read())\n```\n"
    (tmp_path / "a.md").write_text(page)
    assert _tutorials.run("a", tmp_path) == ["", "", "2 three"]
    (tmp_path / "b.md").write_text("# B\n\n```sh\nfalse\n```\n")
    with pytest.raises(RuntimeError, match="b, block 1"):
        _tutorials.run("b", tmp_path)


def test_every_formula_of_the_cards_is_drawn() -> None:
    formulas = [
        found
        for card in DOCS.rglob("*.md")
        for found in re.findall(r"^\$\$\n(.*?)\n\$\$$", card.read_text("utf-8"), re.DOTALL | re.MULTILINE)
    ]
    assert len(formulas) > 15
    for formula in formulas:
        drawn = _maths.drawn(formula, "block")
        assert drawn.startswith("<math")
        assert "\\" not in drawn


def test_a_command_that_no_browser_knows_is_an_error() -> None:
    with pytest.raises(ValueError, match="nonsense"):
        _maths.drawn(r"\nonsense{x}", "block")


def test_every_public_name_has_its_place_in_the_api() -> None:
    rooms = _pages.rooms()
    assert {"trimtab.penalties", "trimtab.observe.curvature", "trimtab.medclm.readers"} <= set(rooms)
    for name, (says, names) in rooms.items():
        page = _pages.room_page(name)
        assert says, f"{name} has no docstring"
        assert all(f"::: {name}.{one}\n" in page for one in names if name != "trimtab")


def test_flags_stand_in_tables() -> None:
    made = "\n".join([*_commands.section("train", fields=True), *_commands.section("push", fields=False)])
    assert re.search(r"^\| `--var.strength X` \| .+ \| `1e-05` \|$", made, re.MULTILINE)
    assert re.search(r"^\| `--to TEXT` \| .+ \| required \|$", made, re.MULTILINE)
    assert "trimtab push runs/digits/sgd/seed0 --to shared" in made


def test_words_of_the_glossary_are_in_order() -> None:
    words = re.findall(r"^(\S.*)\n:   ", (DOCS / "glossary.md").read_text("utf-8"), re.MULTILINE)
    letters = [word for word in words if word[0].isalpha()]
    assert letters == sorted(letters, key=str.casefold)
    assert {"lever", "bear", "recalibrate", "host", "q", "[ours]"} <= set(words)
