"""A disk that is full: one OSError that names the file, what was there stays whole, and the same call goes on afterwards.

A limit on the size of files stands for the full disk: the system refuses the write in the same way, with its own number.
"""

from __future__ import annotations

import errno
import itertools
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

import trimtab
from tests.medclm.samples import source
from tests.runs.tiny import tiny_recipe
from trimtab.medclm.building import DataSetFolder, build
from trimtab.observe import GradientTracker
from trimtab.runs.checkpoint import load_checkpoint, save_checkpoint
from trimtab.runs.training import train

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="limits of Linux")


@contextmanager
def no_file_beyond(size: int) -> Iterator[None]:
    """Inside, writing more than `size` bytes into a file fails with EFBIG."""
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def refused(caught: pytest.ExceptionInfo[OSError], name: str) -> None:
    assert caught.value.errno == errno.EFBIG
    assert name in str(caught.value)


def no_leavings(folder: Path) -> None:
    assert not [file for file in folder.rglob("*") if file.name.endswith(".part")]


def test_checkpoint(tmp_path: Path) -> None:
    file = tmp_path / "c.safetensors"
    save_checkpoint(file, {"w": torch.ones(4)})
    with no_file_beyond(10_000), pytest.raises(OSError, match="could not write") as caught:
        save_checkpoint(file, {"w": torch.zeros(10_000)})
    refused(caught, file.name)
    assert torch.equal(load_checkpoint(file)["w"], torch.ones(4))
    no_leavings(tmp_path)
    save_checkpoint(file, {"w": torch.zeros(10_000)})
    assert torch.equal(load_checkpoint(file)["w"], torch.zeros(10_000))


def test_training_goes_on_to_the_same_network(tmp_path: Path) -> None:
    recipe = tiny_recipe()
    whole = train(recipe, tmp_path / "whole")
    with no_file_beyond(20_000), pytest.raises(OSError, match="could not write") as caught:
        train(recipe, tmp_path / "run")
    refused(caught, ".safetensors")
    no_leavings(tmp_path / "run")
    again = train(recipe, tmp_path / "run")
    assert again.finished
    assert again.model_file.read_bytes() == whole.model_file.read_bytes()


def test_tracker_keeps_its_rows_until_they_fit(tmp_path: Path) -> None:
    def steps(folder: Path | None, full: bool) -> GradientTracker:
        torch.manual_seed(0)
        model = torch.nn.Linear(5, 3)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        tracker = GradientTracker(folder=folder, capacity=8)
        with trimtab.attach(optimizer, tracker, model=model):
            for step in range(20):
                optimizer.zero_grad()
                model(torch.randn(4, 5)).square().mean().backward()
                if full and step == 15:
                    with no_file_beyond(100), pytest.raises(OSError, match="could not write") as caught:
                        tracker.flush()
                    refused(caught, "part-")
                optimizer.step()
        return tracker

    whole = steps(None, False).table()
    assert steps(tmp_path / "t", True).table().equals(whole)
    assert whole.num_rows == 40
    no_leavings(tmp_path)


@pytest.mark.parametrize("size", [300, 2_000, 6_000])
def test_build_goes_on_to_the_same_set(tmp_path: Path, size: int) -> None:
    options = source(tmp_path / "source", images=6)
    build(options, tmp_path / "whole")
    with no_file_beyond(size), pytest.raises(OSError, match=r"[Ff]ile too large") as caught:
        build(options, tmp_path / "out")
    refused(caught, str(tmp_path / "out"))
    build(options, tmp_path / "out")
    found, whole = (DataSetFolder(tmp_path / name) for name in ("out", "whole"))
    assert found.finished().counts == whole.finished().counts
    pairs = itertools.zip_longest(found.rows(), whole.rows())
    assert all(one == two for one, two in pairs)
    no_leavings(tmp_path / "out")
