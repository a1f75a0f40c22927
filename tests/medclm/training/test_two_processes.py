"""Two CPU processes train one model on disjoint batches and decide alike; sharded, they do the same."""

import json
import os
import shutil
import subprocess
import sys

import pytest
from safetensors.torch import load_file

from tests.medclm.training.blobs import blob_set
from trimtab.cli import main
from trimtab.medclm.training.models import load_finished

OPTIONS = [
    "--steps",
    "4",
    "--epochs",
    "2",
    "--batch",
    "2",
    "--lr",
    "2e-3",
    "--save-every",
    "2",
    "--pretrain",
    "0",
    "--quiet",
]
SHARDING = ["-m", "tests.medclm.training.sharded"]


def train_in_two(data, out, program, *more):
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone",
        *program, "medclm", "train", str(data), "--out", str(out), *OPTIONS, *more,
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((out / "run.json").read_text())


def losses(out):
    return [json.loads(line) for line in (out / "losses.jsonl").read_text().splitlines()]


def difference(one, other):
    first, second = (load_file(out / "model" / "model.safetensors") for out in (one, other))
    assert first.keys() == second.keys()
    return max((value - second[name]).abs().max().item() for name, value in first.items())


@pytest.fixture(scope="module")
def copies(tmp_path_factory):
    """The data, and a run on it in which each process holds the whole model."""
    home = tmp_path_factory.mktemp("two")
    data = blob_set(home / "set", images=24)
    return data, home / "run", train_in_two(data, home / "run", ["-m", "trimtab"])


@pytest.mark.slow
def test_two_processes_train_one_model(copies):
    data, run, found = copies
    assert (found["state"], found["steps"], found["processes"]) == ("finished", 4, 2)
    assert (run / "model" / "model.safetensors").is_file()
    trained = [line for line in losses(run) if line["source"] == "training"]
    assert sum(line["n"] for line in trained) == 4 * 2 * 2  # steps x batch x processes: the losses of both were counted
    assert main(["medclm", "train", str(data), "--out", str(run), *OPTIONS]) == 2  # not to be resumed by one process


@pytest.mark.slow
@pytest.mark.parametrize("lora", [[], ["--lora", "2"]], ids=["all", "lora"])
def test_a_sharded_run_is_the_same_and_resumes(copies, tmp_path, lora):
    """Fully sharded by torch on both CPUs: losses and weights of the copies; then from its checkpoint to the same end."""
    data, run, _ = copies
    if lora:
        run = tmp_path / "copies"
        train_in_two(data, run, ["-m", "trimtab"], *lora)
    sharded, again = tmp_path / "sharded", tmp_path / "again"
    train_in_two(data, sharded, SHARDING, "--fsdp", "--checkpointing", *lora)
    assert [line["loss"] for line in losses(sharded)] == pytest.approx([line["loss"] for line in losses(run)], rel=1e-5)
    assert difference(run, sharded) < 1e-5
    assert (sharded / "checkpoints" / "checkpoint-2" / "pytorch_model_fsdp_0" / "__1_0.distcp").is_file()  # second half
    load_finished(sharded)
    shutil.copytree(sharded, again)
    shutil.rmtree(again / "model")
    shutil.rmtree(again / "checkpoints" / "checkpoint-4")
    (again / "run.json").write_text((again / "run.json").read_text().replace("finished", "running"))
    assert train_in_two(data, again, SHARDING, "--fsdp", "--checkpointing", *lora)["resumed"]
    assert losses(again) == losses(sharded)
    assert difference(again, sharded) == 0


def test_sharding_is_refused_without_gpus(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("torch.accelerator.is_available", lambda: False)
    data = blob_set(tmp_path / "set", images=6)
    assert main(["medclm", "train", str(data), "--out", str(tmp_path / "run"), "--fsdp", *OPTIONS]) == 2
    assert "--fsdp needs GPUs" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_only_training_runs_in_several_processes(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["medclm", "view", "set"]) == 2
    assert "under torchrun only `trimtab train` and `trimtab medclm train` do" in capsys.readouterr().err
    assert main(["medclm", "train", str(tmp_path / "none"), "--out", str(tmp_path / "run")]) == 2
    assert "is not a folder" in capsys.readouterr().err
