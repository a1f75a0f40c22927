"""Bad input is one line on standard error that names the file, and exit code 2; a stranger's recipe runs no code."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from trimtab.cli import main
from trimtab.inputs import CODE_VARIABLE
from trimtab.runs.run_folder import RunFolder

SMALL = ["--epochs", "1", "--data.limit-train", "320"]


def _fails(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert main(words) == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    assert len(error) < 2500
    return error


_LAUGHS = "a: &a [x, x]\n" + "".join(
    f"{chr(98 + n)}: &{chr(98 + n)} [{', '.join([f'*{chr(97 + n)}'] * 9)}]\n" for n in range(15)
)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"name: \xff\n", "line 1 is not UTF-8"),
        (b"name: [\n", "is not readable as YAML"),
        (b"created: 2001-99-99\n", "month must be in 1..12"),
        (b"[" * 30_000, "nested too deeply"),
        (b"name: !!bool nonsense\n", "is not readable as YAML"),
        (b"? [a]\n: b\n", "is not readable as YAML"),
        (_LAUGHS.encode(), "more than 100,000 parts"),
        (b"data:\n  arguments: &a\n    inner: *a\n", "holds itself"),
        (b"name: !!python/object/apply:os.system ['true']\n", "could not determine a constructor"),
        (b"epochs: '" + b"x" * 100_000 + b"'\n", "more characters"),
    ],
)
def test_a_damaged_recipe_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes, message: str
) -> None:
    file = tmp_path / "r.yaml"
    file.write_bytes(content)
    error = _fails(["train", str(file), "--out", str(tmp_path / "out")], capsys)
    assert str(file) in error
    assert message in error
    assert not (tmp_path / "out").exists()


def test_damaged_options_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    error = _fails(["compare", "digits", "--vary", "var.form=[a", "--out", str(tmp_path / "o")], capsys)
    assert "--vary var.form=[a is not readable as YAML" in error
    words = ["medclm", "build", "--detections", str(tmp_path), "--images", str(tmp_path), "--out", str(tmp_path / "o")]
    assert "--reader clip=[a is not readable as YAML" in _fails([*words, "--reader", "clip=[a"], capsys)


@pytest.mark.parametrize("content", [b"\xff", b"[", b"[" * 100_000, b"3"])
@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("run.json", "report"),
        ("pruning-test.json", "report"),
        ("measurements.json", "report"),
        ("recipe.yaml", "prune"),
        ("recipe.yaml", "export"),
    ],
)
def test_a_damaged_file_of_a_run_folder_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, command: str, content: bytes
) -> None:
    (tmp_path / "recipe.yaml").write_text("name: a\n")
    (tmp_path / "run.json").write_text('{"status": "finished"}')
    (tmp_path / name).write_bytes(content)
    assert name in _fails([command, str(tmp_path)], capsys)


def test_damaged_metrics_are_named_with_their_line(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"epoch": 1}\n{"epoch":\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 2 is damaged"):
        RunFolder(tmp_path).metrics()


def test_a_recipe_of_a_stranger_runs_no_code_unasked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    module = tmp_path / "strangers_module.py"
    module.write_text(
        "import pathlib\nfrom torch import nn\n"
        f"pathlib.Path({str(tmp_path / 'ran')!r}).write_text('x')\n"
        "def network(num_classes): return nn.Sequential(nn.Flatten(), nn.Linear(64, num_classes))\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delenv(CODE_VARIABLE, raising=False)
    recipe = tmp_path / "r.yaml"
    recipe.write_text("name: theirs\nmodel:\n  name: strangers_module:network\n")
    words = ["train", str(recipe), *SMALL, "--quiet", "--out"]
    error = _fails([*words, str(tmp_path / "a")], capsys)
    assert "'strangers_module:network'" in error
    assert "--trust-code" in error
    assert not (tmp_path / "ran").exists()
    assert main([*words, str(tmp_path / "a"), "--trust-code"]) == 0
    assert (tmp_path / "ran").exists()
    assert main([*words, str(tmp_path / "b"), "--model.name", "strangers_module:network"]) == 0
    capsys.readouterr()
    assert "--trust-code" in _fails(["prune", str(tmp_path / "b"), "--quiet"], capsys)
    assert CODE_VARIABLE not in os.environ
    monkeypatch.setenv(CODE_VARIABLE, "any")
    assert main(["prune", str(tmp_path / "b"), "--quiet"]) == 0
    assert os.environ[CODE_VARIABLE] == "any"


@pytest.mark.parametrize("content", [b"\xff", b"[", b"[" * 100_000, b"3", b"{}"])
def test_a_damaged_run_folder_of_medclm_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes
) -> None:
    (tmp_path / "run.json").write_bytes(content)
    assert "run.json" in _fails(["medclm", "evaluate", str(tmp_path), "--quiet"], capsys)


@pytest.mark.parametrize(
    "words", [["train"], ["compare", "--methods", "sgd", "--seeds", "0"]], ids=lambda words: words[0]
)
def test_a_pattern_that_does_not_divide_the_network_is_told_before_it_is_trained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    out = tmp_path / "out"
    given = [words[0], "digits", *words[1:], *SMALL, "--out", str(out), "--pruning.pattern", "2:4"]
    error = _fails(given, capsys)
    assert "pattern '2:4' does not divide 1 weight(s): " in error
    assert "input axis of 1 is not a multiple of 4" in error
    assert "--pruning.indivisible leave_out" in error
    assert not out.exists()
