"""Outputs averaged over views, against a slow loop; what a run and a pruning say of them."""

from __future__ import annotations

from pathlib import Path

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor, nn

from tests.datasets.test_batches import a_dataset
from tests.runs.test_groups import fast_recipe
from trimtab.runs.evaluation import evaluate
from trimtab.runs.loading import batches_of, build_model, load_data, trained_model
from trimtab.runs.run_folder import training_identity
from trimtab.runs.training import train
from trimtab.runs.views import over_views
from trimtab.studies.prune_run import prune_run


def by_hand(image: Tensor, down: int, right: int, mirrored: bool) -> Tensor:
    """One image moved by so many pixels, the border filled with what lies as far inside it."""
    height, width = image.shape[-2:]
    out = torch.empty_like(image)
    for y in range(height):
        for x in range(width):
            from_y, from_x = y - down, (width - 1 - x if mirrored else x) - right
            from_y = 1 if from_y == -1 else height - 2 if from_y == height else from_y
            from_x = 1 if from_x == -1 else width - 2 if from_x == width else from_x
            out[..., y, x] = image[..., from_y, from_x]
    return out


@settings(max_examples=15, deadline=None)
@given(st.integers(2, 7), st.integers(2, 7), st.integers(0, 100))
def test_views_equal_a_loop_over_moved_and_mirrored_images(height: int, width: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(3, 2, height, width, generator=generator, dtype=torch.float32)
    weight = torch.randn(2 * height * width, 4, generator=generator)

    def outputs_of(x: Tensor) -> Tensor:
        return (x.flatten(1) @ weight).tanh()

    places = {1: {(0, 0): 1.0}, 2: {(0, 0): 1.0}, 6: {(0, 0): 0.5, (1, 1): 0.25, (-1, -1): 0.25}}
    for views, weights in places.items():
        sides = (False,) if views == 1 else (False, True)
        expected = sum(
            share / len(sides) * outputs_of(torch.stack([by_hand(image, *place, side) for image in images]))
            for place, share in weights.items()
            for side in sides
        )
        assert isinstance(expected, Tensor)
        torch.testing.assert_close(over_views(outputs_of, images, views), expected, rtol=1e-5, atol=1e-6)


def test_evaluation_over_views_looks_at_every_image_once_in_evaluation_mode() -> None:
    recipe = fast_recipe()
    data = load_data(recipe)
    model = build_model(recipe, data)
    batches = batches_of(recipe, data, "test")
    found = evaluate(model, batches, data.num_classes, views=6)
    assert model.training
    model.eval()
    with torch.no_grad():
        hits = [(over_views(model, images, 6).argmax(1) == targets).sum() for images, targets in batches.epoch(0)]
    assert found.accuracy == pytest.approx(sum(hits).item() / len(data.test))  # type: ignore[union-attr]
    assert found.accuracy != evaluate(model, batches, data.num_classes).accuracy


def test_a_run_and_its_pruning_report_them_beside_the_plain_accuracy(tmp_path: Path) -> None:
    recipe = fast_recipe(views=6, pruning__sparsities=(0.5,))
    folder = train(recipe, tmp_path / "run")
    rows, info = folder.metrics(), folder.info()
    data = load_data(recipe)
    model = trained_model(folder, data)
    expected = evaluate(model, batches_of(recipe, data, "validation"), data.num_classes, views=6)
    assert rows[-1]["views"] == info["views"] == 6
    assert rows[-1]["validation_accuracy_views"] == info["validation_accuracy_views"] == expected.accuracy
    assert "validation_accuracy_views" not in rows[0]
    plain = train(fast_recipe(), tmp_path / "plain")
    assert plain.model_file.read_bytes() == folder.model_file.read_bytes()
    assert "views" not in plain.info()
    assert training_identity(recipe) == training_identity(fast_recipe())
    pruned = prune_run(folder, split="test")
    on_test = evaluate(model, batches_of(recipe, data, "test"), data.num_classes, views=6)
    assert pruned.views == {"views": 6, "accuracy": on_test.accuracy, "loss": on_test.loss}
    assert prune_run(plain, split="test").views is None


def test_other_numbers_and_segmentations_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="views must be one of '1', '2', '6', got '3'"):
        over_views(nn.Flatten(), torch.zeros(1, 1, 4, 4), 3)
    with pytest.raises(
        ValueError, match=r"views are for classification, the network's outputs have the shape \(1, 1, 4, 4\)"
    ):
        over_views(nn.Identity(), torch.zeros(1, 1, 4, 4), 2)
    monkeypatch.setattr("trimtab.runs.training_run.load_data", lambda recipe: a_dataset(segmentation=True))
    with pytest.raises(ValueError, match="views must be 1 for a segmentation such as made, got 6"):
        train(fast_recipe(views=6, data__batch_size=8), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    with pytest.raises(ValueError, match=r"views: .* \(got 3\)"):
        fast_recipe(views=3)
