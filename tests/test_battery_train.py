"""Every lever that acts by name: five steps of `trimtab train --levers NAME`, as a user types it."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.battery import ROWS, Row
from trimtab.cli import main
from trimtab.registry import settings_name
from trimtab.runs.recipe import load_recipe
from trimtab.runs.run_folder import RunFolder

FIRST = {row.name: row for row in ROWS[::-1]}  # of each lever the first row
SMALL = ["--epochs", "1", "--data.limit-train", "320", "--quiet"]  # five steps of 64 images


def _words(row: Row) -> list[str]:
    found = ["--levers", row.name]
    for name, value in row.under("train").settings.items():
        flag = f"--{settings_name(row.name)}.{name}".replace("_", "-")
        if isinstance(value, bool):
            found.append(flag if value else flag.replace(".", ".no-"))
        else:
            found += [flag, *map(str, value if isinstance(value, tuple) else (value,))]
    return found


def trained(folder: Path, *words: str) -> dict[str, Tensor]:
    assert main(["train", "digits", *words, *SMALL, "--out", str(folder)]) == 0
    return load_file(RunFolder(folder).model_file)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    return trained(tmp_path_factory.mktemp("plain") / "run")


@pytest.mark.parametrize("row", FIRST.values(), ids=str)
def test_five_steps_of_training(row: Row, plain: dict[str, Tensor], tmp_path: Path) -> None:
    found = trained(tmp_path / "run", *_words(row))
    recipe = load_recipe(tmp_path / "run")
    assert recipe.levers == (row.name,)
    section = recipe.section(row.name).model_dump()
    assert {name: section[name] for name in row.under("train").settings} == dict(row.under("train").settings)
    assert math.isfinite(RunFolder(tmp_path / "run").info()["train_loss"])
    assert all(bool(tensor.isfinite().all()) for tensor in found.values())
    assert found.keys() == plain.keys()
    assert any(not torch.equal(tensor, plain[name]) for name, tensor in found.items()), "the lever does nothing"
