"""What the experiments of this folder share: figures of three seeds, kept beside the page and printed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

FOLDER = Path(__file__).parents[2] / "docs" / "evidence"


def file_of(name: str) -> Path:
    """Where the figures of an experiment are kept."""
    return FOLDER / f"levers-{name}.json"


def measure(name: str, figures: Callable[[int], dict[str, float]], digits: int) -> None:
    """Measure three seeds, keep and print them."""
    rows = [figures(seed) for seed in range(3)]
    file_of(name).write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    for key in rows[0]:
        print(key, [round(row[key], digits) for row in rows])
