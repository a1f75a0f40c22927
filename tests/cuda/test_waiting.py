"""What must not wait for the device does not: torch itself raises where the processor would."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

import pytest
import torch

import trimtab
from tests.cuda.network import batch, network
from trimtab.observe import GradientTracker


@contextmanager
def no_waiting(device: torch.device) -> Iterator[None]:
    """Inside, an operation that synchronises with the GPU raises RuntimeError; on a CPU nothing is checked."""
    if device.type == "cpu":
        yield
        return
    torch.cuda.synchronize(device)
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def step_of(device, *levers):
    model = network(device)
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9, fused=True)
    trimtab.attach(optimizer, *levers, model=model)
    images, labels = batch(device)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        torch.nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()

    return step


def test_waiting_is_noticed(gpu):
    """The instrument itself: reading a number from the device raises."""
    with pytest.raises(RuntimeError, match="synchroniz"), no_waiting(gpu):
        torch.ones(2, device=gpu).sum().item()


@pytest.mark.parametrize("track", [("gradients",), ("gradients", "weights", "updates")])
def test_a_tracked_step_between_flushes_does_not_wait(track, device):
    tracker = GradientTracker(track, capacity=8)
    step = step_of(device, tracker)
    step()  # layouts are made at the first one
    with no_waiting(device):
        for _ in range(5):
            step()
    assert tracker.step == 6
    if find_spec("pyarrow") is not None:  # a table may wait
        assert {row["step"] for row in tracker.table().to_pylist()} == set(range(6))


def test_var_does_not_wait(device):
    step = step_of(device, trimtab.penalties.VarianceAmplifier(1e-4))
    step()
    with no_waiting(device):
        for _ in range(5):
            step()


def test_pinned_images_are_copied_while_the_processor_goes_on(gpu):
    images = torch.randn(64, 3, 32, 32).pin_memory()
    with no_waiting(gpu):
        there = images.to(gpu, non_blocking=True)
    assert torch.equal(there.cpu(), images)
