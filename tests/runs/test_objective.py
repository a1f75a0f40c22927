"""Losses against closed forms; the learning rate's shape."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch.nn import functional as F

from trimtab.runs.objective import learning_rate_factor, soft_dice_loss, task_loss


def test_soft_dice_matches_a_loop_in_float64() -> None:
    logits = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    targets = torch.randint(0, 3, (2, 4, 5))
    p = logits.softmax(1)
    dice = []
    for c in (1, 2):
        t = (targets == c).double()
        dice.append((2 * (p[:, c] * t).sum() + 1) / (p[:, c].sum() + t.sum() + 1))
    assert soft_dice_loss(logits, targets).item() == pytest.approx(1 - sum(dice).item() / 2, abs=1e-6)


def test_task_loss_mixes_and_classification_ignores_dice() -> None:
    logits, targets = torch.randn(2, 3, 4, 4), torch.randint(0, 3, (2, 4, 4))
    mixed = task_loss(logits, targets, label_smoothing=0.0, dice_weight=0.25)
    assert mixed.item() == pytest.approx(
        0.75 * F.cross_entropy(logits, targets).item() + 0.25 * soft_dice_loss(logits, targets).item(), rel=1e-6
    )
    flat, labels = torch.randn(4, 3), torch.randint(0, 3, (4,))
    assert task_loss(flat, labels, label_smoothing=0.1, dice_weight=0.5) == F.cross_entropy(
        flat, labels, label_smoothing=0.1
    )


def test_dice_gradient_reaches_every_logit() -> None:
    logits = torch.randn(1, 3, 2, 2, requires_grad=True)
    soft_dice_loss(logits, torch.randint(0, 3, (1, 2, 2))).backward()
    assert (logits.grad != 0).all()


def test_learning_rate_shapes() -> None:
    options = {"warmup_epochs": 2, "step_epochs": 3, "gamma": 0.1}
    cosine = [learning_rate_factor("cosine", step, 10, 8, **options) for step in range(80)]
    assert cosine[0] == pytest.approx(0.01)
    assert cosine[20] == 1.0
    assert cosine[50] == pytest.approx(0.5)
    assert all(a >= b for a, b in itertools.pairwise(cosine[20:]))
    assert cosine[-1] == pytest.approx(0.5 * (1 + math.cos(math.pi * 59 / 60)))
    linear = [learning_rate_factor("linear", step, 10, 8, **options) for step in range(80)]
    assert linear[:20] == cosine[:20]
    assert linear[20:] == pytest.approx([1 - step / 60 for step in range(60)])
    assert learning_rate_factor("linear", 90, 10, 8, **options) == 0.0
    assert learning_rate_factor("step", 65, 10, 8, **options) == pytest.approx(0.01)
    assert learning_rate_factor("constant", 65, 10, 8, **options) == 1.0
