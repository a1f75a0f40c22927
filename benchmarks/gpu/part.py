"""What every part does alike: rows that are written as they come, groups that fail alone, a deadline, a device.

Needs the standard library alone, so that a part can say that torch is missing.
"""

from __future__ import annotations

import argparse
import importlib
import json
import operator
import os
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROWS = "rows.jsonl"
REPOSITORY = Path(__file__).resolve().parents[2]
COMPARISONS = {"<=": operator.le, ">=": operator.ge, "==": operator.eq}


def meets(value: float, bar: str) -> bool:
    """Whether `value` keeps a bar such as "<= 1.05"."""
    sign, number = bar.split()
    kept: bool = COMPARISONS[sign](value, float(number))
    return kept


def rounded(value: float) -> float:
    """Six significant digits."""
    return float(f"{value:.6g}")


@dataclass
class Part:
    """One part of the whole: where it writes, how long it may take, how large it is."""

    name: str
    folder: Path
    seconds: float
    dry: bool = False
    data: Path | None = None

    def __post_init__(self) -> None:
        self.begun = time.monotonic()
        self.folder.mkdir(parents=True, exist_ok=True)

    @property
    def left(self) -> float:
        """Seconds until this part must have ended."""
        return self.seconds - (time.monotonic() - self.begun)

    @property
    def device(self) -> Any:
        """The CPU in a dry run, else the first GPU."""
        import torch

        return torch.device("cpu" if self.dry else "cuda")

    def row(self, question: str, value: float | None = None, bar: str | None = None, **more: Any) -> None:
        """Write one result at once; a bar is judged unless the run is dry, whose sizes say nothing."""
        row: dict[str, Any] = {"question": question}
        if value is not None:
            row["value"] = rounded(value)
        if bar is not None:
            row["bar"] = bar
            row["met"] = None if self.dry or value is None else meets(value, bar)
        row |= {key: rounded(item) if isinstance(item, float) else item for key, item in more.items()}
        with (self.folder / ROWS).open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
            file.flush()
            os.fsync(file.fileno())
        print(json.dumps(row), flush=True)

    def group(self, label: str, target: str | Callable[[Part], None], least: float = 0.0) -> None:
        """Call `target` (a function of the part, or "module:function"); what fails in it is a row, and the part goes on.

        Args:
            label: names the group in a row that says why it has no figures.
            target: imported here when it is a string, so that a missing package costs this group alone.
            least: seconds that must be left for it to begin.
        """
        if self.left < least:
            return self.row(label, left_out=f"{self.left:.0f} s were left, it needs {least:.0f}")
        try:
            if isinstance(target, str):
                module, _, name = target.partition(":")
                target = getattr(importlib.import_module(module), name)
            target(self)  # type: ignore[operator]
        except ImportError as error:
            traceback.print_exc()
            self.row(label, missing=error.name or str(error))
        except Exception as error:
            traceback.print_exc()
            self.row(label, error=f"{type(error).__name__}: {str(error)[:500]}")
        finally:
            self.clean()
        return None

    @staticmethod
    def clean() -> None:
        """Give cached device memory back and start counting its peak anew."""
        torch = sys.modules.get("torch")
        if torch is not None and torch.cuda.is_available():
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()


def start(name: str, main: Callable[[Part], None]) -> None:
    """Run a part as a script of its own: `python benchmarks/gpu/NAME.py --folder DIR [--seconds N] [--dry] [--data NPZ]`.

    Exit code 3: a package is missing, which a row names.
    """
    parser = argparse.ArgumentParser(prog=name, description=(main.__module__ and sys.modules[main.__module__].__doc__))
    parser.add_argument("--folder", type=Path, required=True, help="where its results go")
    parser.add_argument("--seconds", type=float, default=120.0, help="how long it may take")
    parser.add_argument("--dry", action="store_true", help="on the CPU at toy size")
    parser.add_argument("--data", type=Path, help="the npz that data.py makes")
    given = parser.parse_args()
    sys.path[:0] = [path for path in (str(REPOSITORY / "src"),) if path not in sys.path]
    part = Part(name, given.folder, given.seconds, given.dry, given.data)
    try:
        main(part)
    except ImportError as error:
        traceback.print_exc()
        part.row(name, missing=error.name or str(error))
        sys.exit(3)
