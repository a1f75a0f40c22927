"""Initial values shared by the networks here."""

from __future__ import annotations

import torch
from torch import nn


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
