"""Initial values shared by the networks here."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from trimtab.checks import number


@torch.no_grad()
def kaiming_fan_out_(model: nn.Module) -> None:
    """Set the usual initial values of a convolutional network, in place.

    Convolutions: normal, mean 0, variance `2 / fan_out` with fan_out = output channels * kernel area (He et al. 2015,
    arXiv 1502.01852). BatchNorm: scale 1, shift 0. Every bias: 0. A Linear keeps PyTorch's own uniform weights [ours].

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
        >>> kaiming_fan_out_(net)
        >>> bool((net[0].bias == 0).all())
        True
    """
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
            # kaiming_normal_ reads dim 0 as the outputs; a transposed convolution keeps them in dim 1.
            weight = module.weight.transpose(0, 1) if isinstance(module, nn.ConvTranspose2d) else module.weight
            nn.init.kaiming_normal_(weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)


@torch.no_grad()
def prior_bias_(layer: nn.Module, share: float) -> None:
    """Set the bias of a classifier's last layer so that it begins with the prior: `b = -ln((1 - pi) / pi)`, in place.

    With a sigmoid behind it every class then begins with the chance pi. Where one box in a thousand holds an object, the
    first loss is about `-ln(1 - pi)` a box and not ln 2, and the first steps are not spent on learning that there is mostly
    nothing.

    Args:
        layer: Linear or convolution with a bias, one output a class (or a class and place).
        share: pi, the positives over all examples and classes, in (0, 1); `positive_share` measures it.

    Raises:
        TypeError: the layer has no bias.
        ValueError: the share is not in (0, 1).

    Reference: Chen et al., Sampling-Free, arXiv 1909.04868; pi = 0.01 is RetinaNet's.

    Example:
        >>> layer = nn.Linear(4, 3)
        >>> prior_bias_(layer, 0.01)
        >>> layer.bias.sigmoid()
        tensor([0.0100, 0.0100, 0.0100], grad_fn=<SigmoidBackward0>)
    """
    number("share", share, above=0, below=1)
    bias = getattr(layer, "bias", None)
    if not isinstance(bias, nn.Parameter):
        raise TypeError(f"the prior goes into a bias, {layer} has none")
    bias.fill_(-math.log((1 - share) / share))


def positive_share(targets: Iterable[Tensor]) -> float:
    """pi: the positives over all examples and classes, as a detector sees them over one epoch.

    Args:
        targets: batches of 0 and 1 (or True and False), one number for each example (or place) and class.

    Raises:
        ValueError: no target, or one that is neither 0 nor 1.

    Example:
        >>> positive_share([torch.tensor([[1, 0, 0, 0]]), torch.tensor([[0, 0, 0, 0]])])
        0.125
    """
    positives = total = 0
    for batch in targets:
        found = int((batch == 1).sum())
        if found + int((batch == 0).sum()) != batch.numel():
            raise ValueError(f"targets must be 0 or 1, one for each class, got {torch.unique(batch).tolist()[:5]}")
        positives, total = positives + found, total + batch.numel()
    if not total:
        raise ValueError("a share of positives needs targets, got none")
    return positives / total
