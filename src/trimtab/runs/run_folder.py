"""The folder that a training run leaves: recipe, metrics, checkpoint, pruning rows; resumable at any time."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trimtab.files import alone, write_text
from trimtab.inputs import read_json_lines, read_json_mapping, shortened
from trimtab.registry import find, settings_name
from trimtab.runs.checkpoint import load_checkpoint, save_checkpoint
from trimtab.runs.precision_section import OF_PRODUCTS
from trimtab.runs.recipe import SECTIONS, Recipe, load_recipe

STATUSES = ("running", "interrupted", "finished")
# Fields that say where, how often and what is watched, not which network: a run may be resumed with other values.
INCIDENTAL = {
    "name", "device", "strategy", "checkpoint_every", "validate_every", "views", "track", "track_every",
    "track_curvature_every", "sink", "track_curvature_batch", "pruning", "track_bearing_every", "track_bearing_images",
    "track_bearing_sparsities", "track_bearing_bits",
}  # fmt: skip


def training_identity(recipe: Recipe) -> dict[str, Any]:
    """The part of a recipe that decides which network comes out."""
    data = recipe.model_dump(
        mode="json", exclude=INCIDENTAL | {"method", "levers", "transforms", "optimizer", "suffixed"}
    )
    data["data"].pop("root")
    for field in ("meter_every", "oscillation", *(() if recipe.precision.matmul is not None else OF_PRODUCTS)):
        data["precision"].pop(field)
    read = {settings_name(name) for name in recipe.used}
    for name in SECTIONS.keys() - read:
        data.pop(name)  # unread by this run
    data["levers"] = list(recipe.used)
    if any(hasattr(find(name).load(), "needs_recalibration") for name in recipe.used):  # at the end of training
        data["pruning.recalibrate_batches"] = recipe.pruning.recalibrate_batches
    data |= recipe.suffixed
    return data


def changed(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """Which fields differ, with both values; empty when none does.

    Example:
        >>> changed({"seed": 0, "epochs": 2}, {"seed": 1, "epochs": 2})
        'seed: 0 there, 1 now'
    """
    differing = sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))
    return "; ".join(f"{key}: {old.get(key)!r} there, {new.get(key)!r} now" for key in differing)


def marked(path: Path, recipe: Recipe) -> Path:
    """`path` with a mark of the recipe in its name: the same for the same recipe, another for any other.

    Example:
        >>> marked(Path("runs/digits"), Recipe()) == marked(Path("runs/digits"), Recipe(name="other", device="cpu"))
        True
        >>> marked(Path("runs/digits"), Recipe()) == marked(Path("runs/digits"), Recipe(epochs=3))
        False
    """
    text = json.dumps(training_identity(recipe), sort_keys=True)
    return path.with_name(f"{path.name}-{hashlib.sha256(text.encode()).hexdigest()[:8]}")


@dataclass(frozen=True)
class RunFolder:
    """Paths and files of one run.

    `recipe.yaml` (resolved), `run.json` (status, versions, hardware, timing), `metrics.jsonl` (one line per epoch),
    `model.safetensors` (the trained network), `checkpoint.safetensors` (everything to go on), `pruning.json`; of a tracked
    run `gradients.parquet` and `signals.parquet`; of a guarded one `alarms.jsonl`; of one that rounds to a number format
    `shrinkage.parquet`.
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
    def alarms_file(self) -> Path:
        """One JSON line per alarm of a guard."""
        return self.path / "alarms.jsonl"

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
        if changes := self.differs(recipe):
            raise ValueError(f"{self.path} holds a run of another recipe ({changes}); choose another folder")

    def differs(self, recipe: Recipe) -> str:
        """In which fields the recipe of the work that lies here differs from `recipe`; empty for none, or no work."""
        if not self.recipe_file.is_file() or not (self.checkpoint_file.is_file() or self.model_file.is_file()):
            return ""
        return changed(training_identity(self.recipe), training_identity(recipe))

    def open(self, recipe: Recipe) -> None:
        """Create the folder and write the resolved recipe."""
        self.path.mkdir(parents=True, exist_ok=True)
        recipe.write(self.recipe_file)

    def alone(self) -> AbstractContextManager[None]:
        """Keep other processes out of the folder while training into it; ValueError when one is at it."""
        return alone(self.path, "training into")

    def info(self) -> dict[str, Any]:
        """Contents of `run.json`, empty before the first checkpoint."""
        file = self.path / "run.json"
        return read_json_mapping(file) if file.is_file() else {}

    def write_info(self, **changes: Any) -> None:
        """Merge `changes` into `run.json`."""
        write_text(self.path / "run.json", json.dumps({**self.info(), **changes}, indent=1) + "\n")

    @property
    def finished(self) -> bool:
        """Whether training came to its end.

        Raises:
            ValueError: `run.json` is damaged or holds no known status.
        """
        info = self.info()
        status = info.get("status")
        if info and status not in STATUSES:
            raise ValueError(
                f"{self.path / 'run.json'} is damaged: status must be one of {', '.join(STATUSES)}, "
                f"got {shortened(status, 40)!r}"
            )
        return status == "finished" and self.model_file.is_file()

    def metrics(self) -> list[dict[str, Any]]:
        """Rows of `metrics.jsonl`."""
        return read_json_lines(self.metrics_file) if self.metrics_file.is_file() else []

    def write_alarms(self, alarms: Iterable[Mapping[str, Any]]) -> None:
        """Replace `alarms.jsonl`; what is not finite becomes null."""
        rows = [
            {
                key: None if isinstance(value, float) and not math.isfinite(value) else value
                for key, value in row.items()
            }
            for row in alarms
        ]
        write_text(self.alarms_file, "".join(json.dumps(row) + "\n" for row in rows))

    def alarms(self) -> list[dict[str, Any]]:
        """The alarms of a guarded run, in order; none where there were none."""
        return read_json_lines(self.alarms_file) if self.alarms_file.is_file() else []

    def write_metrics(self, rows: Iterable[dict[str, Any]]) -> None:
        """Replace `metrics.jsonl`."""
        write_text(self.metrics_file, "".join(json.dumps(row) + "\n" for row in rows))

    def save_checkpoint(self, state: dict[str, Any]) -> None:
        """Replace the checkpoint, atomically."""
        save_checkpoint(self.checkpoint_file, state)

    def load_checkpoint(self) -> dict[str, Any] | None:
        """The checkpoint, or None before the first."""
        return load_checkpoint(self.checkpoint_file) if self.checkpoint_file.is_file() else None
