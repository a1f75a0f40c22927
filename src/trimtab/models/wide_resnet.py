"""Wide residual networks (Zagoruyko and Komodakis 2016, arXiv 1605.07146)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from trimtab.models.initial import kaiming_fan_out_


class PreActivationBlock(nn.Module):
    """BatchNorm, ReLU, convolution, twice; a 1 x 1 convolution on the activated input where the width changes."""

    def __init__(self, inputs: int, outputs: int, stride: int, dropout: float) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        changes = stride != 1 or inputs != outputs
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False) if changes else None

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) -> (N, outputs, ceil(H / stride), ceil(W / stride))."""
        active = torch.relu(self.bn1(x))
        out = torch.relu(self.bn2(self.conv1(active)))
        out = self.conv2(self.dropout(out))
        result: Tensor = out + (x if self.shortcut is None else self.shortcut(active))
        return result


class WideResNet(nn.Module):
    """WRN-depth-factor: three stages of `16, 32, 64` times `factor` channels with (depth - 4) / 6 blocks each.

    WRN-28-10: 36,479,194 parameters with 10 classes, 36,536,884 with 100 (the paper's 36.5 M).

    Args:
        num_classes: outputs.
        in_channels: channels of the images.
        depth: 6 n + 4. Default 28.
        factor: widening factor. Default 10.
        dropout: probability between the two convolutions of a block. Default 0; the paper also tries 0.3.

    Raises:
        ValueError: a depth that is not 6 n + 4, or a factor below 1.

    Example:
        >>> with torch.device("meta"):
        ...     net = WideResNet(num_classes=100)
        >>> sum(p.numel() for p in net.parameters())
        36536884
    """

    def __init__(
        self, num_classes: int, in_channels: int = 3, depth: int = 28, factor: int = 10, dropout: float = 0.0
    ) -> None:
        super().__init__()
        if depth < 10 or (depth - 4) % 6:
            raise ValueError(f"depth must be 6 n + 4 with n >= 1 (10, 16, 22, 28, ...), got {depth}")
        if factor < 1:
            raise ValueError(f"factor must be 1 or more, got {factor}")
        self.conv1 = nn.Conv2d(in_channels, 16, 3, padding=1, bias=False)
        blocks: list[nn.Module] = []
        inputs = 16
        for number, width in enumerate((16 * factor, 32 * factor, 64 * factor)):
            for position in range((depth - 4) // 6):
                stride = 2 if number and position == 0 else 1
                blocks.append(PreActivationBlock(inputs, width, stride, dropout))
                inputs = width
        self.blocks = nn.Sequential(*blocks)
        self.bn = nn.BatchNorm2d(inputs)
        self.fc = nn.Linear(inputs, num_classes)
        kaiming_fan_out_(self)

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, in_channels, H, W) -> logits (N, num_classes)."""
        features = torch.relu(self.bn(self.blocks(self.conv1(x))))
        logits: Tensor = self.fc(features.mean((2, 3)))
        return logits
