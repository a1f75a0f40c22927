"""`torchrun` with two processes: DDP and FSDP2 train, leave one whole network, and FSDP2 equals DDP."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file


def torchrun(out: Path, *words: str) -> dict[str, torch.Tensor]:
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "trimtab", "train",
        "digits", "--epochs", "2", "--data.limit-train", "320", "--data.batch-size", "32", "--device", "cpu", "--quiet",
        "--out", str(out), *words,
    ]  # fmt: skip
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    return load_file(out / "model.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize("method", ["var", "sam"])
def test_two_processes_train_alike_replicated_and_sharded(tmp_path: Path, method: str) -> None:
    replicated = torchrun(tmp_path / "ddp", "--method", method)
    sharded = torchrun(tmp_path / "fsdp", "--method", method, "--strategy", "fsdp")
    assert replicated.keys() == sharded.keys()
    for name, tensor in replicated.items():
        assert torch.isfinite(tensor).all()
        torch.testing.assert_close(tensor, sharded[name], rtol=1e-3, atol=1e-4)
