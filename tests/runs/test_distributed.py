"""`torchrun` with two processes: DDP and FSDP2 train, leave one whole network, and FSDP2 equals DDP."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.runs.test_groups import fast_recipe
from trimtab.observe import read_table
from trimtab.runs.run_folder import RunFolder
from trimtab.runs.training import train
from trimtab.studies.gradients.dynamics import run_dynamics


def torchrun(out: Path, *words: str, recipe: str = "digits") -> dict[str, torch.Tensor]:
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "trimtab", "train",
        recipe, "--epochs", "2", "--data.limit-train", "320", "--data.batch-size", "32", "--device", "cpu", "--quiet",
        "--out", str(out), *words,
    ]  # fmt: skip
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    return load_file(out / "model.safetensors")


def two_nodes(out: Path, *words: str) -> dict[str, torch.Tensor]:
    """As `torchrun`, on two nodes of one process each that meet on the loopback, as two machines would."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = []
    for rank in (0, 1):
        command = [
            sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--node-rank", str(rank), "--nproc-per-node", "1",
            "--master-addr", "127.0.0.1", "--master-port", str(port), "-m", "trimtab", "train", "digits", "--epochs", "2",
            "--data.limit-train", "320", "--data.batch-size", "32", "--device", "cpu", "--quiet", "--out", str(out), *words,
        ]  # fmt: skip
        processes.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True))
    said = [process.communicate(timeout=600)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], "\n".join(text[-2000:] for text in said)
    return load_file(out / "model.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_nodes_train_the_network_that_two_processes_of_one_train(tmp_path: Path, strategy: str) -> None:
    one = torchrun(tmp_path / "one", "--strategy", strategy)
    two = two_nodes(tmp_path / "two", "--strategy", strategy)
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["var", "sam"])
def test_two_processes_train_alike_replicated_and_sharded(tmp_path: Path, method: str) -> None:
    replicated = torchrun(tmp_path / "ddp", "--method", method)
    sharded = torchrun(tmp_path / "fsdp", "--method", method, "--strategy", "fsdp")
    assert replicated.keys() == sharded.keys()
    for name, tensor in replicated.items():
        assert torch.isfinite(tensor).all()
        torch.testing.assert_close(tensor, sharded[name], rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_groups_that_end_and_a_network_that_starts_from_images_on_two_processes(tmp_path: Path) -> None:
    fast_recipe().write(tmp_path / "fast.yaml")
    found = {
        strategy: torchrun(tmp_path / strategy, "--strategy", strategy, recipe=str(tmp_path / "fast.yaml"))
        for strategy in ("ddp", "fsdp")
    }
    alone = load_file(train(fast_recipe(epochs=2), tmp_path / "alone").model_file)
    assert torch.equal(found["ddp"]["whiten.weight"], alone["whiten.weight"])
    for name, tensor in found["ddp"].items():
        assert torch.isfinite(tensor).all()
        torch.testing.assert_close(tensor, found["fsdp"][name], rtol=1e-3, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_processes_leave_one_set_of_rows(tmp_path: Path, strategy: str) -> None:
    out = tmp_path / strategy
    words = ["--track", "gradients,weights", "--track-every", "3", "--transforms", "autoscale", "--clip-norm", "1"]
    torchrun(out, *words, "--strategy", strategy)
    found = run_dynamics(RunFolder(out), "sgd")
    assert found is not None
    steps = RunFolder(out).info()["steps"]
    assert found.steps == list(range(0, steps, 3))
    assert found.layers[0].name == "conv1.weight"
    rows = read_table(out / "gradients.parquet").to_pylist()
    assert len({(row["step"], row["layer"], row["kind"]) for row in rows}) == len(rows)
    sizes = {row["layer"]: row["n"] for row in rows if row["kind"] == "weights" and row["step"] == 0}
    model = load_file(out / "model.safetensors")
    assert sizes["conv1.weight"] == model["conv1.weight"].numel()  # the whole tensor, not a rank's part
    assert set(found.signals) == {"alpha", "sigma", "norm", "factor"}
