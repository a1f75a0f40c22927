"""What MedCLM's commands leave, read for a page."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from trimtab.inputs import named, read_json_lines, read_json_mapping


def _finite(part: Any) -> Any:
    """`part` with None for each number that is not finite: a loss that diverged is a gap in its curve."""
    if isinstance(part, dict):
        return {key: _finite(value) for key, value in part.items()}
    if isinstance(part, list):
        return [_finite(value) for value in part]
    return None if isinstance(part, float) and not math.isfinite(part) else part


def lines_in(file: Path) -> list[dict[str, Any]]:
    """The lines of a JSON lines file; none where it is missing."""
    if not file.is_file():
        return []
    with named(file):
        return [_finite(line) for line in read_json_lines(file)]


def mapping_in(file: Path) -> dict[str, Any]:
    """The mapping in a JSON file."""
    with named(file):
        return dict(_finite(read_json_mapping(file)))
