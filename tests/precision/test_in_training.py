"""The recipe's section `precision` in a training run: its order, exact resume, metering, what evaluation sees."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from tests.runs.tiny import tiny_recipe
from trimtab.observe import read_table
from trimtab.precision import Accumulator, Keep, quantize
from trimtab.runs.position import Progress
from trimtab.runs.precision_section import Precision, recipe_of
from trimtab.runs.recipe import Recipe, load_recipe
from trimtab.runs.run_folder import RunFolder, training_identity
from trimtab.runs.steering import steer
from trimtab.runs.training import train


def recipe(**settings: object) -> Recipe:
    base: dict[str, object] = {"epochs": 2, "data__limit_train": 200, "data__batch_size": 8}  # 22 steps an epoch
    return tiny_recipe(**base, **{f"precision__{name}": value for name, value in settings.items()})


def same_networks(one: RunFolder, other: RunFolder) -> bool:
    first, second = load_file(one.model_file), load_file(other.model_file)
    return all(torch.equal(first[name], second[name]) for name in first)


EVERYTHING = {
    "gradients": "e4m3", "weights": "e4m3", "momentum": "e5m2", "activations": "e4m3", "activation_gradients": "e5m2",
    "rounding": "stochastic", "compensate": "global", "meter_every": 3,
}  # fmt: skip


@pytest.mark.parametrize("kill", [False, True])
def test_interrupted_and_resumed_leaves_the_same_network_and_rows(tmp_path: Path, kill: bool) -> None:
    wanted = recipe(**EVERYTHING)
    whole = train(wanted, tmp_path / "whole")
    reports: list[int] = []

    def stop(progress: Progress) -> None:
        reports.append(progress.step)
        if kill and progress.epoch == 1:
            raise RuntimeError("power cut")
        if not kill and len(reports) == 1:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(RuntimeError if kill else KeyboardInterrupt):
        train(wanted, tmp_path / "parts", stop)
    assert not RunFolder(tmp_path / "parts").finished
    parts = train(wanted, tmp_path / "parts")
    assert same_networks(whole, parts)
    one, other = (read_table(run.shrinkage_folder).to_pandas() for run in (whole, parts))
    keys = ["step", "kind", "layer"]
    pd.testing.assert_frame_equal(  # a checkpoint lays momentum out anew, which adds it up in another order
        one.sort_values(keys, ignore_index=True), other.sort_values(keys, ignore_index=True), rtol=1e-12, atol=0
    )
    assert sorted(set(one["step"])) == list(range(0, whole.info()["steps"], 3))
    assert set(one["kind"]) == {"gradients", "weights", "momentum_buffer"}


@pytest.mark.filterwarnings("ignore:stochastic rounding is biased under NVFP4:UserWarning")  # as said by the lever
def test_a_run_of_rounded_operands_goes_on_where_it_stopped_and_ends_in_full_precision(tmp_path: Path) -> None:
    given = {"matmul": "nvfp4-all-layers", "matmul_until": 0.8, "meter_every": 5, "oscillation": 3}
    wanted = recipe(**given)
    whole = train(wanted, tmp_path / "whole")

    def stop(progress: Progress) -> None:
        if progress.epoch == 1:
            raise RuntimeError("power cut")

    with pytest.raises(RuntimeError):
        train(wanted, tmp_path / "parts", stop)
    parts = train(wanted, tmp_path / "parts")
    assert same_networks(whole, parts)
    assert not same_networks(whole, train(recipe(**(given | {"matmul_until": 1.0})), tmp_path / "longer"))
    keys = ["step", "kind", "layer"]
    one, other = (read_table(run.shrinkage_folder).to_pandas().sort_values(keys) for run in (whole, parts))
    pd.testing.assert_frame_equal(one.reset_index(drop=True), other.reset_index(drop=True), rtol=1e-12, atol=0)
    assert max(one["step"]) == 35  # of 50 steps; from the 40th on nothing is rounded
    assert {"fprop", "dgrad", "wgrad", "wgrad gradient"} < set(one["kind"])
    row = one[(one["kind"] == "fprop weight") & (one["layer"] == "(global)") & (one["step"] == 35)]
    assert 0 <= float(row["oscillating"].iloc[0]) < 1


def test_the_section_says_what_the_recipe_of_operands_is() -> None:
    section = recipe(
        matmul="mxfp4-unbiased", matmul_keep="fc,conv*", matmul_accumulator="e8m13", matmul_promote=0
    ).precision
    found = recipe_of(section)
    assert found is not None
    assert (found.keep.names, found.accumulator) == (("fc", "conv*"), Accumulator("e8m13", 32, None))
    assert recipe_of(recipe(matmul="nvfp4", matmul_keep="none").precision).keep == Keep()  # type: ignore[union-attr]
    assert "matmul" not in training_identity(recipe(gradients="e4m3"))["precision"]
    assert training_identity(recipe(matmul="mxfp8"))["precision"]["matmul"] == "mxfp8"


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"matmul_keep": "fc"}, r"matmul_keep: about precision\.matmul, which is not given"),
        ({"gradients": "e4m3", "matmul_until": 0.5, "oscillation": 3}, "matmul_until, oscillation: about precision"),
        ({"matmul_accumulator": "e8m13"}, r"matmul_accumulator: about precision\.matmul, "),
        ({"matmul": "mxfp8", "matmul_step": 16}, r"matmul_step: about precision\.matmul_accumulator"),
    ],
)
def test_settings_that_nothing_reads_are_refused(given: dict[str, Any], words: str) -> None:
    for make in (lambda: recipe(**given), lambda: Precision.model_validate(given)):
        with pytest.raises(ValueError, match=words):
            make()


def test_a_comparison_with_none_keeps_its_settings() -> None:
    one = recipe(matmul="none", matmul_keep="fc", matmul_until=0.5)
    assert recipe_of(one.precision) is None
    assert training_identity(one) == training_identity(recipe())


def test_the_folder_holds_the_rounded_weights_and_rounding_changes_the_network(tmp_path: Path) -> None:
    full = load_file(train(recipe(), tmp_path / "full").model_file)
    rounded = load_file(train(recipe(weights="e2m1", scaling="tensor"), tmp_path / "rounded").model_file)
    matrices = [name for name, tensor in rounded.items() if tensor.ndim > 1]
    assert matrices
    for name in matrices:
        assert len(rounded[name].unique()) <= 15
        assert len(full[name].unique()) > 15
    assert not (tmp_path / "full" / "shrinkage.parquet").exists()


def test_metering_changes_no_network(tmp_path: Path) -> None:
    metered = train(recipe(gradients="e2m1", rounding="stochastic", meter_every=1), tmp_path / "one")
    silent = train(recipe(gradients="e2m1", rounding="stochastic", meter_every=0), tmp_path / "other")
    assert same_networks(metered, silent)
    assert not silent.shrinkage_folder.exists()
    rows = read_table(metered.shrinkage_folder).to_pylist()
    first = next(row for row in rows if row["layer"] == "(global)")
    assert first["step"] == 0
    assert 0 < first["dead"] <= 1  # gradients without a scale die in e2m1
    train(recipe(gradients="e2m1", rounding="stochastic", meter_every=7), tmp_path / "one")  # the same run


def test_a_folder_of_another_format_is_refused(tmp_path: Path) -> None:
    train(recipe(gradients="e4m3"), tmp_path)
    with pytest.raises(ValueError, match="holds a run of another recipe \\(precision"):
        train(recipe(gradients="e5m2"), tmp_path)


def test_rounding_stands_behind_the_transforms_and_compensation_behind_it() -> None:
    wanted = tiny_recipe(
        method="l1", transforms="centralize", clip_norm=1.0, precision__gradients="e4m3", precision__compensate="tensor"
    )
    levers = steer(wanted, torch.nn.Linear(4, 3)).handle.levers
    assert [type(lever).__name__ for lever in levers] == ["L1", "Centralize", "ClipNorm", "LowPrecision", "Compensate"]


def test_the_step_takes_what_the_section_says(tmp_path: Path) -> None:
    wanted = tiny_recipe(precision__gradients="e3m2", precision__scaling="mx", precision__scaling_rule="ceil")
    model = torch.nn.Linear(40, 3, bias=False)
    steering = steer(wanted, model)
    gradient = torch.randn(3, 40)
    model.weight.grad = gradient.clone()
    steering.optimizer.step()
    lever = steering.precision[0]
    expected = quantize(gradient, "e3m2", scaling=lever.rounding.scaling)  # type: ignore[union-attr]
    assert torch.equal(model.weight.grad, expected)
    assert not torch.equal(expected, gradient)
    assert repr(lever.rounding.scaling) == "MX(rule='ceil', size=32, dim=-1)"  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"gradients": "e4m4x"}, "unknown number format 'e4m4x'; did you mean"),
        ({"weights": "int1"}, "integer formats have 2 to 16 bits"),
        ({"compensate": "global"}, "precision.gradients"),
        ({"before_reduce": True, "weights": "e4m3"}, "precision.gradients"),
        ({"gradients": "e4m3", "scaling": "mx", "scaling_rule": "absmax"}, "power of two"),
        ({"gradients": "e4m3", "scaling_rule": "floor"}, "needs a scaling"),
        ({"matmul": "nvfp5"}, "unknown recipe 'nvfp5'; did you mean nvfp4"),
        ({"matmul": "mxfp8", "matmul_accumulator": "e99m1"}, "e99m1"),
        ({"gradient": "e4m3"}, "did you mean precision.gradients"),
    ],
)
def test_bad_sections_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        recipe(**settings)


def test_a_word_is_autocast_and_files_of_both_kinds_are_read(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text("precision: bf16\n")
    assert load_recipe(file).precision.autocast == "bf16"
    file.write_text("precision: {gradients: fp8, scaling: mx}\n")
    read = load_recipe(file)
    assert (read.precision.gradients, read.precision.autocast) == ("fp8", "fp32")
    read.write(file)
    assert load_recipe(file) == read
