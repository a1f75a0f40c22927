"""The study of Autoscale is judged as its plan says."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

FOLDER = Path(__file__).parents[1] / "evidence"


@pytest.fixture
def page(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The script, which is no part of a package."""
    known = set(sys.modules)
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.setattr(sys, "path", list(sys.path))
    spec = importlib.util.spec_from_file_location("autoscale_table", FOLDER / "gradients" / "table.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    for name in set(sys.modules) - known:
        if str(FOLDER) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def _rows(network: str, transform: str, accuracies: list[float], correlation: float = -0.7) -> list[dict[str, Any]]:
    return [
        {"network": network, "transform": transform, "seed": 10 + at, "test_accuracy": accuracy, "steps": 700,
         "rank_correlation": correlation, "tenths": [2.0, 1.0], "ratio_of_layers": 20.0}
        for at, accuracy in enumerate(accuracies)
    ]  # fmt: skip


def test_contrasts_are_paired_by_seed_and_corrected_for_all_of_the_file(page: Any) -> None:
    rows = _rows("cifar10-fast", "none", [0.93, 0.94, 0.92]) + _rows("cifar10-fast", "autoscale", [0.94, 0.951, 0.929])
    assert page.gaps(rows, "cifar10-fast", "autoscale") == pytest.approx([0.01, 0.011, 0.009])
    # t = 0.01 / (0.001 / sqrt 3) = 17.3 with two degrees of freedom, p 0.0033, times the two contrasts of the file
    assert page.chances(rows, "cifar10-fast") == {"autoscale": pytest.approx(0.00664, abs=2e-4)}
    assert "+1.00 ± 0.25 | 0.007 | holds |" in page.accuracy(rows)


def test_fewer_than_three_seeds_are_not_judged(page: Any) -> None:
    rows = _rows("cifar100-resnet20", "none", [0.4, 0.41]) + _rows("cifar100-resnet20", "autoscale", [0.5, 0.51])
    assert page.chances(rows, "cifar100-resnet20") == {}
    assert page.accuracy(rows).endswith("| not judged |")
    assert page.moves(rows).count("not judged") == 2


def test_the_deviation_falls_only_where_every_seed_says_so(page: Any) -> None:
    assert "| holds | 20, 20, 20 | holds |" in page.moves(_rows("cifar10-fast", "none", [0.9] * 3))
    mixed = _rows("cifar10-fast", "none", [0.9] * 2) + _rows("cifar10-fast", "none", [0.9], correlation=-0.4)
    assert "| does not hold | 20, 20, 20 | holds |" in page.moves(mixed)
    steps = pd.DataFrame(
        {"kind": "gradients", "layer": "(global)", "step": range(20), "std": [20.0 - at for at in range(20)]}
    )
    assert page.tenths(steps) == [19.5, 1.5]
