"""How long a training run would take, from a few of its steps in a temporary folder."""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

from trimtab.inputs import named, read_json_mapping
from trimtab.medclm.building import DataSetFolder
from trimtab.medclm.training.options import TINY, TrainOptions
from trimtab.medclm.training.pretrain import PretrainOptions, pretrain
from trimtab.medclm.training.rows import examples_of
from trimtab.medclm.training.run import train

STEPS, EPOCHS, PICTURES = 6, 2, 64
"""Of the trial: optimizer steps and epochs of the scheduler; pictures that the tower is pretrained on."""


@dataclass(frozen=True)
class ForeseenTraining:
    """What a training run would do.

    Attributes:
        rows, pictures: of the training split.
        epochs, epoch_seconds: of the tower's pretraining.
        steps, step_seconds: of the training, from its last checkpoint on.
        state: of the folder: "new", "running" (it would go on) or "finished" (nothing is left to do).
    """

    rows: int
    pictures: int
    epochs: int
    epoch_seconds: float
    steps: int
    step_seconds: float
    state: str


def foresee_training(data: Path, out: Path, options: TrainOptions) -> ForeseenTraining:
    """Run a few steps in a temporary folder.

    Args:
        data, out, options: as for `train`; `out` is only looked at.

    Raises:
        ValueError, FileNotFoundError: as `train` would; a model that is no local folder, since it would be downloaded.
    """
    if options.model != TINY and not Path(options.model).is_dir():
        raise FileNotFoundError(
            f"model {options.model!r} is no folder on this machine: a dry run times steps, and downloads nothing for it"
        )
    folder = DataSetFolder(data)
    rows = len(examples_of(folder, ["train"]))
    state, done = _progress(out)
    pictures = len({row.image_id for row, _ in folder.rows() if row.split == "train"})
    epochs, epoch_seconds = options.tower_epochs, 0.0
    if (out / "pretrain" / "tower").is_dir() or state == "finished":
        epochs = 0
    with tempfile.TemporaryDirectory() as temporary:
        tower = options.tower
        if options.tower_epochs:
            told = _Clock()
            few = PretrainOptions(epochs=2, most=PICTURES, seed=options.seed)
            taught = pretrain(data, Path(temporary) / "tower", few, told)["pictures"]
            tower = str(Path(temporary) / "tower")
            pictures = sum(record.split == "train" for record in folder.records())
            epoch_seconds = told.least * min(pictures, PretrainOptions().most) / taught
        told = _Clock()
        trial = replace(
            options, steps=STEPS, epochs=EPOCHS, save_every=STEPS, pretrain=None if tower or options.model != TINY else 0,
            tower=tower,
        )  # fmt: skip
        train(data, Path(temporary) / "run", trial, progress=told)
    steps = 0 if state == "finished" else options.epoch_steps * options.epochs - done
    return ForeseenTraining(rows, pictures, epochs, epoch_seconds, steps, told.least, state)


class _Clock:
    """The least time between two calls of a progress."""

    def __init__(self) -> None:
        self.least, self._last = float("inf"), time.perf_counter()

    def __call__(self, *_: object) -> None:
        now = time.perf_counter()
        self.least, self._last = min(self.least, now - self._last), now


def _progress(out: Path) -> tuple[str, int]:
    """(state of the run in `out`, steps of its last checkpoint)."""
    if not (out / "run.json").is_file():
        return "new", 0
    with named(out / "run.json"):
        state = str(read_json_mapping(out / "run.json")["state"])
    steps = [int(one.name.rpartition("-")[2]) for one in (out / "checkpoints").glob("checkpoint-*")]
    return state, max(steps, default=0)
