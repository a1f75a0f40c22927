"""What runs have come to so far, read anew from their folders."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from trimtab.inputs import damage, shortened
from trimtab.report.palette import looks
from trimtab.runs.run_folder import RunFolder
from trimtab.studies.fine_tuning import is_fine_tuned
from trimtab.studies.gradients.dynamics import run_dynamics
from trimtab.studies.plan import PlannedRun, planned_runs
from trimtab.studies.statistics import baseline_of
from trimtab.studies.variants import run_label

TITLES = {
    "train_loss": "training loss", "validation_accuracy": "validation accuracy",
    "validation_bits_per_byte": "validation bits per byte", "validation_perplexity": "validation perplexity",
    "validation_loss": "validation loss", "gradient_std": "standard deviation of the gradients", "lr": "learning rate",
}  # fmt: skip
"""Measures that most runs have, in the order they are shown; the others stand between, the learning rate last."""
BY_STEP = ("gradient_std",)
LINES = 12
"""Lines kept of an error."""


def _stamp(*paths: Path) -> tuple[tuple[str, int, int], ...]:
    """Changes when one of the files, or one of a folder's files, does."""
    files = [file for path in paths for file in (sorted(path.iterdir()) if path.is_dir() else [path])]
    found = []
    for file in files:
        try:
            state = file.stat()
        except OSError:
            continue
        found.append((file.name, state.st_mtime_ns, state.st_size))
    return tuple(found)


class LiveRuns:
    """The runs at or below a folder; what did not change since the last look is not read again.

    Args:
        root: folder of a run or of a study.

    Example:
        >>> import tempfile
        >>> LiveRuns(Path(tempfile.mkdtemp())).state()["runs"]
        []
    """

    def __init__(self, root: Path) -> None:
        self.root = Path(root)
        self._kept: dict[tuple[str, Path], tuple[Any, Any]] = {}

    def _fresh(self, what: str, path: Path, stamp: Any, read: Callable[[], Any]) -> Any:
        known = self._kept.get((what, path))
        if known is None or known[0] != stamp:
            known = self._kept[what, path] = (stamp, read())
        return known[1]

    def _folders(self) -> dict[Path, PlannedRun | None]:
        planned = planned_runs(self.root)
        found = {file.parent.resolve() for file in self.root.rglob("recipe.yaml") if not is_fine_tuned(file.parent)}
        order = [*planned, *sorted(found - planned.keys())]
        return {path: planned.get(path) for path in order}

    def state(self) -> dict[str, Any]:
        """Every run: label, seed, status, epochs, and its measures over training.

        A run that cannot be read has the status "damaged" and the reason as its note; nothing is raised for it.
        """
        try:
            runs = [self._run(path, plan) for path, plan in self._folders().items()]
            problem = "" if self.root.is_dir() else f"{self.root} is gone"
        except damage() as error:
            runs, problem = [], shortened(str(error), 300)
        labels = [run["label"] for run in runs]
        found = looks(labels, baseline_of(labels)) if labels else {}
        for run in runs:
            run["look"] = {key: getattr(found[run["label"]], key) for key in ("colour", "dash", "marker")}
        names = list(dict.fromkeys(name for run in runs for name in run["measures"]))
        order = [*(name for name in TITLES if name != "lr"), *(name for name in names if name not in TITLES), "lr"]
        measures = [
            {
                "name": name,
                "title": TITLES.get(name, name.replace("_", " ")),
                "axis": "optimizer step" if name in BY_STEP else "epoch",
                "log": name in BY_STEP,
            }
            for name in order
            if name in names
        ]
        return {
            "root": str(self.root), "runs": runs, "measures": measures, "problem": problem,
            "working": any(run["status"] in ("running", "not started") for run in runs),
        }  # fmt: skip

    def _run(self, path: Path, plan: PlannedRun | None) -> dict[str, Any]:
        folder, key = RunFolder(path), path.relative_to(self.root.resolve()).as_posix()
        run: dict[str, Any] = {
            "key": key, "label": plan.label if plan else path.name, "seed": plan.seed if plan else None,
            "status": "not started", "epoch": 0, "epochs": None, "idle": None, "note": "", "measures": {},
        }  # fmt: skip
        try:
            self._fill(run, folder, plan)
        except damage() as error:
            run |= {"status": "damaged", "note": shortened(str(error), 300)}
        return run

    def _fill(self, run: dict[str, Any], folder: RunFolder, plan: PlannedRun | None) -> None:
        if not folder.recipe_file.is_file():
            return
        recipe = self._fresh("recipe", folder.path, _stamp(folder.recipe_file), lambda: folder.recipe)
        epochs, measures = self._fresh("metrics", folder.path, _stamp(folder.metrics_file), lambda: _curves(folder))
        info = self._fresh("info", folder.path, _stamp(folder.path / "run.json"), folder.info)
        last = max(
            file.stat().st_mtime for file in (folder.metrics_file, folder.recipe_file, folder.path) if file.exists()
        )
        run |= {
            "label": plan.label if plan else run_label(recipe), "seed": recipe.seed, "epochs": recipe.epochs,
            "epoch": epochs, "status": str(info.get("status", "running")), "idle": max(0, round(time.time() - last)),
            "measures": dict(measures),
        }  # fmt: skip
        error = folder.path / "error.txt"
        if error.is_file():
            lines = error.read_text(encoding="utf-8", errors="replace").strip().splitlines()
            run |= {"status": "failed", "note": shortened("\n".join(lines[-LINES:]), 600)}
        if folder.gradients_folder.is_dir():
            stamp = _stamp(folder.gradients_folder)
            curve = self._fresh("gradients", folder.path, stamp, lambda: _gradients(folder)) if stamp else None
            if curve is not None:
                run["measures"]["gradient_std"] = curve


def _curves(folder: RunFolder) -> tuple[int, dict[str, dict[str, list[float | None]]]]:
    """How many epochs are done, and their curves."""
    rows = folder.metrics()
    return len(rows), measures_of(rows)


def measures_of(rows: list[dict[str, Any]]) -> dict[str, dict[str, list[float | None]]]:
    """The numbers of `metrics.jsonl` as curves over the epochs; what is not finite is a gap.

    Example:
        >>> measures_of([{"epoch": 1, "loss": 2.0, "note": "x"}, {"epoch": 2, "loss": float("nan")}])
        {'loss': {'x': [1, 2], 'y': [2.0, None]}}
    """
    names = dict.fromkeys(name for row in rows for name, value in row.items() if _is_number(value) and name != "epoch")
    found: dict[str, dict[str, list[float | None]]] = {}
    for name in names:
        points = [(row.get("epoch", at), row[name]) for at, row in enumerate(rows, 1) if _is_number(row.get(name))]
        found[name] = {
            "x": [x for x, _ in points],
            "y": [float(f"{y:.6g}") if math.isfinite(y) else None for _, y in points],
        }
    return found


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _gradients(folder: RunFolder) -> dict[str, list[Any]] | None:
    found = run_dynamics(folder, "")
    return None if found is None else {"x": list(found.steps), "y": [value or None for value in found.std]}
