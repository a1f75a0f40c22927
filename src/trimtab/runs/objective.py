"""What a run minimises, apart from penalties."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def soft_dice_loss(outputs: Tensor, targets: Tensor, smooth: float = 1.0) -> Tensor:
    """One minus the soft Dice coefficient, averaged over the foreground classes.

    `1 - mean over c >= 1 of (2 sum p_c t_c + smooth) / (sum p_c + sum t_c + smooth)`, sums over the whole batch [ours: over
    the batch rather than per image, so that images without foreground do not dominate]. The form is that of V-Net
    (arXiv 1606.04797) without the squares.

    Args:
        outputs: logits (N, C, H, W), any float dtype; computed in float32.
        targets: class numbers (N, H, W), int64.
        smooth: added to both sides of the fraction; 1.

    Example:
        >>> logits = torch.tensor([[[[-9.0]], [[9.0]]]])
        >>> round(soft_dice_loss(logits, torch.tensor([[[1]]])).item(), 4)
        0.0
    """
    probabilities = outputs.float().softmax(1)
    truth = F.one_hot(targets, outputs.shape[1]).movedim(-1, 1).to(probabilities.dtype)
    axes = (0, *range(2, outputs.ndim))
    overlap = (probabilities * truth).sum(axes)
    total = probabilities.sum(axes) + truth.sum(axes)
    dice = (2 * overlap + smooth) / (total + smooth)
    return 1 - dice[1:].mean()


def is_text(targets: Tensor) -> bool:
    """Whether these are bytes that follow, (N, T), and not classes (N,) or pixels (N, H, W)."""
    return targets.ndim == 2


def each_byte(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Logits (N, T, classes) and bytes (N, T) as (N T, classes) and (N T,).

    Raises:
        ValueError: the network made another shape.
    """
    if outputs.ndim != 3 or outputs.shape[:2] != targets.shape:
        raise ValueError(
            f"of texts {tuple(targets.shape)} a network must make logits {(*targets.shape, 'classes')}, it made "
            f"{tuple(outputs.shape)}"
        )
    return outputs.flatten(0, 1), targets.flatten()


def task_loss(outputs: Tensor, targets: Tensor, *, label_smoothing: float, dice_weight: float) -> Tensor:
    """Cross-entropy; for segmentation (targets with pixels) mixed with the soft Dice loss; of every byte of a text."""
    if is_text(targets):
        outputs, targets = each_byte(outputs, targets)
    entropy = F.cross_entropy(outputs.float(), targets, label_smoothing=label_smoothing)
    if targets.ndim == 1 or dice_weight == 0:
        return entropy
    return (1 - dice_weight) * entropy + dice_weight * soft_dice_loss(outputs, targets)


def learning_rate_factor(
    name: str, step: int, steps_per_epoch: int, epochs: float, *, warmup_epochs: float, step_epochs: int, gamma: float
) -> float:
    """Factor of the learning rate before optimizer step `step` (0-based): a pure function, so a resumed run needs no state.

    Example:
        >>> [round(learning_rate_factor("cosine", s, 1, 4, warmup_epochs=0, step_epochs=1, gamma=0.1), 3) for s in range(4)]
        [1.0, 0.854, 0.5, 0.146]
    """
    warmup = warmup_epochs * steps_per_epoch
    if step < warmup:
        return 0.01 + 0.99 * step / warmup
    if name == "step":
        return gamma ** (step // (steps_per_epoch * step_epochs))
    if name == "constant":
        return 1.0
    total = max(steps_per_epoch * epochs - warmup, 1)
    if name == "linear":
        return max(0.0, 1 - (step - warmup) / total)
    return 0.5 * (1 + float(torch.cos(torch.tensor(torch.pi * (step - warmup) / total, dtype=torch.float64))))
