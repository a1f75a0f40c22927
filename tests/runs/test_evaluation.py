"""Quality against scikit-learn and hand counts."""

from __future__ import annotations

import pytest
import torch
from sklearn.metrics import accuracy_score, jaccard_score, log_loss, top_k_accuracy_score
from torch import nn

from tests.runs.tiny import tiny_recipe
from trimtab.runs.evaluation import classification_quality, evaluate, segmentation_quality
from trimtab.runs.loading import batches_of, build_model, load_data


def test_accuracy_and_loss_match_scikit_learn() -> None:
    recipe = tiny_recipe()
    data = load_data(recipe)
    model = build_model(recipe, data)
    model.train()
    quality = evaluate(model, batches_of(recipe, data, "test"), data.num_classes)
    assert model.training
    model.eval()
    outputs, targets = [], []
    for images, labels in batches_of(recipe, data, "test").epoch(0):
        outputs.append(model(images).detach().double())
        targets.append(labels)
    scores, truth = torch.cat(outputs).softmax(1).numpy(), torch.cat(targets).numpy()
    assert len(truth) == len(data.test.targets)
    assert quality.accuracy == pytest.approx(accuracy_score(truth, scores.argmax(1)))
    assert quality.loss == pytest.approx(log_loss(truth, scores), rel=1e-5)
    assert quality.top5 is None


def test_top5_matches_scikit_learn() -> None:
    scores, truth = torch.rand(200, 30), torch.randint(0, 30, (200,))
    hits = (scores.topk(5).indices == truth[:, None]).any(1).sum()
    found = classification_quality(torch.tensor([1.0, float(hits), 2.0, 200.0]), with_top5=True)
    assert found.top5 == pytest.approx(top_k_accuracy_score(truth, scores, k=5, labels=range(30)))


def test_iou_and_dice_match_scikit_learn() -> None:
    truth, guess = torch.randint(0, 3, (5000,)), torch.randint(0, 3, (5000,))
    counts = [torch.tensor([float(((truth == c) & (guess == c)).sum()) for c in range(3)])]
    counts += [torch.bincount(labels, minlength=3).double() for labels in (guess, truth)]
    found = segmentation_quality(*counts, 0.0)
    jaccard = jaccard_score(truth, guess, average=None)[1:]
    assert found.iou == pytest.approx(jaccard.mean())
    assert found.accuracy == pytest.approx((2 * jaccard / (1 + jaccard)).mean())


def test_a_class_that_is_nowhere_does_not_count() -> None:
    intersection = torch.tensor([5.0, 3.0, 0.0])
    assert segmentation_quality(
        intersection, torch.tensor([6.0, 4.0, 0.0]), torch.tensor([5.0, 5.0, 0.0]), 0.0
    ).accuracy == (pytest.approx(6 / 9))


def test_evaluation_changes_nothing() -> None:
    recipe = tiny_recipe()
    data = load_data(recipe)
    model = build_model(recipe, data)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    evaluate(model, batches_of(recipe, data, "validation"), data.num_classes)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(module.training for module in model.modules() if isinstance(module, nn.Module))
