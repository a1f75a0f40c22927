"""A training run in a folder: started, resumed, finished."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from trimtab.files import write_text
from trimtab.inputs import named, read_json_mapping
from trimtab.levers import Lever
from trimtab.medclm.boxes import boxes_of
from trimtab.medclm.building import DataSetFolder
from trimtab.medclm.training.models import gathered, load, rebuilt, save
from trimtab.medclm.training.options import TrainOptions
from trimtab.medclm.training.pretrain import PretrainOptions, pretrain
from trimtab.medclm.training.rows import RowData, as_written, asked_plainly, examples_of
from trimtab.observe import GradientTracker


def train(
    data: Path,
    out: Path,
    options: TrainOptions,
    levers: Sequence[Lever] = (),
    tracker: GradientTracker | None = None,
    progress: Callable[[int, int, float | None], None] | None = None,
    made_with: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Train on the train split of a built data set; an interrupted run goes on, a finished one is returned as it is.

    The tower of tiny-llava is pretrained first, in OUT/pretrain, unless `options` names a finished one or wants none.
    Leaves `run.json` (options, state, seconds), `stages.jsonl` (decisions), `losses.jsonl`, `history.jsonl` (the Trainer's
    log), `model/` (weights and processor as transformers reads them) and `checkpoints/`.

    Args:
        data: folder of `trimtab medclm build`.
        out: folder of the run.
        options: of the run.
        levers, tracker: Trimtab's levers and tracker.
        made_with: when and on what, kept in `run.json` as given.
        progress: called with (step, steps, loss or None).

    Returns:
        What `run.json` holds.

    Raises:
        ValueError: `out` holds a run with other options, other data, other levers or another number of processes; the tower
            cannot be pretrained on this set (see `pretrain`); boxes in the model's own way where that is not known.
    """
    folder = DataSetFolder(data)
    examples = asked_plainly(examples_of(folder, ["train"]), options.plain, options.seed)
    file = out / "run.json"
    wanted = {
        "options": asdict(options), "data": str(data), "levers": [repr(lever) for lever in levers],
        "processes": int(os.environ.get("WORLD_SIZE", "1")),
    }  # fmt: skip
    if file.is_file():
        found: dict[str, Any] = {"processes": 1, **read_json_mapping(file)}
        with named(file):
            there, state = {**asdict(TrainOptions()), **found["options"]}, found["state"]
        found["options"] = there  # an option that did not exist yet had the value that it has when it is not given
        if any(found.get(key) != value for key, value in wanted.items()):
            changed = [key for key, value in asdict(options).items() if there.get(key) != value]
            what = ", ".join(changed) or "data, levers or number of processes"
            raise ValueError(f"{out} holds a run with other settings ({what}); choose another --out")
        if state == "finished":
            return found
    from transformers import TrainerCallback
    from transformers.trainer_utils import get_last_checkpoint
    from transformers.utils.logging import disable_progress_bar

    from trimtab.medclm.training.trainer import CurriculumTrainer  # a class of trl's, which takes seconds to import

    class Shown(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
            if progress is not None:
                last = next((line["loss"] for line in reversed(state.log_history) if "loss" in line), None)
                progress(state.global_step, state.max_steps, last)

    disable_progress_bar()
    tower = tower_of(data, out, options)
    model, processor = load(options, examples, tower)
    if options.boxes == "model":
        examples = as_written(folder, examples, boxes_of(model, processor))
    trainer = CurriculumTrainer(
        model, processor, RowData(examples, draw_boxes=options.draw_boxes), options, out, levers, tracker, [Shown()]
    )
    main = trainer.is_world_process_zero()
    checkpoints = out / "checkpoints"
    last = get_last_checkpoint(str(checkpoints)) if checkpoints.is_dir() else None
    if main:
        write_text(file, json.dumps({**wanted, "state": "running"}, indent=1) + "\n")
        if last is None:
            trainer.course.write()
    start = time.perf_counter()
    trainer.train(resume_from_checkpoint=last)
    seconds = time.perf_counter() - start
    state = gathered(trainer.model) if options.fsdp else None
    if main:
        whole = trainer.accelerator.unwrap_model(trainer.model) if state is None else rebuilt(options, examples, state)
        save(whole, processor, out / "model")
        lines = [json.dumps(line) for line in trainer.state.log_history]
        write_text(out / "history.jsonl", "\n".join(lines) + "\n")
        trainer.course.write()
        done = {
            **wanted, "state": "finished", "seconds": round(seconds, 2), "resumed": last is not None,
            "steps": trainer.state.global_step, "rows": len(examples),
            "parameters": sum(p.numel() for p in model.parameters()),
            **(made_with or {}),
        }  # fmt: skip
        write_text(file, json.dumps(done, indent=1) + "\n")
    trainer.accelerator.wait_for_everyone()  # the others read what the first process wrote
    return read_json_mapping(file)


def tower_of(
    data: Path,
    out: Path,
    options: TrainOptions,
    progress: Callable[[int, int, float | None], None] | None = None,
) -> Path | None:
    """Folder of the pretrained tower of a run, made by the first process if it has to be made; None for none.

    Args:
        data, out, options: of the run.
        progress: called with (epoch, epochs, loss).

    Raises:
        ValueError, FileNotFoundError: see `pretrain`.
    """
    if options.tower:
        return Path(options.tower) / "tower"
    if not options.tower_epochs:
        return None
    from accelerate import PartialState

    with PartialState(cpu=not torch.cuda.is_available()).main_process_first():
        pretrain(data, out / "pretrain", PretrainOptions(epochs=options.tower_epochs, seed=options.seed), progress)
    return out / "pretrain" / "tower"
