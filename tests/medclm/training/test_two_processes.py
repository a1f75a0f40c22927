"""Two CPU processes train one model on disjoint batches and decide alike."""

import json
import os
import subprocess
import sys

import pytest

from tests.medclm.training.blobs import blob_set
from trimtab.cli import main

OPTIONS = ["--steps", "4", "--epochs", "2", "--batch", "2", "--lr", "2e-3", "--save-every", "4", "--quiet"]


@pytest.mark.slow
def test_two_processes_train_one_model(tmp_path):
    data = blob_set(tmp_path / "set", images=24)
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone",
        "-m", "trimtab", "medclm", "train", str(data), "--out", str(tmp_path / "run"), *OPTIONS,
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (found["state"], found["steps"]) == ("finished", 4)
    assert (tmp_path / "run" / "model" / "model.safetensors").is_file()
    lines = [json.loads(line) for line in (tmp_path / "run" / "losses.jsonl").read_text().splitlines()]
    trained = [line for line in lines if line["source"] == "training"]
    assert sum(line["n"] for line in trained) == 4 * 2 * 2  # steps x batch x processes: the losses of both were counted


def test_only_training_runs_in_several_processes(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["medclm", "view", "set"]) == 2
    assert "under torchrun only `trimtab train` and `trimtab medclm train` do" in capsys.readouterr().err
    assert main(["medclm", "train", str(tmp_path / "none"), "--out", str(tmp_path / "run")]) == 2
    assert "is not a folder" in capsys.readouterr().err
