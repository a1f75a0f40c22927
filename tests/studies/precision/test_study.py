"""The runs of a study of number formats, what is drawn from a meter's rows, and what is said about them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.report.precision_factory import format_run, precision_study
from tests.runs.tiny import tiny_recipe
from trimtab.runs.run_folder import RunFolder
from trimtab.runs.training import train
from trimtab.studies.precision.conclusions import (
    comparisons,
    in_words,
    paired,
    quality,
)
from trimtab.studies.precision.on_test import quality_on_test
from trimtab.studies.precision.records import PrecisionStudy, gather, shrinkage_curves
from trimtab.studies.precision.variants import FormatStudy, format_variants
from trimtab.studies.statistics import estimate


def test_variants_are_the_product_and_differ_in_what_their_label_says() -> None:
    study = FormatStudy(("e4m3", "e2m1"), ("nearest", "stochastic"), ("none", "mx"), compensate=True, steps=(1.0, 2.0))
    variants = format_variants(tiny_recipe(), study, [0, 1])
    assert len(variants) == len({one.folder for one in variants}) == 2 * (2 + 2 * 2 * 2 * 2 * 2)
    assert variants[0].label == "full"
    last = variants[-1]
    assert last.label == "e2m1, stochastic, mx, compensated, step x2"
    section = last.recipe.precision
    assert (section.gradients, section.rounding, section.scaling, section.compensate) == (
        "e2m1", "stochastic", "mx", "global",
    )  # fmt: skip
    assert last.recipe.sgd.lr == pytest.approx(2 * tiny_recipe().sgd.lr)
    assert last.recipe.seed == 1
    assert not variants[0].recipe.precision.rounds


def test_tensors_say_what_is_rounded() -> None:
    section = format_variants(tiny_recipe(), FormatStudy(("e4m3",), tensors=("weights", "momentum")), [0])[
        1
    ].recipe.precision
    assert (section.gradients, section.weights, section.momentum, section.activations) == (None, "e4m3", "e4m3", None)


def test_curves_are_the_meters_rows() -> None:
    steps = np.repeat(np.arange(0, 60, 10), 3)
    layers = np.tile(np.array(["(global)", "first.weight", "last.weight"], dtype=object), 6)
    q = np.array(
        [[0.9, 0.8, 1.0], [0.7, 0.5, 1.0], [0.8, 0.6, np.nan], [0.6, 0.4, 1.0], [0.8, 0.6, 1.0], [0.8, 0.6, 1.0]]
    )
    zeros = np.zeros(18)
    found = shrinkage_curves(
        {"step": steps, "layer": layers, "kind": np.repeat(np.array(["gradients"], dtype=object), 18),
         "projection": q.ravel(), "dead": zeros + 0.25, "overflow": zeros, "noise_to_signal": zeros}
    )  # fmt: skip
    assert found is not None
    assert found.steps == list(range(0, 60, 10))
    assert found.q == [0.9, 0.7, 0.8, 0.6, 0.8, 0.8]
    assert (found.q_min, found.q_median, found.least_layer) == (0.6, 0.8, "first.weight")
    assert [layer.name for layer in found.layers] == ["first.weight", "last.weight"]
    assert found.layers[0].q == 0.6
    assert found.layers[1].curve[2] is None
    assert found.dead == [0.25] * 6
    assert (found.dead_median, found.overflow_median) == (0.25, 0.0)


def test_medians_are_of_the_steps_not_of_the_points() -> None:
    """240 steps in 120 points of two: their medians are 0.5, and that of the steps is 0.1."""
    dead = np.tile([0.1, 0.9, 0.1, 0.1], 60)
    steps = np.arange(240)
    layers = np.array(["(global)", "only.weight"] * 240, dtype=object)
    columns = {"step": np.repeat(steps, 2), "layer": layers, "kind": np.array(["gradients"] * 480, dtype=object)}
    columns |= {"projection": np.ones(480), "dead": np.repeat(dead, 2), "overflow": np.repeat(dead[::-1], 2)}
    found = shrinkage_curves(columns | {"noise_to_signal": np.zeros(480)})
    assert found is not None
    assert len(found.dead) == 120
    assert (found.dead_median, found.overflow_median) == (0.1, 0.1)


def test_quality_and_differences_are_paired_over_seeds() -> None:
    study = precision_study()
    full = {run.seed: run.test_accuracy for run in study.of("full")}
    own = {run.seed: run.test_accuracy for run in study.of("e2m1")}
    wanted = estimate([own[seed] - full[seed] for seed in (0, 1, 2)])  # type: ignore[operator]
    assert quality(study, "e2m1").to_full == wanted
    assert quality(study, "full").to_full is None
    assert quality(study, "int4").finished == 2  # one of three diverged
    found = paired(study, "int4", "full", lambda run: run.test_accuracy)
    assert found == estimate(
        [run.test_accuracy - full[run.seed] for run in study.of("int4") if run.status == "finished"]
    )  # type: ignore[operator]


def test_documents_that_know_the_labels_alone_are_read() -> None:
    file = Path(__file__).parents[3] / "docs/evidence/precision-cifar10-resnet20.json"
    study = PrecisionStudy.read(file)
    assert all(run.setting.text() == run.label for run in study.runs)
    assert {run.step_factor for run in study.runs} == {1.0, 2.0}
    found = {(one.what, one.label, one.against) for one in comparisons(study)}
    assert ("a step 2 times as long", "full, step x2", "full") in found
    assert PrecisionStudy.model_validate(study.model_dump(by_alias=True)) == study


def test_comparisons_look_at_settings_and_not_at_labels() -> None:
    """Labels in another language change nothing."""
    study = precision_study()
    runs = [run.model_copy(update={"label": f"Format {study.labels.index(run.label)}"}) for run in study.runs]
    found = {(one.what, one.label, one.against) for one in comparisons(study.model_copy(update={"runs": runs}))}
    assert found == {
        ("MX scaling", "Format 3", "Format 2"), ("stochastic rounding", "Format 4", "Format 2"),
        ("compensation", "Format 5", "Format 2"), ("a step 2 times as long", "Format 6", "Format 2"),
    }  # fmt: skip


def test_comparisons_are_pairs_that_differ_in_one_part() -> None:
    found = {(one.what, one.label, one.against) for one in comparisons(precision_study())}
    assert found == {
        ("MX scaling", "e2m1, mx", "e2m1"), ("stochastic rounding", "e2m1, stochastic", "e2m1"),
        ("compensation", "e2m1, compensated", "e2m1"), ("a step 2 times as long", "e2m1, step x2", "e2m1"),
    }  # fmt: skip


def test_the_sentence_names_every_format_once() -> None:
    words = in_words(precision_study())
    assert words.startswith("Full precision reaches 90.0 % on the test split; not told apart from it: ")
    assert "below it: e2m1 by 40.0 points, e2m1 (mx) by 1.0 points, " in words
    assert words.endswith("diverged: e5m2.")
    single = precision_study().model_copy(update={"runs": [format_run("full", 0, 0.9), format_run("e4m3", 0, 0.8)]})
    assert in_words(single) == "Full precision reaches 90.0 % on the test split; with one seed: e4m3 80.0 %."


def test_quality_is_of_the_network_that_the_run_left(tmp_path: Path) -> None:
    folder = train(tiny_recipe(epochs=1, precision__activations="e2m1"), tmp_path / "activations")
    found = quality_on_test(folder)
    assert quality_on_test(folder) == found  # kept
    (folder.path / "quality-test.json").write_text("{")
    with pytest.raises(ValueError, match=r"quality-test\.json is damaged"):
        quality_on_test(folder)
    plain = train(tiny_recipe(epochs=1), tmp_path / "plain")
    (folder.path / "quality-test.json").unlink()
    rounded = quality_on_test(folder)
    assert rounded == found
    assert rounded["loss"] != quality_on_test(plain)["loss"]


def test_delayed_scaling_goes_on_with_what_the_run_remembers(tmp_path: Path) -> None:
    folder = train(tiny_recipe(epochs=1, precision__matmul="fp8-delayed-all-layers"), tmp_path)
    found = quality_on_test(folder)
    (folder.path / "quality-test.json").unlink()
    assert quality_on_test(folder) == found
    (folder.path / "quality-test.json").unlink()
    folder.checkpoint_file.unlink()  # then factors are scaled by themselves
    assert quality_on_test(folder)["loss"] != found["loss"]


def test_gather_refuses_other_studies_and_counts_what_is_not_finished(tmp_path: Path) -> None:
    wanted, study = tiny_recipe(epochs=1), FormatStudy(("e4m3",))
    done = train(wanted, tmp_path / "runs" / "full")
    begun = RunFolder(tmp_path / "runs" / "begun")
    begun.path.mkdir()
    wanted.with_settings({"seed": 1}).write(begun.path / "recipe.yaml")
    runs, missing = gather([done, begun], tmp_path, wanted, study)
    assert [run.label for run in runs] == ["full"]
    assert list(map(str, missing)) == ["sgd, seed 1: unfinished (0 of 1 epochs)"]
    with pytest.raises(ValueError, match=r"is of another study: epochs differ; choose another folder with --out"):
        gather([done], tmp_path, wanted.with_settings({"epochs": 2}), study)
    with pytest.raises(ValueError, match=r"no run under .* is finished"):
        gather([begun], tmp_path, wanted, study)
