"""`trimtab list levers`, `trimtab show` and the flags that name levers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from trimtab.cli import main
from trimtab.registry import LEVERS, TRAINED, of_home
from trimtab.runs.commented import commented
from trimtab.runs.recipe import load_recipe

SMALL = ["--epochs", "1", "--data.limit-train", "130", "--quiet"]


def test_every_lever_is_listed_under_its_home(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "levers"]) == 0
    text = capsys.readouterr().out
    at = [text.index(f"levers: {home}") for home in ("optimizer", "wrapper", "penalty", "transform", "observer")]
    assert at == sorted(at)
    for name in LEVERS:
        assert f"\n{name} " in text


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["list"], ["list", "levers"], ["medclm", "--help"]])
def test_lists_and_help_need_neither_torch_nor_what_reads_recipes(words: list[str]) -> None:
    seen = "{'torch', 'numpy', 'pydantic'} & set(sys.modules)"
    code = f"import sys; from trimtab.cli import main; main({words}); print({seen})"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.splitlines()[-1] == "set()"


@pytest.mark.parametrize("name", LEVERS)
def test_show_says_formula_settings_source_and_card(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", name, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["name"], found["line"], found["source"]) == (name, LEVERS[name].line, LEVERS[name].source)
    assert (Path(__file__).parents[2] / found["card"]).is_file()
    assert len(found["formula"].splitlines()) >= 1
    if LEVERS[name].home in TRAINED:
        assert all(item["says"] for item in found["settings"].values()), "every setting is explained"


def test_show_prints_defaults_and_what_the_name_fixes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "cram+"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "rho 0.15 step length of the perturbation" in text
    assert "plus True fixed by the name" in text
    assert main(["show", "crma"]) == 2
    assert "no lever or recipe 'crma'; did you mean cram" in capsys.readouterr().err


def test_show_of_a_recipe_prints_what_new_would_write(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "cifar10-resnet8"]) == 0
    text = capsys.readouterr().out
    recipe = load_recipe("cifar10-resnet8")
    assert commented(recipe) in text
    assert text.startswith("cifar10-resnet8: ")
    file = tmp_path / "own.yaml"
    recipe.with_settings({"epochs": 3}).write(file)
    assert main(["show", str(file), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["epochs"] == 3
    assert main(["show", "cifar10-resnet88"]) == 2
    assert "did you mean cifar10-resnet8" in capsys.readouterr().err
    assert main(["show", "none.yaml"]) == 2
    assert "none.yaml" in capsys.readouterr().err


def test_levers_by_their_flags(tmp_path: Path) -> None:
    words = [
        "--levers",
        "l1",
        "l1@head",
        "cram+",
        "--l1",
        "1e-4",
        "--l1@head.strength",
        "1e-2",
        "--l1@head.include=fc*",
    ]
    assert main(["train", "digits", *SMALL, *words, "--clip-norm", "1", "--out", str(tmp_path / "run")]) == 0
    recipe = load_recipe(tmp_path / "run")
    assert (recipe.method, recipe.used) == ("l1+l1@head+cram+", ("sgd", "l1", "l1@head", "cram+", "clip_norm"))
    assert recipe.build("l1").strength == 1e-4
    assert (recipe.build("l1@head").strength, recipe.build("l1@head").rule.include) == (1e-2, ("fc*",))
    assert recipe.clip_norm.max_norm == 1.0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--levers", "sam", "cram+"], "cannot act together, each takes the whole step"),
        (["--levers", "l1", "--method", "var"], "both given and differ"),
        (["--method", "l1", "--l1@head.strength", "1"], "settings for 'l1@head', which is not among the levers"),
        (["--method", "l1+l1@head", "--l1@head"], "--l1@head needs the name of a setting, such as --l1@head.strength"),
        (["--method", "l1+l1@head", "--l1@head.strength"], "--l1@head.strength needs a value"),
        (["--method", "l1", "--l1", "-1"], "l1.strength must be finite and 0 or more, got -1"),
    ],
)
def test_flags_that_cannot_be(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "digits", "--out", str(tmp_path / "run"), *words]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert len(said.splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_every_home_of_a_lever_is_described() -> None:
    assert sum(len(of_home(row.home)) for row in {row.home: row for row in LEVERS.values()}.values()) == len(LEVERS)
