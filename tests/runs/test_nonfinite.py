"""Gradients that hold inf or NaN in a run of a recipe: the step is skipped and counted, the tracker sees them."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file
from torch import Tensor

from tests.runs.tiny import tiny_recipe
from trimtab.observe import read_table
from trimtab.runs.divergence import SKIPPED_AT_MOST
from trimtab.runs.stepper import Batch, Stepper
from trimtab.runs.training import train


def poisoned(monkeypatch: pytest.MonkeyPatch, bad: Callable[[int], bool]) -> None:
    """Put one NaN into a gradient of the backward passes with these numbers."""
    original, calls = Stepper.loss, []

    def loss(stepper: Stepper, batch: Batch) -> Tensor:
        found = original(stepper, batch)
        if bad(len(calls)):
            next(parameter for parameter in stepper.model.parameters() if parameter.ndim > 1).grad.view(-1)[0] = float(
                "nan"
            )
        calls.append(1)
        return found

    monkeypatch.setattr(Stepper, "loss", loss)


@pytest.mark.parametrize("method", ["var", "sam"])
def test_a_bad_step_is_skipped_counted_and_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    poisoned(monkeypatch, lambda call: call == 2)  # the third step, or the first pass of SAM's second
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        folder = train(tiny_recipe(method=method, epochs=2, track=("gradients",), track_every=1), tmp_path / "a")
    assert all(bool(weight.isfinite().all()) for weight in load_file(folder.model_file).values())
    assert [row.get("skipped_steps") for row in folder.metrics()] == [1, 1]
    rows = read_table(folder.gradients_folder).to_pylist()
    bad_step = 2 if method == "var" else 1
    assert {row["step"] for row in rows if row["nan"]} == {bad_step}
    assert sorted({row["step"] for row in rows}) == list(range(folder.info()["steps"]))


def test_a_run_whose_steps_are_all_skipped_gives_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    poisoned(monkeypatch, lambda call: True)
    recipe = tiny_recipe(data__batch_size=8, track=())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(FloatingPointError, match=f"in the last {SKIPPED_AT_MOST} steps, which were skipped"):
            train(recipe, tmp_path / "a")
