"""Where a run stands: counted, reported, saved and taken over."""

from __future__ import annotations

import torch

from trimtab.runs.position import Position


def walked() -> Position:
    position = Position(steps_per_epoch=2, device=torch.device("cpu"))
    for loss, seconds in ((1.0, 3.0), (2.0, 1.0)):
        position.stepped(torch.tensor(loss), seconds, 2 * seconds)
    assert position.at_end
    position.end_epoch({"epoch": 1, "validation_accuracy": 0.5})
    position.stepped(torch.tensor(4.0), 2.0)
    return position


def test_steps_are_counted_over_epochs_and_losses_within_one() -> None:
    position = walked()
    assert (position.epoch, position.step_in_epoch, position.step, position.at_end) == (1, 1, 3, False)
    assert position.epoch_loss.item() == 4.0
    assert (position.median_step_seconds, position.train_seconds) == (2.0, 6.0)
    assert position.process_seconds == 8.0
    progress = position.progress(5, 4.0, None)
    assert (progress.step, progress.steps, progress.epoch, progress.validation) == (3, 10, 1, 0.5)


def test_taken_over_it_stands_where_it_stood() -> None:
    state = walked().state(world_size=1)
    other = Position(steps_per_epoch=2, device=torch.device("cpu"))
    other.restore(state)
    assert other.state(world_size=1) == state
