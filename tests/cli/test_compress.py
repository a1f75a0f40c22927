"""`trimtab compress`: a file of few bytes, or one clear error and nothing written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import safetensors.torch
import torch

from trimtab.cli import main
from trimtab.deploy import load_compact


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--budget", "tiny"], "--budget must be a size such as 100kB"),
        (["--max-drop", "1"], "--max-drop needs a run folder"),
        ([], "nothing can be measured: give --budget"),
        (["--budget", "100"], "budget_bytes = 100 is too small"),
        (["--bits", "17"], "1..16, got 17"),
        (["--bits", "4", "--kept-bits", "0"], "kept_bits must be a whole number in 1..53, got 0"),
        (["--bits", "4", "--out", "net.safetensors"], "is the network itself"),
        (["--bits", "4", "--out", "."], "is a folder"),
        (["--bits", "4", "17"], "--bits must be a whole number in 1..16, got 17"),
        (["--bits", "4", "--sparsity", "1.0"], "--sparsity must lie in [0, 1), got 1.0"),
        (["--max-drop", "nan"], "--max-drop must be finite and 0 or more, got nan"),
    ],
)
def test_the_command_line_on_a_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, words: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    safetensors.torch.save_file({"w": torch.randn(40, 50), "b": torch.ones(40)}, tmp_path / "net.safetensors")
    assert main(["compress", str(tmp_path / "net.safetensors"), *words]) == 2
    assert message in capsys.readouterr().err
    assert [file.name for file in tmp_path.iterdir()] == ["net.safetensors"]
    assert main(["compress", "none.safetensors", *words]) == 2
    assert "none.safetensors is not there" in capsys.readouterr().err
    assert main(["compress", str(tmp_path / "net.safetensors"), "--budget", "1.5kB"]) == 0
    out = tmp_path / "net-compact.safetensors"
    assert out.stat().st_size <= 1500
    assert load_compact(out)["b"].tolist() == [1.0] * 40
    assert main(["compress", str(out), "--budget", "1kB"]) == 2
    assert "a compact file already" in capsys.readouterr().err


def test_the_command_line_on_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    words = ["--epochs", "1", "--data.limit-train", "200", "--quiet"]
    assert main(["train", "digits", "--out", str(run), *words]) == 0
    capsys.readouterr()
    assert main(["compress", str(run), "--budget", "12kB", "--bits", "3", "5", "--sparsity", "0", "0.7", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["compact_bytes"] <= 12_000
    assert Path(found["path"]).stat().st_size == found["compact_bytes"]
    assert {row["bits"] for row in found["rows"]} <= {3, 5}
    assert {"metric", "before", "after"} == set(found["test"])
