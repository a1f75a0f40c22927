"""Shared by every test: one thread, a fixed seed, no leftover state."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.here_and_now import in_this_process

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(autouse=True)
def _quiet_and_seeded() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


@pytest.fixture
def here_and_now() -> Iterator[None]:
    """The runs of a study are done in this process."""
    with in_this_process():
        yield


@pytest.fixture
def shared_data() -> Path:
    """The folder of real data beside the project; the test skips where it is absent."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"real data not present at {SHARED_DATA.name}/ beside the project")
    return SHARED_DATA
