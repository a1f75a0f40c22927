"""A run on disk: its checkpoint, from which killed and resumed equals uninterrupted, and the trained network."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch

from trimtab.inputs import named
from trimtab.runs.checkpoint import save_network
from trimtab.runs.loading import build_model, in_memory_order
from trimtab.runs.machine import hardware, versions
from trimtab.runs.training_run import TrainingRun

ALSO_TOLD = ("views", "validation_accuracy_views", "validation_bits_per_byte", "validation_perplexity")
"""What `run.json` has of the last epoch where it was measured."""


def begin(run: TrainingRun) -> None:
    """Open the folder and write what it is a run of; on rank 0."""
    if run.devices.rank != 0:
        return
    run.folder.open(run.recipe)
    run.folder.write_info(
        status="running",
        versions=versions(),
        hardware=hardware(),
        images={split: len(getattr(run.data, split)) for split in ("train", "validation", "test")},
        task=run.data.task,
        classes=run.data.num_classes,
        chance=run.data.chance,
        notes=list(run.data.notes),
        **({} if run.watching.bearing is None else {"bearing": asdict(run.watching.bearing.plan)}),
    )


def resume(run: TrainingRun) -> None:
    """Take over the folder's checkpoint, if there is one.

    Raises:
        ValueError: it is damaged, of another network, or was left by another number of processes.
    """
    folder, devices = run.folder, run.devices
    state = folder.load_checkpoint()
    if state is None:
        return
    if state.get("world_size") != devices.world_size:
        raise ValueError(
            f"{folder.checkpoint_file} was left by {state.get('world_size')} process(es), this run has "
            f"{devices.world_size}; the batches would differ, so go on with as many or choose another folder"
        )
    with named(folder.checkpoint_file, "does not fit this run"):
        _take_over(run, state)


def _take_over(run: TrainingRun, state: dict[str, Any]) -> None:
    run.devices.load_model_and_optimizer(run.model, run.steering.optimizer, state)
    run.steering.handle.load_state_dict(state["levers"])
    if run.devices.scaler is not None:
        run.devices.scaler.load_state_dict(state["scaler"])
    run.position.restore(state)
    run.watching.restore(state.get("tracker"), run.position.step)


def save(run: TrainingRun, **info: str) -> None:
    """Write a checkpoint, the metrics so far, and `info` into `run.json`."""
    devices = run.devices
    state = devices.model_and_optimizer_state(run.model, run.steering.optimizer)
    state |= {
        "levers": run.steering.handle.state_dict(),
        "tracker": run.watching.state(),
        "scaler": devices.scaler.state_dict() if devices.scaler is not None else None,
        "world_size": devices.world_size,
    }
    state |= run.position.state(devices.world_size)
    if devices.rank == 0:
        run.folder.save_checkpoint(state)
        run.folder.write_metrics(run.position.rows)
        if info:
            run.folder.write_info(**info)


def finish(run: TrainingRun) -> None:
    """Write the trained network and mark the run as finished."""
    save(run)
    told = run.steering.describe()
    model = run.devices.whole_model(run.model, lambda: build_model(run.recipe, run.data))
    if run.devices.rank == 0:
        in_memory_order(model, torch.contiguous_format)
        save_network(run.folder.model_file, model)
        position, last = run.position, run.position.rows[-1]
        run.folder.write_info(
            status="finished",
            steps=position.step,
            epochs=position.epoch,
            train_seconds=position.train_seconds,
            process_seconds=position.process_seconds,
            step_seconds=position.median_step_seconds,
            train_loss=last["train_loss"],
            validation_accuracy=last["validation_accuracy"],
            **{name: last[name] for name in ALSO_TOLD if name in last},
            **({"levers": told} if told else {}),
        )
