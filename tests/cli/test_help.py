"""Help, examples, nearest names and completion of every command, as a user meets them."""

from __future__ import annotations

import contextlib
import io
import re
import shlex
import subprocess
from pathlib import Path

import pytest
import tyro

from trimtab.cli import COMMANDS, main, medclm
from trimtab.cli.completion_command import command_flags, values_of
from trimtab.cli.flags import check_words, flags_of, known, nearest
from trimtab.cli.help import told
from trimtab.cli.train_command import TrainArguments
from trimtab.runs.recipe import load_recipe

EVERY = [name for name in COMMANDS if name != "medclm"] + [f"medclm {name}" for name in medclm.COMMANDS]


def helped(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    try:
        code = main(words)
    except SystemExit as stop:
        code = stop.code
    assert code == 0
    return capsys.readouterr().out


@pytest.fixture(scope="module")
def table() -> dict[str, list]:
    return command_flags()


@pytest.mark.parametrize("command", EVERY)
def test_short_help_is_one_screen_with_three_examples_that_are_understood(
    command: str, capsys: pytest.CaptureFixture[str], table: dict[str, list]
) -> None:
    text = helped([*command.split(), "--help"], capsys)
    lines = text.splitlines()
    assert len(lines) <= 25
    assert max(map(len, lines)) <= 80
    assert lines[0].startswith(f"usage: trimtab {command}")
    examples = [line.strip() for line in lines if line.startswith(f"  trimtab {command}")]
    assert len(examples) == 3
    for example in examples:
        words = shlex.split(example.split(" > ")[0].split(" >> ")[0])[1 + len(command.split()) :]
        check_words(words, table[command], command)
        for flag in table[command]:  # words of a closed list are of it
            if flag.name in words and "|" in flag.value and (allowed := values_of(flag)):
                assert words[words.index(flag.name) + 1] in allowed


@pytest.mark.parametrize("command", EVERY)
def test_help_all_has_every_option_and_no_type_walls(
    command: str, capsys: pytest.CaptureFixture[str], table: dict[str, list]
) -> None:
    text = helped([*command.split(), "--help-all"], capsys)
    shown = set(re.findall(r"^  (?:-\w, )?(--[\w.-]+)", text, re.MULTILINE))
    assert shown == {flag.name for flag in table[command] if not flag.positional}
    assert not re.search(r"\{None\}|\[\[|STR \[STR|\|None", text)
    assert max(len(line) for line in text.splitlines() if line.startswith("      ")) <= 110


@pytest.mark.parametrize("recipe", ["digits", "cifar10-resnet20"])
def test_the_flags_are_those_that_the_parser_takes(recipe: str) -> None:
    default = TrainArguments(recipe, load_recipe(recipe))
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
        tyro.cli(TrainArguments, args=["--help"], default=default)
    parser = set(re.findall(r"^[│| ] *((?:--[a-z][\w.-]+(?:, )?)+)", said.getvalue(), re.MULTILINE))
    names = {name for group in parser for name in re.findall(r"--[a-z][\w.-]+", group)} - {"--help"}
    ours = {flag.name: flag for flag in flags_of(TrainArguments, default)}
    assert names <= set(known(ours.values()))
    assert len(names) > 80
    assert ours["--epochs"].default == str(load_recipe(recipe).epochs)
    assert ours["--data.limit-train"].value == "N"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["train", "digits", "--var.strenght", "1"], "no option --var.strenght; did you mean --var.strength?"),
        (["train", "digits", "--sparsity", "0.5"], "or --pruning.sparsities"),
        (["train", "digits", "--lr", "0.5"], "did you mean --sgd.lr or --adamw.lr"),
        (["train", "digits", "--batch_size", "5"], "did you mean --data.batch-size?"),
        (["report", "--zzz"], "no option --zzz; trimtab report --help-all lists all"),
        (["train", "digits", "--epochs", "many"], "train: --epochs takes a whole number, got 'many'"),
        (["train", "digits", "--var.strength", "much"], "train: --var.strength takes a number, got 'much'"),
        (["train", "digits", "--device", "gpu"], "--device must be one of auto, cpu, cuda, got 'gpu'"),
        (["list", "lever"], "KIND must be one of all, levers, models, datasets, recipes, got 'lever'; did you mean levers?"),
        (["medclm", "export"], "medclm export: SET, --to must be given"),
        (["medclm", "buidl"], "did you mean build?"),
        (["compare", "digits", "--method", "var"], "--method is for one run; this command takes --methods"),
        (["show", "CRAM"], "did you mean cram"),
        (["train", "digits", "--model.name", "ResNet-20"], "did you mean resnet20"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_one_line_with_the_nearest_name(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_nearest_prefers_the_whole_name() -> None:
    assert nearest("--epoch", ["--epochs", "--schedule.step-epochs"]) == ["--epochs"]
    assert nearest("--nothing", ["--epochs", "--out"]) == []


def test_version_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    text = helped(["--help"], capsys)
    assert "trimtab --version" in text
    assert max(map(len, text.splitlines())) <= 80
    assert len(text.splitlines()) <= 25


def completed(script: Path, line: str) -> list[str]:
    words = line.split(" ")
    inside = f"""source {script}; COMP_WORDS=({" ".join(f"'{word}'" for word in words)}); COMP_CWORD={len(words) - 1}
    _trimtab; printf '%s\\n' "${{COMPREPLY[@]}}" """
    done = subprocess.run(
        ["bash", "--norc", "-c", inside], capture_output=True, text=True, check=True, cwd=script.parent
    )
    return done.stdout.split()


def test_bash_completes_commands_options_and_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script = tmp_path / "trimtab.bash"
    script.write_text(helped(["completion", "bash"], capsys))
    assert completed(script, "trimtab tr") == ["train"]
    assert "digits" in completed(script, "trimtab train ")
    assert completed(script, "trimtab train digits --data.ro") == ["--data.root"]
    assert completed(script, "trimtab compare digits --methods cram") == ["cram", "cram+"]
    assert completed(script, "trimtab compare digits --methods sgd va") == ["var"]
    assert completed(script, "trimtab train digits --device cu") == ["cuda"]
    assert completed(script, "trimtab medclm bu") == ["build"]
    assert completed(script, "trimtab medclm export SET --to t") == ["trl"]
    assert completed(script, "trimtab prune MODEL --cal") == ["--calibrate"]
    assert completed(script, "trimtab prune MODEL --score sparse") == ["sparse_gpt"]
    assert completed(script, "trimtab prune RUN --sparsit") == ["--sparsities", "--sparsity"]
    assert completed(script, "trimtab prune MODEL --to m") == ["macko"]
    assert completed(script, "trimtab prune trim") == ["trimtab.bash"]  # files


@pytest.mark.parametrize(("shell", "mark"), [("zsh", "bashcompinit"), ("fish", "-l epochs")])
def test_other_shells(shell: str, mark: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = helped(["completion", shell], capsys)
    assert mark in text
    assert all(name in text for name in COMMANDS)


def test_examples_stand_in_every_docstring() -> None:
    assert len(told(TrainArguments)[1]) == 3
