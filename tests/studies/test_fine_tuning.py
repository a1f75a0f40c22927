"""Pruned, then trained on: removed weights stay zero, it is done once, goes on where it stopped, and stands in every table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.runs.tiny import tiny_recipe
from trimtab.pruning import one_shot
from trimtab.report import render
from trimtab.report.weights.terminal import terminal_tables
from trimtab.runs.loading import load_data, trained_model
from trimtab.runs.position import Progress
from trimtab.runs.run_folder import RunFolder
from trimtab.runs.training import train
from trimtab.studies import fine_tuning
from trimtab.studies.comparison import run_folders
from trimtab.studies.fine_tuning import FOLDER, fine_tune, fine_tuning_recipe
from trimtab.studies.prune_run import PrunedRun, prune_run
from trimtab.studies.records import Records, record_of
from trimtab.studies.statistics import fine_tuned_rows, main_rows
from trimtab.studies.variants import Variant
from trimtab.studies.weights.assemble import assemble

RECIPE = tiny_recipe(method="var", pruning__finetune=2, pruning__sparsities=(0.9,))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return train(RECIPE, tmp_path_factory.mktemp("tuned") / "runs/var/seed0")


@pytest.fixture(scope="module")
def measured(run: RunFolder) -> dict[Any, PrunedRun]:
    return {split: prune_run(run, split=split) for split in ("validation", "test")}


def pruned_network(run: RunFolder) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    model = trained_model(run, load_data(RECIPE))
    masks = one_shot(model, 0.9).masks
    return model.state_dict(), masks


def networks(run: RunFolder) -> dict[float, dict[str, torch.Tensor]]:
    """State of each fine-tuned network by its sparsity."""
    found = {}
    for folder in (run.path / FOLDER).iterdir():
        model = trained_model(RunFolder(folder), load_data(RECIPE))
        _, masks = pruned_network(run)
        weights = torch.cat([dict(model.named_parameters())[name].flatten() for name in masks])
        found[round((weights == 0).double().mean().item(), 3)] = model.state_dict()
    return found


def test_removed_weights_stay_zero_and_the_others_move(run: RunFolder, measured: dict[Any, PrunedRun]) -> None:
    before, masks = pruned_network(run)
    after = networks(run)[0.9]
    for name, mask in masks.items():
        assert not after[name][~mask].any()
    assert any(not torch.equal(after[name][mask], before[name][mask]) for name, mask in masks.items())


def test_it_is_done_once_for_all_splits_and_the_dense_network_too(
    run: RunFolder, measured: dict[Any, PrunedRun]
) -> None:
    assert sorted(networks(run)) == [0.0, 0.9]
    for split, found in measured.items():
        rows = [row for row in found.rows if row.finetuned]
        assert [(row.finetuned, round(row.sparsity, 2), row.recalibrated, row.split) for row in rows] == [
            (2, 0.0, False, split), (2, 0.9, False, split),
        ]  # fmt: skip
    pruned = next(
        row for row in measured["test"].rows if row.sparsity > 0 and not row.recalibrated and not row.finetuned
    )
    tuned = next(row for row in measured["test"].rows if row.sparsity > 0 and row.finetuned)
    assert tuned.file_bytes is not None
    assert abs(tuned.file_bytes - (pruned.file_bytes or 0)) < 2000
    assert not list((run.path / FOLDER).rglob("checkpoint.safetensors"))


def test_it_equals_training_by_hand_with_the_mask_put_on_after_each_step(
    run: RunFolder, measured: dict[Any, PrunedRun]
) -> None:
    """Plain SGD with momentum in a loop of our own, learning rate 0.1 x cosine, weights multiplied by the mask."""
    from trimtab.runs.loading import batches_of

    data = load_data(RECIPE)
    model = trained_model(run, data)
    masks = one_shot(model, 0.9).masks
    model.train()
    batches = batches_of(RECIPE, data, "train")
    parameters = dict(model.named_parameters())
    momentum = {name: torch.zeros_like(value) for name, value in parameters.items()}
    sgd, total = RECIPE.sgd, 2 * len(batches)
    step = 0
    for epoch in range(2):
        for images, targets in batches.epoch(epoch):
            rate = (
                sgd.lr * 0.1 * 0.5 * (1 + torch.cos(torch.tensor(torch.pi * step / total, dtype=torch.float64)).item())
            )
            torch.manual_seed((RECIPE.seed * 1_000_003 + step) * 1009)
            model.zero_grad()
            torch.nn.functional.cross_entropy(model(images), targets).backward()
            with torch.no_grad():
                for name, value in parameters.items():
                    assert value.grad is not None
                    momentum[name] = sgd.momentum * momentum[name] + value.grad + sgd.weight_decay * value
                    value -= rate * momentum[name]
                    if name in masks:
                        value *= masks[name]
            step += 1
    for name, value in networks(run)[0.9].items():
        torch.testing.assert_close(model.state_dict()[name], value, rtol=1e-4, atol=1e-5)


def test_stopped_and_gone_on_equals_uninterrupted(
    run: RunFolder, measured: dict[Any, PrunedRun], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = train(RECIPE, tmp_path / "other")
    state, masks = pruned_network(other)

    def stopping(text: str) -> None:
        if text == "fine-tuning epoch 2/2":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fine_tune(other, RECIPE, state, masks, stopping)
    (begun,) = (other.path / FOLDER).iterdir()
    assert len(RunFolder(begun).metrics()) == 1
    epochs: list[int] = []
    original = fine_tuning.train

    def counted(recipe: Any, path: Any, report: Any, *, prepare: Any) -> RunFolder:
        def noted(now: Progress) -> None:
            epochs.append(now.epoch)
            report(now)

        return original(recipe, path, noted, prepare=prepare)

    monkeypatch.setattr(fine_tuning, "train", counted)
    tuned = fine_tune(other, RECIPE, state, masks, lambda text: None)
    assert min(epochs) == 1  # the first epoch was not done again
    found = trained_model(tuned, load_data(RECIPE)).state_dict()
    for name, value in networks(run)[0.9].items():
        assert torch.equal(found[name], value)


def test_levers_do_not_act_and_groups_that_are_over_stay() -> None:
    recipe = tiny_recipe(
        method="var+sam", transforms=("centralize",), pruning__finetune=3,
        groups={"early": {"include": ["conv*"], "lr_factor": 8.0, "epochs": 1}, "late": {"include": ["fc*"], "lr_factor": 2.0}},
    )  # fmt: skip
    found = fine_tuning_recipe(recipe)
    assert (found.used, found.epochs, found.schedule.name) == (("sgd",), 3, "cosine")
    assert (found.groups["early"].lr_factor, found.groups["early"].decay_factor) == (0, 0)
    assert (found.groups["late"].lr_factor, found.groups["late"].epochs) == (2, None)


def test_rows_stand_beside_the_others_in_summary_tables_and_report(
    run: RunFolder, measured: dict[Any, PrunedRun], tmp_path: Path
) -> None:
    assert [folder.path for folder in run_folders(run.path)] == [run.path]  # fine-tuned networks are no runs of a study
    summary = assemble([run], run.path)
    assert all(not row.finetuned for row in main_rows(summary.rows))
    assert [row.finetuned for row in fine_tuned_rows(summary.rows)] == [2, 2]
    assert [str(table.title).rpartition(", ")[2] for table in terminal_tables(summary)] == [
        "as pruned", "recalibrated", "2 epochs",
    ]  # fmt: skip
    assert "; fine-tuned for 2 epochs, var keeps " in summary.headline
    assert any(note.startswith("Fine-tuned: trained on for 2 epochs after pruning") for note in summary.notes)
    page = render(summary, tmp_path / "report.html").read_text()
    assert "Pruned, then fine-tuned" in page
    assert "fine-tuned, 2 epochs" in page


def test_measured_with_fine_tuning_stands_for_without_and_not_the_other_way(
    run: RunFolder, measured: dict[Any, PrunedRun], tmp_path: Path
) -> None:
    without = RECIPE.with_settings({"pruning.finetune": 0})
    assert prune_run(run, recipe=without, split="test") == measured["test"]
    records = Records(tmp_path)
    variant, other = Variant("var", RECIPE), Variant("var", without)
    records.write(variant, record_of(run, measured))
    assert records.done(variant, ("test",)) == records.done(other, ("test",))
    record = records.done(variant, ("test",))
    assert record is not None
    bare = measured["test"].model_copy(
        update={"settings": {**measured["test"].settings, "finetune": 0}, "rows": main_rows(measured["test"].rows)}
    )
    records.write(variant, record_of(run, {"test": bare}))
    assert records.done(other, ("test",)) is not None
    assert records.done(variant, ("test",)) is None


@pytest.mark.parametrize(("field", "value"), [("finetune", -1), ("finetune_rate", 0)])
def test_bad_settings_are_refused(field: str, value: int) -> None:
    with pytest.raises(ValueError, match=f"pruning.{field}: Input should be greater than"):
        tiny_recipe().with_settings({f"pruning.{field}": value})
