"""Training: same recipe same bits, interrupted and resumed equals uninterrupted, refusals."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.runs.tiny import tiny_recipe
from trimtab.runs.loading import load_data, trained_model
from trimtab.runs.position import Progress
from trimtab.runs.run_folder import RunFolder
from trimtab.runs.training import train


def weights(folder: RunFolder) -> dict[str, torch.Tensor]:
    return load_file(folder.model_file)


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_same_recipe_gives_the_same_bits_and_another_seed_does_not(tmp_path: Path) -> None:
    first = weights(train(tiny_recipe(), tmp_path / "a"))
    assert same(first, weights(train(tiny_recipe(), tmp_path / "b")))
    assert not same(first, weights(train(tiny_recipe(seed=1), tmp_path / "c")))


@pytest.mark.parametrize("method", ["sgd", "adamw", "var", "sam", "cram+", "var+cram+"])
def test_interrupted_and_resumed_equals_uninterrupted(tmp_path: Path, method: str) -> None:
    recipe = tiny_recipe(method=method, accumulate=1, data__batch_size=16)  # 18 steps an epoch, reports at its end
    whole = train(recipe, tmp_path / "whole")
    stopped = False

    def interrupt(progress: Progress) -> None:
        nonlocal stopped
        if not stopped and progress.epoch == 1:
            stopped = True
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt, match="go on"):
        train(recipe, tmp_path / "parts", interrupt)
    folder = RunFolder(tmp_path / "parts")
    assert folder.info()["status"] == "interrupted"
    assert not folder.model_file.exists()
    train(recipe, tmp_path / "parts")
    assert folder.finished
    assert same(weights(whole), weights(folder))
    assert whole.metrics() == folder.metrics()


def test_stop_in_the_middle_of_an_epoch_goes_on_at_the_same_batch(tmp_path: Path) -> None:
    recipe = tiny_recipe(method="sam", epochs=2, data__batch_size=8)  # 36 steps an epoch, a report at step 20
    whole = train(recipe, tmp_path / "whole")
    steps = []

    def interrupt(progress: Progress) -> None:
        steps.append(progress.step)
        if len(steps) == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(KeyboardInterrupt):
        train(recipe, tmp_path / "parts", interrupt)
    assert steps == [20]
    assert same(weights(whole), weights(train(recipe, tmp_path / "parts")))


def test_killed_without_warning_goes_on_from_the_last_checkpoint(tmp_path: Path) -> None:
    recipe = tiny_recipe(checkpoint_every=1)
    whole = train(recipe, tmp_path / "whole")

    def crash(progress: Progress) -> None:
        if progress.epoch == 2:
            raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        train(recipe, tmp_path / "parts", crash)
    assert same(weights(whole), weights(train(recipe, tmp_path / "parts")))


def test_a_finished_run_is_not_trained_again(tmp_path: Path) -> None:
    folder = train(tiny_recipe(), tmp_path / "a")
    before = folder.model_file.stat().st_mtime_ns
    called: list[Progress] = []
    train(tiny_recipe(), tmp_path / "a", called.append)
    assert not called
    assert folder.model_file.stat().st_mtime_ns == before


def test_a_folder_of_another_recipe_is_refused_and_names_the_field(tmp_path: Path) -> None:
    train(tiny_recipe(), tmp_path / "a")
    with pytest.raises(ValueError, match=r"holds a run of another recipe \(epochs: 3 there, 4 now\)"):
        train(tiny_recipe(epochs=4), tmp_path / "a")
    train(tiny_recipe(pruning__sparsities=(0.7,), var__strength=1.0), tmp_path / "a")  # sgd reads neither


def test_each_method_changes_the_network(tmp_path: Path) -> None:
    found = {
        method: weights(train(tiny_recipe(method=method, epochs=1), tmp_path / method))
        for method in ("sgd", "var", "l1", "hoyer", "sam", "asam", "cram", "cram+", "var+sam", "adamw")
    }
    names = list(found)
    for position, first in enumerate(names):
        for second in names[position + 1 :]:
            assert not same(found[first], found[second]), f"{first} and {second} gave the same network"


def test_a_loss_that_is_not_finite_stops_the_run_with_its_reason(tmp_path: Path) -> None:
    with pytest.raises(FloatingPointError, match=r"loss became (nan|inf).*'sgd'.*learning rate"):
        train(tiny_recipe(sgd__lr=1e12), tmp_path / "a")


def test_accumulation_equals_a_bigger_batch_without_batch_norm_noise(tmp_path: Path) -> None:
    folder = train(tiny_recipe(accumulate=2, data__batch_size=32, epochs=1), tmp_path / "a")
    assert folder.info()["steps"] == len(load_data(tiny_recipe()).train.targets) // 64


def test_too_large_a_batch_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="exceeds the 320 images"):
        train(tiny_recipe(data__batch_size=400), tmp_path / "a")


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_mixed_precision_trains(tmp_path: Path, precision: str) -> None:
    folder = train(tiny_recipe(precision__autocast=precision, method="var+sam", data__limit_train=130), tmp_path / "a")
    assert all(tensor.isfinite().all() for tensor in weights(folder).values())
    assert folder.metrics()[-1]["train_loss"] < folder.metrics()[0]["train_loss"] + 0.5


def test_damaged_model_file_names_itself(tmp_path: Path) -> None:
    folder = train(tiny_recipe(epochs=1), tmp_path / "a")
    folder.model_file.write_bytes(folder.model_file.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged"):
        trained_model(folder, load_data(folder.recipe))
    with pytest.raises(ValueError, match="holds no trained network"):
        trained_model(RunFolder(tmp_path), load_data(folder.recipe))


def test_training_learns(tmp_path: Path) -> None:
    folder = train(tiny_recipe(epochs=6, data__limit_train=1000), tmp_path / "a")
    assert folder.metrics()[-1]["validation_accuracy"] > 0.9


def test_a_folder_in_use_by_another_process_is_refused_and_freed_afterwards(tmp_path: Path) -> None:
    recipe = tiny_recipe(epochs=1)
    folder = RunFolder(tmp_path / "run")
    with folder.alone(), pytest.raises(ValueError, match="another process is training into"):
        train(recipe, folder.path)
    assert not folder.recipe_file.exists()  # nothing was written
    assert train(recipe, folder.path).finished
