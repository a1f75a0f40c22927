"""Where commands write: results on standard output, what goes on and what went wrong on standard error."""

from __future__ import annotations

import json
from typing import Any

from rich.console import Console

console = Console()
"""Results; silent under --quiet (`parse` sees to it)."""
errors = Console(stderr=True)
"""Errors, warnings and progress."""


def print_json(data: Any) -> None:
    """One JSON document on standard output."""
    print(json.dumps(data, indent=1))
