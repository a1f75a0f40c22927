"""The tutorial's commands, as written."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from trimtab.cli import main

PAGE = Path(__file__).parents[2] / "docs" / "medclm.md"


def _commands() -> list[list[str]]:
    blocks = re.findall(r"```sh\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [
        words
        for line in lines
        if (words := shlex.split(line, comments=True)) and "..." not in words and "API" not in line
    ]


@pytest.mark.slow
def test_every_command_of_the_tutorial_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    commands = _commands()
    assert [words[2] for words in commands] == ["demo", "build", "check", "view", *["export"] * 6]
    for words in commands:
        assert words[0] == "trimtab"
        assert main([*words[1:], "--quiet"]) == 0, words
    assert {path.name for path in (tmp_path / "chest" / "exports").iterdir()} == {
        "trl",
        "sharegpt",
        "swift",
        "grpo",
        "coco",
    }
    first = json.loads((tmp_path / "chest" / "exports" / "trl" / "train.jsonl").read_text().splitlines()[0])
    assert (tmp_path / "chest" / first["images"][0]).is_file()
    assert json.loads((tmp_path / "chest-llava" / "train.json").read_text())[0]["conversations"]
