"""The CUDA half: on the GPU where there is one, on the CPU when TRIMTAB_TEST_DEVICE=cpu asks for it, else skipped."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch

VARIABLE = "TRIMTAB_TEST_DEVICE"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test of this folder `cuda`."""
    for item in items:
        if "tests/cuda/" in item.nodeid:
            item.add_marker(pytest.mark.cuda)


@pytest.fixture
def device() -> torch.device:
    """Where the tests run."""
    wanted = os.environ.get(VARIABLE, "cuda")
    if wanted not in ("cpu", "cuda"):
        raise ValueError(f"{VARIABLE} must be cpu or cuda, got {wanted!r}")
    if wanted == "cuda" and not torch.cuda.is_available():
        pytest.skip(f"torch sees no GPU; {VARIABLE}=cpu runs the same on the CPU")
    return torch.device(wanted)


@pytest.fixture
def gpu(device: torch.device) -> torch.device:
    """The GPU, for what a CPU does not have."""
    if device.type != "cuda":
        pytest.skip("only a GPU has this")
    return device


@pytest.fixture(autouse=True)
def _exact_arithmetic() -> Iterator[None]:
    """float32 means float32: no TF32, the same kernels every time."""
    matmul, convolution = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = matmul, convolution
