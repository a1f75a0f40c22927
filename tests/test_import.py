"""`import trimtab` stays light: the rooms load when they are first used."""

from __future__ import annotations

import subprocess
import sys

import pytest

import trimtab

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
        "trimtab.levers", "trimtab.parameters", "trimtab.collectives",
    }  # fmt: skip


def test_levers_need_torch_alone():
    loaded = modules_after("import trimtab; trimtab.penalties, trimtab.optimizers, trimtab.pruning")
    assert "trimtab.penalties.variance_amplifier" in loaded
    assert not loaded & HEAVY


def test_rooms_are_listed_and_others_refused():
    assert {"attach", "penalties", "pruning"} <= set(dir(trimtab))
    with pytest.raises(AttributeError, match="no attribute 'penaltys'"):
        trimtab.penaltys  # noqa: B018
