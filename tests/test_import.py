"""`import trimtab` stays light: the rooms load when they are first used."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import trimtab
from trimtab.datasets.catalogue import READERS
from trimtab.lazy import at
from trimtab.models.catalogue import NETWORKS

HEAVY = {
    "sklearn",
    "scipy",
    "plotly",
    "lightning_fabric",
    "lightning",
    "transformers",
    "tyro",
    "pydantic",
    "yaml",
    "rich",
}


def modules_after(statement: str) -> set[str]:
    """Top-level modules that `statement` loads beyond what torch has loaded."""
    code = f"import sys, torch; before = set(sys.modules)\n{statement}\nprint(*sorted(set(sys.modules) - before))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(result.stdout.split())


def test_import_loads_none_of_the_heavy_packages():
    loaded = modules_after("import trimtab")
    assert "trimtab" in loaded
    assert not loaded & HEAVY
    assert not {name for name in loaded if name.startswith("trimtab.") and name.count(".") == 1} - {
        "trimtab.lazy",
    }  # fmt: skip


def test_levers_need_torch_alone():
    loaded = modules_after("import trimtab; trimtab.penalties, trimtab.optimizers, trimtab.pruning")
    assert "trimtab.penalties.variance_amplifier" in loaded
    assert not loaded & HEAVY


def test_rooms_are_listed_and_others_refused():
    assert {"attach", "medclm", "penalties", "pruning"} <= set(dir(trimtab))
    assert trimtab.medclm.__name__ == "trimtab.medclm"
    with pytest.raises(AttributeError, match="no attribute 'penaltys'"):
        trimtab.penaltys  # noqa: B018


@pytest.mark.parametrize("room", ["trimtab", "trimtab.models", "trimtab.datasets"])
def test_lazy_names_are_there_when_asked_for(room):
    package = importlib.import_module(room)
    assert set(dir(package)) == set(package.__all__)
    assert all(getattr(package, name) is not None for name in package.__all__)


def test_every_path_of_the_catalogues_leads_to_something_callable():
    for room, rows in (("models", NETWORKS), ("datasets", READERS)):
        assert all(callable(at(f"trimtab.{room}.{path}")) for path, _ in rows.values())


def imports_within(function: ast.AST) -> list[ast.stmt]:
    found = [node for node in ast.walk(function) if isinstance(node, ast.Import | ast.ImportFrom)]
    return [node for node in found if "trimtab" in ast.unparse(node)]


def test_imports_of_trimtab_stand_at_the_top_or_say_why_not():
    """An import inside a function hides a circle; a heavy package behind it is a reason, which stands on its line."""
    bare = []
    for file in sorted(Path(trimtab.__file__).parent.rglob("*.py")):
        text = file.read_text(encoding="utf-8")
        functions = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef)]
        lines = {node.lineno for function in functions for node in imports_within(function)}
        bare += [f"{file}:{line}" for line in sorted(lines) if "  # " not in text.splitlines()[line - 1]]
    assert not bare
