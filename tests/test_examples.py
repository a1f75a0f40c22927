"""The programs in `examples/` run and do what they say."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


def test_a_network_is_pruned_saved_and_loaded(tmp_path: Path) -> None:
    found = runpy.run_path(str(EXAMPLES / "prune_in_your_loop.py"))["main"](tmp_path, epochs=1)
    assert found["loaded"] == found["pruned"]
    assert (tmp_path / "small.safetensors").stat().st_size < 30_000


def test_gradients_are_watched() -> None:
    rows = runpy.run_path(str(EXAMPLES / "watch_gradients.py"))["main"](steps=30)
    assert [step for step, _ in rows] == [0, 10, 20]
    assert all(spread > 0 for _, spread in rows)


def test_every_example_is_tested_and_listed() -> None:
    listed = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    tested = Path(__file__).read_text(encoding="utf-8")
    for file in EXAMPLES.glob("*.py"):
        assert f"`{file.name}`" in listed, file.name
        assert file.name in tested, file.name


@pytest.mark.parametrize("file", sorted(EXAMPLES.glob("*.py")), ids=lambda file: file.stem)
def test_an_example_says_how_to_run_it(file: Path) -> None:
    assert f"python examples/{file.name}" in file.read_text(encoding="utf-8").splitlines()[0]
