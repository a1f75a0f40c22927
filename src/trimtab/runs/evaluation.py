"""Loss and quality of a network on one split, the same numbers on one process or many."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trimtab.collectives import sum_over_ranks
from trimtab.datasets import Batches
from trimtab.parameters.modes import modes_kept
from trimtab.runs.objective import each_byte, is_text
from trimtab.runs.views import over_views

LARGEST = 1000.0
"""Bits per byte beyond which the perplexity is called infinite."""


@dataclass(frozen=True)
class Quality:
    """What `evaluate` measures.

    Attributes:
        accuracy: top-1 accuracy; for segmentation the Dice coefficient averaged over the foreground classes, each from
            the pixel counts of the whole split [ours]; for texts the share of bytes guessed right.
        loss: mean cross-entropy (natural logarithm) per image, per pixel for segmentation, per byte for texts.
        top5: top-5 accuracy where there are more than 20 classes.
        iou: intersection over union, averaged as Dice is; segmentation only.
        bits_per_byte: mean of -log2 of the probability given to the byte that follows, each window read from its beginning;
            texts only.
    """

    accuracy: float
    loss: float
    top5: float | None = None
    iou: float | None = None
    bits_per_byte: float | None = None

    @property
    def perplexity(self) -> float | None:
        """`2 ** bits_per_byte`: among how many equally likely bytes the network is torn, on average; texts only."""
        if self.bits_per_byte is None:
            return None
        return 2**self.bits_per_byte if self.bits_per_byte < LARGEST else math.inf


def text_quality(totals: Tensor) -> Quality:
    """From (correct, sum of losses, bytes): `bits per byte = loss / ln 2`."""
    correct, loss, count = totals.tolist()
    return Quality(correct / count, loss / count, bits_per_byte=loss / count / math.log(2))


def classification_quality(totals: Tensor, *, with_top5: bool) -> Quality:
    """From (correct, correct within five, sum of losses, count)."""
    correct, within_five, loss, count = totals.tolist()
    return Quality(correct / count, loss / count, within_five / count if with_top5 else None)


def segmentation_quality(intersection: Tensor, predicted: Tensor, actual: Tensor, loss: float) -> Quality:
    """From pixel counts per class, background (class 0) first; a class absent from both counts as nothing.

    `Dice = 2 |P and A| / (|P| + |A|)`, `IoU = |P and A| / |P or A|`.
    """
    total = predicted + actual
    present = total[1:] > 0
    if not bool(present.any()):
        return Quality(accuracy=1.0, loss=loss, iou=1.0)
    dice = (2 * intersection / total.clamp(min=1))[1:][present]
    iou = (intersection / (total - intersection).clamp(min=1))[1:][present]
    return Quality(accuracy=dice.mean().item(), loss=loss, iou=iou.mean().item())


@torch.no_grad()
def evaluate(
    model: nn.Module,
    batches: Batches,
    num_classes: int,
    *,
    autocast: AbstractContextManager[object] | None = None,
    views: int = 1,
) -> Quality:
    """Measure `model` in evaluation mode on every image of `batches` once; modes are put back afterwards.

    With `views` 2 or 6 its outputs are averaged over so many views of an image, see `over_views`.

    Raises:
        ValueError: there is no image, or views of a segmentation or text.
    """
    totals: Tensor | None = None
    counts: Tensor | None = None
    with modes_kept(model):
        model.eval()
        for images, targets in batches.epoch(0):
            with autocast or nullcontext():
                outputs = over_views(model, images, views)
            outputs = outputs.float()
            of_text = is_text(targets)
            if of_text:
                outputs, targets = each_byte(outputs, targets)
            predictions = outputs.argmax(1)
            loss = F.cross_entropy(outputs, targets, reduction="none")
            if targets.ndim > 1:
                hits = F.one_hot(targets, num_classes).bool() & F.one_hot(predictions, num_classes).bool()
                axes = tuple(range(hits.ndim - 1))
                found = torch.stack(
                    [
                        hits.sum(axes),
                        torch.bincount(predictions.flatten(), minlength=num_classes),
                        torch.bincount(targets.flatten(), minlength=num_classes),
                    ]
                ).double()
                counts = found if counts is None else counts + found
                step = torch.stack(
                    [loss.mean(tuple(range(1, loss.ndim))).sum().double(), loss.new_tensor(len(images)).double()]
                )
            elif of_text:
                step = torch.stack(
                    [
                        (predictions == targets).sum().double(),
                        loss.double().sum(),
                        loss.new_tensor(targets.numel()).double(),
                    ]
                )
            else:
                ranked = outputs.topk(min(5, num_classes), dim=1).indices == targets[:, None]
                step = torch.stack(
                    [
                        (predictions == targets).sum().double(),
                        ranked.any(1).sum().double(),
                        loss.double().sum(),
                        loss.new_tensor(len(images)).double(),
                    ]
                )
            totals = step if totals is None else totals + step
    if totals is None:
        raise ValueError("cannot evaluate: the split holds no image")
    totals = sum_over_ranks(totals)
    if counts is not None:
        intersection, predicted, actual = sum_over_ranks(counts)
        return segmentation_quality(intersection, predicted, actual, (totals[0] / totals[1]).item())
    if batches.task == "text":
        return text_quality(totals)
    return classification_quality(totals, with_top5=num_classes > 20)
