"""A report of a study in which nothing has run says what is missing."""

from __future__ import annotations

from pathlib import Path

import pytest

from trimtab.cli import main
from trimtab.runs.recipe import load_recipe
from trimtab.studies.plan import write_plan
from trimtab.studies.variants import variants


def test_a_study_that_never_started_names_its_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_plan(variants(load_recipe("digits"), ("sgd", "cram+"), (0, 1)), tmp_path)
    assert main(["report", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert "no finished and pruned run" in said
    assert "not started" in said
    assert said.count("seed") >= 4
    assert not (tmp_path / "report.html").exists()
