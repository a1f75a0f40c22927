"""The folder that a training run leaves: recipe, metrics, checkpoint, pruning rows; resumable at any time."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from trimtab.experiments.checkpoint import load_checkpoint, save_checkpoint
from trimtab.experiments.recipe import Recipe, load_recipe
from trimtab.files import write_text

# Fields that say where, how often and what is watched, not which network: a run may be resumed with other values.
INCIDENTAL = {
    "name", "device", "strategy", "checkpoint_every", "validate_every", "track", "track_every", "track_curvature_every",
    "track_curvature_batch", "pruning",
}  # fmt: skip


def training_identity(recipe: Recipe) -> dict[str, Any]:
    """The part of a recipe that decides which network comes out."""
    from trimtab.experiments.methods import METHODS, TRANSFORMS

    data = recipe.model_dump(mode="json", exclude=INCIDENTAL)
    data["data"].pop("root")
    data["precision"].pop("meter_every")
    method = METHODS[recipe.method]
    penalties_and_wrappers = {"var", "l1", "hoyer", "sam", "asam", "cram"} - set(method.sections)
    for section in penalties_and_wrappers | (set(TRANSFORMS) - set(recipe.transforms)):
        data.pop(section)  # unread by this run
    return data


@dataclass(frozen=True)
class RunFolder:
    """Paths and files of one run.

    `recipe.yaml` (resolved), `run.json` (status, versions, hardware, timing), `metrics.jsonl` (one line per epoch),
    `model.safetensors` (the trained network), `checkpoint.safetensors` (everything to go on), `pruning.json`; of a tracked
    run `gradients.parquet` and `signals.parquet`; of one that rounds to a number format `shrinkage.parquet`.
    """

    path: Path

    @property
    def recipe_file(self) -> Path:
        """Resolved recipe."""
        return self.path / "recipe.yaml"

    @property
    def checkpoint_file(self) -> Path:
        """Model, optimizer, levers, random state and position."""
        return self.path / "checkpoint.safetensors"

    @property
    def model_file(self) -> Path:
        """State dict of the trained network, plain safetensors."""
        return self.path / "model.safetensors"

    @property
    def metrics_file(self) -> Path:
        """One JSON line per epoch."""
        return self.path / "metrics.jsonl"

    @property
    def gradients_folder(self) -> Path:
        """Parts of the tracker's table, where the run was tracked."""
        return self.path / "gradients.parquet"

    @property
    def signals_folder(self) -> Path:
        """What the transforms reported at the tracked steps."""
        return self.path / "signals.parquet"

    @property
    def shrinkage_folder(self) -> Path:
        """What rounding did to gradients, weights and momentum at the metered steps."""
        return self.path / "shrinkage.parquet"

    @property
    def recipe(self) -> Recipe:
        """The recipe this folder was made from; ValueError when it is not a run folder."""
        if not self.recipe_file.is_file():
            raise ValueError(f"{self.path} is not a run folder: it holds no recipe.yaml")
        return load_recipe(self.recipe_file)

    def check(self, recipe: Recipe) -> None:
        """Refuse to mix runs.

        Raises:
            ValueError: the folder holds work of a different recipe; the message names the fields that differ.
        """
        if self.recipe_file.is_file() and (self.checkpoint_file.is_file() or self.model_file.is_file()):
            old, new = training_identity(self.recipe), training_identity(recipe)
            differing = sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))
            if differing:
                changes = "; ".join(f"{key}: {old.get(key)!r} there, {new.get(key)!r} now" for key in differing)
                raise ValueError(f"{self.path} holds a run of another recipe ({changes}); choose another folder")

    def open(self, recipe: Recipe) -> None:
        """Create the folder and write the resolved recipe."""
        self.path.mkdir(parents=True, exist_ok=True)
        recipe.write(self.recipe_file)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keep other processes out of the folder while training into it; the system frees the lock of a killed process.

        Raises:
            ValueError: another process is training into this folder.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(self.path / ".lock", timeout=0):
                yield
        except Timeout:
            raise ValueError(
                f"another process is training into {self.path}; wait for it, or choose another folder"
            ) from None

    def info(self) -> dict[str, Any]:
        """Contents of `run.json`, empty before the first checkpoint."""
        file = self.path / "run.json"
        if not file.is_file():
            return {}
        try:
            data: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        except json.JSONDecodeError as error:
            raise ValueError(f"{file} is damaged: {error}") from error
        return data

    def write_info(self, **changes: Any) -> None:
        """Merge `changes` into `run.json`."""
        write_text(self.path / "run.json", json.dumps({**self.info(), **changes}, indent=1) + "\n")

    @property
    def finished(self) -> bool:
        """Whether training came to its end."""
        return self.info().get("status") == "finished" and self.model_file.is_file()

    def metrics(self) -> list[dict[str, Any]]:
        """Rows of `metrics.jsonl`."""
        if not self.metrics_file.is_file():
            return []
        rows = []
        for number, line in enumerate(self.metrics_file.read_text(encoding="utf-8").splitlines(), 1):
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError as error:
                raise ValueError(f"{self.metrics_file}, line {number} is damaged: {error}") from error
        return rows

    def write_metrics(self, rows: Iterable[dict[str, Any]]) -> None:
        """Replace `metrics.jsonl`."""
        write_text(self.metrics_file, "".join(json.dumps(row) + "\n" for row in rows))

    def save_checkpoint(self, state: dict[str, Any]) -> None:
        """Replace the checkpoint, atomically."""
        save_checkpoint(self.checkpoint_file, state)

    def load_checkpoint(self) -> dict[str, Any] | None:
        """The checkpoint, or None before the first."""
        return load_checkpoint(self.checkpoint_file) if self.checkpoint_file.is_file() else None
