"""Settings proposed by Optuna: ranges read, the optimum found, the same again from the same seed."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from trimtab.cli import main, tune_command
from trimtab.runs.metric import METRICS
from trimtab.runs.recipe import load_recipe
from trimtab.studies import sampling
from trimtab.studies.comparison import Outcome
from trimtab.studies.sampling import Range, has_range, parse_space, search
from trimtab.studies.summary import Row
from trimtab.studies.variants import Variant

pytest.importorskip("optuna", reason="needs the extra `optuna`")

SMALL = ["--epochs", "1", "--data.limit-train", "160", "--data.batch-size", "32", "--pruning.sparsities", "0.5"]


def test_ranges_are_logarithmic_from_a_decade_on_and_whole_between_whole_ends() -> None:
    space = parse_space(
        ["l1.strength=1e-6..1e-3", "sgd.momentum=0.5..0.9", "epochs=2..8", "var.form=variance,relative"]
    )
    assert space == {
        "l1.strength": Range(1e-6, 1e-3, log=True),
        "sgd.momentum": Range(0.5, 0.9, log=False),
        "epochs": Range(2, 8, log=False),
        "var.form": ["variance", "relative"],
    }
    assert space["epochs"].counted
    assert not space["sgd.momentum"].counted
    assert Range(1e-6, 1e-3, log=True).rounded(1.23456e-5) == 1.23e-5
    assert Range(1.2345, 2.0, log=False).rounded(1.2345) == 1.2345  # never outside the ends


@pytest.mark.parametrize(
    "item", ["l1.strength", "l1.strength=", "a=1e-3..1e-6", "a=1..x", "a=1..2..3", "a=1..", "a=1..inf"]
)
def test_what_is_no_range_is_named(item: str) -> None:
    with pytest.raises(ValueError, match=r"--vary"):
        parse_space([item])


def test_the_search_closes_in_on_the_best_setting_and_repeats_itself() -> None:
    def searched(seed: int) -> list[dict[str, Any]]:
        seen: list[dict[str, Any]] = []

        def score(settings: dict[str, Any]) -> float | None:
            seen.append(settings)
            return None if len(seen) == 3 else -abs(math.log10(settings["x"]) + 4) - (settings["word"] != "good")

        search({"x": Range(1e-6, 1e-1, log=True), "word": ["bad", "good"]}, 40, seed, score)
        return seen

    seen = searched(1)
    assert len(seen) == 40
    assert all(1e-6 <= one["x"] <= 1e-1 for one in seen)
    late = seen[20:]
    assert sum(one["word"] == "good" for one in late) >= 15
    assert min(abs(math.log10(one["x"]) + 4) for one in late) < 0.2
    assert searched(1) == seen
    assert searched(2) != seen


def _row(variant: Variant, accuracy: float) -> Row:
    return Row(
        method=variant.label, seed=variant.recipe.seed, sparsity=0.5, sparsity_total=0.5, accuracy=accuracy, loss=1.0,
        split="validation", recalibrated=True, score="magnitude", scope="global",
    )  # fmt: skip


def test_tune_asks_method_by_method_and_writes_the_best(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With runs that are made up: the nearer to 1e-4 the better, and one that fails."""

    def made_up(runs: list[Variant], folder: Path, **_: Any) -> list[Outcome]:
        failed = runs[0].label == failing
        return [Outcome(one, folder / "runs" / one.folder, "diverged" if failed else None) for one in runs]

    failing = ""
    monkeypatch.setattr(tune_command, "run_study", made_up)
    far = lambda one: abs(math.log10(one.variant.recipe.l1.strength) + 4)  # noqa: E731
    monkeypatch.setattr(tune_command, "_metric", lambda *_: METRICS["accuracy"])
    monkeypatch.setattr(tune_command, "_rows", lambda one, _: [_row(one.variant, 1 - 0.1 * far(one))])
    words = ["tune", "digits", "--methods", "sgd", "l1", "--vary", "l1.strength=1e-6..1e-2", "--seeds", "0", "1"]
    words += ["--sampler", "optuna", "--trials", "5", "--criterion", "recalibrated", "--out", str(tmp_path), "--json"]
    assert main(words) == 0
    found = json.loads(capsys.readouterr().out)
    assert {method: len(scores) for method, scores in found["scores"].items()} == {"sgd": 1, "l1": 5}
    strength = found["settings"]["l1.strength"]
    best = max(found["scores"]["l1"], key=lambda label: found["scores"]["l1"][label])
    assert best == f"l1[l1.strength={strength}]"
    assert load_recipe(tmp_path / "tuned.yaml").l1.strength == strength
    assert len(json.loads((tmp_path / "study.json").read_text())["runs"]) == 2 * (1 + 5)
    failing = best
    assert main(words) == 1
    assert best not in json.loads(capsys.readouterr().out)["scores"]["l1"]


@pytest.mark.usefixtures("here_and_now")
def test_a_search_goes_on_where_it_was_stopped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["tune", "digits", *SMALL, "--methods", "l1", "--vary", "l1.strength=1e-6..1e-2"]
    words += ["--sampler", "optuna", "--out", str(tmp_path), "--json", "--records", str(tmp_path / "records")]
    assert main([*words, "--trials", "1"]) == 0
    capsys.readouterr()
    before = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("model.safetensors")}
    assert len(before) == 1
    assert main([*words, "--trials", "2"]) == 0
    assert len(json.loads(capsys.readouterr().out)["scores"]["l1"]) == 2
    assert {file: file.stat().st_mtime_ns for file in before} == before  # finished runs are not run again


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--vary", "l1.strength=1e-6..1e-3"], "a range needs --sampler optuna"),
        (["--vary", "l1.strength=1e-6..1e-3", "--sampler", "optuna", "--trials", "0"], "trials"),
        (["--vary", "l1.strenght=1e-6..1e-3", "--sampler", "optuna"], "l1.strength"),
        (["--vary", "l1.strength=-1..1", "--sampler", "optuna"], "strength"),
    ],
)
def test_what_cannot_be_searched_is_said_before_anything_runs(
    words: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["tune", "digits", *SMALL, "--methods", "l1", *words]) == 2
    assert says in capsys.readouterr().err.replace("\n", " ")
    assert not list(tmp_path.iterdir())


def test_without_optuna_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sampling.importlib.util, "find_spec", lambda _: None)
    assert main(["tune", "digits", "--methods", "l1", "--vary", "l1.strength=1e-6..1e-3", "--sampler", "optuna"]) == 2
    assert "trimtab[optuna]" in capsys.readouterr().err


def test_a_range_is_told_from_a_list() -> None:
    assert has_range(["a=1,2", "b=1..2"])
    assert not has_range(["data.root=../x,y"])
