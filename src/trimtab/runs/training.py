"""Train one recipe into one run folder; killed and resumed equals uninterrupted.

The parts: `loading` (data, network, batches), `parallel` (devices), `steering` (optimizer and levers), `stepper` (one step),
`watching` (what is tracked), `position` (where it stands), `training_run` (they put together), `saving`, `stopping`.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

from trimtab.observe.sinks import check_sink
from trimtab.runs.parallel import launch
from trimtab.runs.position import Progress
from trimtab.runs.recipe import Recipe
from trimtab.runs.run_folder import RunFolder
from trimtab.runs.saving import begin, finish, resume, save
from trimtab.runs.sinking import sinking
from trimtab.runs.stopping import stop_between_steps
from trimtab.runs.training_run import TrainingRun


def train(
    recipe: Recipe,
    path: Path,
    report: Callable[[Progress], None] | None = None,
    tell: Callable[[str], None] | None = None,
    prepare: Callable[[TrainingRun], None] | None = None,
) -> RunFolder:
    """Train `recipe` into the run folder `path`; go on where a checkpoint lies; do nothing when it is finished.

    Args:
        recipe: what to do.
        path: the run folder, created when absent.
        report: called during training with the `Progress`.
        tell: called before it, on the first process, with each line that a lever has to say of the run to come.
        prepare: called with the run before its first step and before a checkpoint is read: to start from other weights.

    Returns:
        The run folder.

    Raises:
        ValueError: the folder holds a run of another recipe, or data or network do not fit.
        FloatingPointError: the loss is not finite; the last checkpoint stays.
        KeyboardInterrupt: Ctrl-C; a checkpoint was written, calling again goes on from it.
    """
    folder = RunFolder(path)
    devices = launch(recipe)
    folder.check(recipe)
    if folder.finished:
        return folder
    for name in recipe.sink:
        check_sink(name)
    run = TrainingRun(recipe, folder, devices)  # before anything is written: bad input leaves nothing behind
    if prepare is not None:
        prepare(run)
    with folder.alone() if devices.rank == 0 else nullcontext():
        _train(run, report or (lambda progress: None), tell or (lambda line: None))
    devices.barrier()
    return folder


def _train(run: TrainingRun, report: Callable[[Progress], None], tell: Callable[[str], None]) -> None:
    recipe, position = run.recipe, run.position
    resume(run)
    run.devices.barrier()
    begin(run)
    lines = run.steering.outlook(run.stepper.remaining(position.step))  # on all: sharded weights are looked at together
    for line in lines if run.devices.rank == 0 else ():
        tell(line)

    def told(progress: Progress) -> None:
        sinks.progress(progress)
        report(progress)

    with sinking(run) as sinks, stop_between_steps() as stop, run.watching.rows_kept(run.steering.handle.levers):
        while position.epoch < recipe.epochs:
            complete = run.run_epoch(stop, told)
            if not complete or run.devices.any_rank(stop.asked):
                save(run, status="interrupted")
                raise KeyboardInterrupt(f"stopped after epoch {position.epoch}; run the same command again to go on")
            sinks.epoch(position.rows[-1], position.step)
            if position.epoch % recipe.checkpoint_every == 0 and position.epoch < recipe.epochs:
                save(run)
        finish(run)


__all__ = ["Progress", "train"]
