"""Contrasts named beforehand: the paired test, Holm's correction, and their way from a study file to the report."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from tests.report.factory import make_summary
from trimtab.cli.study import show, write_report
from trimtab.report.weights.page import study_sections
from trimtab.report.weights.study import Study
from trimtab.runs.recipe import Recipe
from trimtab.studies import Contrast, Row, judge
from trimtab.studies.comparison import compare
from trimtab.studies.contrasts import holm, paired_p
from trimtab.studies.study_file import StudyFile, read_study, study_variants
from trimtab.studies.summary import Summary

CONTRASTS = (
    Contrast(own="l1", other="sgd", sparsity=0.9),
    Contrast(own="var", other="sgd", sparsity=0.9),
    Contrast(own="l1", other="sgd", sparsity=0.5, recalibrated=False),
)


def row(method: str, seed: int, accuracy: float, *, sparsity: float = 0.9, recalibrated: bool = True) -> Row:
    return Row(
        method=method, seed=seed, sparsity=sparsity, sparsity_total=sparsity, recalibrated=recalibrated, accuracy=accuracy,
        loss=1.0,
    )  # fmt: skip


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6))
def test_holm_is_the_closed_test_of_bonferronis(values: list[float]) -> None:
    """By the closure principle: a hypothesis falls when every intersection with it falls to Bonferroni."""
    places = range(len(values))
    for place, corrected in enumerate(holm(values)):
        sets = [s for n in range(1, len(values) + 1) for s in itertools.combinations(places, n) if place in s]
        closed = max(min(1.0, len(s) * min(values[i] for i in s)) for s in sets)
        assert corrected == pytest.approx(closed)


def test_holm_counts_tests_that_gave_no_value() -> None:
    assert holm([0.01], tests=3) == pytest.approx([0.03])
    with pytest.raises(ValueError, match="at least the number of values, 2, got 1"):
        holm([0.1, 0.2], tests=1)
    with pytest.raises(ValueError, match=r"a p value must lie in \[0, 1\], got 1.5"):
        holm([1.5])


def test_the_p_value_is_scipys_paired_one() -> None:
    own, other = [0.81, 0.83, 0.80, 0.86, 0.84], [0.80, 0.80, 0.79, 0.82, 0.84]
    expected = stats.ttest_rel(own, other).pvalue
    assert paired_p([a - b for a, b in zip(own, other, strict=True)]) == pytest.approx(expected)
    assert (paired_p([0.0, 0.0]), paired_p([0.1, 0.1])) == (1.0, 0.0)


def test_contrasts_are_paired_by_seed_and_corrected_together() -> None:
    gains = {10: 0.020, 11: 0.023, 12: 0.018, 13: 0.021, 14: 0.019}
    rows = [row("sgd", seed, 0.7 + 0.02 * seed) for seed in range(9, 15)]
    rows += [row("l1", seed, 0.7 + 0.02 * seed + gain) for seed, gain in gains.items()]
    rows += [row("var", 10, 0.9)]
    first, second, third = judge(rows, CONTRASTS)
    assert first.difference == pytest.approx(sum(gains.values()) / 5)
    assert first.seeds == 5
    assert first.p == pytest.approx(stats.ttest_1samp(list(gains.values()), 0).pvalue)
    assert first.corrected == pytest.approx(3 * first.p)  # the other two count, though they were not measured
    assert first.shown
    assert (second.seeds, second.p, second.corrected, second.shown) == (1, None, None, False)
    assert second.words == "var - sgd at 90 %, recalibrated: not judged, 1 seed in common"
    assert third.seeds == 0
    (weaker,) = judge(
        [r for r in rows if r.seed in (10, 11)] + [row("l1", 12, 0.1), row("sgd", 12, 0.9)], CONTRASTS[:1]
    )
    assert not weaker.shown
    assert weaker.words.endswith("not told from zero")


@pytest.mark.parametrize(
    ("contrast", "message"),
    [
        ({"own": "l2", "other": "sgd", "sparsity": 0.9}, "contrast 1: no row is named 'l2'; did you mean l1?"),
        ({"own": "l1", "other": "l1", "sparsity": 0.9}, "contrast 1: l1 against itself"),
        (
            {"own": "l1", "other": "sgd", "sparsity": 0.42},
            "contrast 1: l1 is not measured at sparsity 0.42, only at 0, 0.5",
        ),
    ],
)
def test_what_the_study_does_not_measure_is_refused(contrast: dict[str, object], message: str) -> None:
    study = StudyFile(rows=[{"method": "sgd"}, {"method": "l1"}], contrasts=[contrast])
    with pytest.raises(ValueError, match=re.escape(message)):
        study_variants(study, Recipe(), (0,), "study.yaml")


def test_a_contrast_twice_and_an_unknown_field_are_refused(tmp_path: Path) -> None:
    twice = [CONTRASTS[0], CONTRASTS[0]]
    study = StudyFile(rows=[{"method": "sgd"}, {"method": "l1"}], contrasts=twice)
    with pytest.raises(ValueError, match=r"contrast 2: .* is named twice"):
        study_variants(study, Recipe(), (0,))
    file = tmp_path / "study.yaml"
    file.write_text("rows: [{method: sgd}]\ncontrasts: [{own: l1, other: sgd, sparsty: 0.9}]\n")
    with pytest.raises(ValueError, match="sparsty"):
        read_study(file)


@pytest.mark.usefixtures("here_and_now")
def test_from_the_study_file_to_summary_terminal_and_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = {"epochs": 1, "data.limit_train": 64, "pruning.sparsities": [0.5, 0.9], "pruning.controls": False}
    recipe = Recipe().with_settings(settings)
    study = StudyFile(rows=[{"method": "sgd"}, {"method": "l1"}], contrasts=CONTRASTS[::2], seeds=(0, 1))
    outcomes = compare(
        study_variants(study, recipe, ()), tmp_path, splits=("validation", "test"), threads=1, contrasts=study.contrasts
    )
    assert [outcome.error for outcome in outcomes] == [None] * 4
    summary = write_report(tmp_path, tmp_path)
    assert [(one.own, one.sparsity, one.seeds) for one in summary.contrasts] == [("l1", 0.9, 2), ("l1", 0.5, 2)]
    assert Summary.read(tmp_path / "summary.json").contrasts == summary.contrasts
    assert write_report(tmp_path, tmp_path, split="validation").contrasts == []  # what chose settings judges nothing
    capsys.readouterr()
    show(summary, tmp_path)
    assert summary.contrasts[0].words in capsys.readouterr().out


def test_the_page_shows_them_below_the_main_figure() -> None:
    summary = make_summary(("sgd", "var"), extras=False)
    names = [section.name for section in study_sections(Study(summary))]
    assert "contrasts" not in names
    judged = judge(
        summary.rows, [Contrast(own="var", other="sgd", sparsity=0.98), Contrast(own="x", other="sgd", sparsity=0.5)]
    )
    sections = study_sections(Study(summary.model_copy(update={"contrasts": judged})))
    assert sections[1].name == "contrasts"
    (table,) = sections[1].tables
    assert [row[0].text for row in table.rows] == ["var \N{MINUS SIGN} sgd", "x \N{MINUS SIGN} sgd"]
    exact = judged[0].model_copy(update={"p": 0.042895, "corrected": 3e-5})
    (shown,) = study_sections(Study(summary.model_copy(update={"contrasts": [exact]})))[1].tables
    assert [cell.text for cell in shown.rows[0][-3:-1]] == ["0.043", "< 0.0001"]
    assert [row[-1].text for row in table.rows] == [
        "gain" if judged[0].shown else "not told from zero",
        "not judged: too few seeds in common",
    ]
