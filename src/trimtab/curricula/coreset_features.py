"""What tells examples of a batch apart: their gradients in the last layer, or along one random direction."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trimtab.checks import positive, whole

PIECE = 1 << 24
"""Elements of single examples' gradients that are made at once."""


class Moments(NamedTuple):
    """Adam's memory of a tensor.

    Attributes:
        first, second: running mean of the gradient and of its square.
        step: steps taken.
        betas, eps: Adam's.
    """

    first: Tensor
    second: Tensor
    step: int
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8

    @classmethod
    def of(cls, optimizer: torch.optim.Optimizer, parameter: nn.Parameter) -> Moments | None:
        """Those that Adam or AdamW holds of a parameter; None before its first step.

        Raises:
            ValueError: the optimizer does not train the parameter, or is no Adam.
        """
        for group in optimizer.param_groups:
            if any(one is parameter for one in group["params"]):
                held = optimizer.state.get(parameter, {})
                if not held:
                    return None
                if "exp_avg_sq" not in held or "betas" not in group:
                    raise ValueError(f"directions of Adam need Adam or AdamW, got {type(optimizer).__name__}")
                return cls(held["exp_avg"], held["exp_avg_sq"], int(held["step"]), group["betas"], group["eps"])
        raise ValueError("the optimizer does not train this parameter")


def adam_direction(gradients: Tensor, moments: Moments) -> Tensor:
    """Where Adam would go if the gradient were this one: `m / (sqrt(v) + eps)`, bias-corrected, one step on.

    Args:
        gradients: (..., shape of the moments).

    Example:
        >>> adam_direction(torch.tensor([2.0]), Moments(torch.zeros(1), torch.zeros(1), 0))
        tensor([1.])
    """
    first, second = moments.betas
    step = moments.step + 1
    mean = (first * moments.first + (1 - first) * gradients) / (1 - first**step)
    square = (second * moments.second + (1 - second) * gradients.square()) / (1 - second**step)
    return mean / (square.sqrt() + moments.eps)


@torch.no_grad()
def last_layer_features(
    logits: Tensor, targets: Tensor, hidden: Tensor, top: int = 2560, moments: Moments | None = None
) -> Tensor:
    """Gradient of each example's cross-entropy in the last layer's weight, its largest coordinates: (examples, top).

    `(softmax(z) - onehot(y)) (x) h`, exact and without a backward pass; as a direction of Adam where its moments are given. The
    coordinates kept are those of largest mean magnitude over the batch.

    Args:
        logits: (examples, classes).
        targets: classes (examples,).
        hidden: what the last layer got, (examples, width).
        top: coordinates kept; all where there are fewer.
        moments: of the last layer's weight, see `Moments.of`.

    Raises:
        ValueError: shapes do not fit.

    Example:
        >>> last_layer_features(torch.zeros(3, 2), torch.tensor([0, 1, 1]), torch.ones(3, 4)).shape
        torch.Size([3, 8])
    """
    whole("top", top, least=1)
    if logits.ndim != 2 or hidden.ndim != 2 or not len(logits) == len(hidden) == len(targets):
        raise ValueError(
            f"logits and what the last layer got must be (examples, ...), got {tuple(logits.shape)}, {tuple(hidden.shape)} and "
            f"{tuple(targets.shape)} targets"
        )
    errors = logits.float().softmax(1) - F.one_hot(targets, logits.shape[1])
    wide = hidden.float()
    classes = max(1, PIECE // wide.numel())

    def piece(start: int) -> Tensor:
        part = errors[:, start : start + classes].unsqueeze(2) * wide.unsqueeze(1)
        if moments is not None:
            held = moments._replace(
                first=moments.first[start : start + classes], second=moments.second[start : start + classes]
            )
            part = adam_direction(part, held)
        return part.flatten(1)

    starts = range(0, errors.shape[1], classes)
    if len(starts) == 1:
        (every,) = map(piece, starts)
        return every[:, _largest(every.abs().mean(0), top)]
    kept = _largest(torch.cat([piece(start).abs().mean(0) for start in starts]), top)
    size = classes * wide.shape[1]
    return torch.cat([piece(start)[:, kept[kept // size == at] - at * size] for at, start in enumerate(starts)], 1)


@torch.no_grad()
def zeroth_order_features(
    losses: Callable[[], Tensor],
    parameters: Iterable[nn.Parameter],
    top: int = 2560,
    *,
    seed: int = 0,
    scale: float = 1e-3,
    optimizer: torch.optim.Optimizer | None = None,
) -> Tensor:
    """Gradient of each example along one random direction, times it: two forward passes, (examples, top).

    `(l_i(w + scale z) - l_i(w - scale z)) / (2 scale) z`, with one seeded normal z for the whole batch (authors' code). So the
    examples differ in a single number, unless directions of Adam (`optimizer`) bend it. The weights are bit-equal afterwards;
    random numbers, as of dropout, are the same in both passes, and drawn once.

    Args:
        losses: gives the loss of each example (examples,) at the weights as they stand; the same examples at both calls.
        parameters: those that are moved, the last layers in the paper.
        top: coordinates kept, those of largest mean magnitude.
        seed: of z; take the step's number.
        scale: above 0. Default 1e-3 (authors' code).
        optimizer: Adam or AdamW, whose moments turn gradients into directions.

    Raises:
        ValueError: no parameter, or losses are not one number an example.

    Example:
        >>> weight = nn.Parameter(torch.tensor([2.0]))
        >>> zeroth_order_features(lambda: weight * torch.tensor([1.0, 3.0]), [weight]).shape
        torch.Size([2, 1])
    """
    positive("scale", scale)
    whole("top", top, least=1)
    moved = list(parameters)
    if not moved:
        raise ValueError("zeroth-order features need at least one parameter to move")
    generator = torch.Generator().manual_seed(seed)
    directions = [torch.randn(one.shape, generator=generator).to(one) for one in moved]
    before = [one.detach().clone() for one in moved]
    devices = sorted({one.device.index for one in moved if one.device.type == "cuda"})
    values = []
    try:
        for sign in (1.0, -1.0):
            for parameter, held, direction in zip(moved, before, directions, strict=True):
                parameter.copy_(held + sign * scale * direction)
            with torch.random.fork_rng(devices=devices, enabled=sign > 0):  # dropout draws the same masks for both
                values.append(losses().detach())
    finally:
        for parameter, held in zip(moved, before, strict=True):
            parameter.copy_(held)
    if values[0].ndim != 1 or values[0].shape != values[1].shape:
        raise ValueError(f"losses must be one number an example, got the shape {tuple(values[0].shape)}")
    slopes = (values[0] - values[1]).float() / (2 * scale)
    parts = []
    for parameter, direction in zip(moved, directions, strict=True):
        part = slopes.reshape(-1, *[1] * direction.ndim) * direction.float()
        held_moments = None if optimizer is None else Moments.of(optimizer, parameter)
        parts.append((part if held_moments is None else adam_direction(part, held_moments)).flatten(1))
        parts = [torch.cat(parts, 1)]
        parts = [parts[0][:, _largest(parts[0].abs().mean(0), top)]]  # so that no more than two parameters are held
    return parts[0]


def _largest(sizes: Tensor, top: int) -> Tensor:
    """Positions of the largest, rising."""
    if top >= len(sizes):
        return torch.arange(len(sizes), device=sizes.device)
    return sizes.topk(top).indices.sort().values
