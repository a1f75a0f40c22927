"""The ResNets made for 32 x 32 images, with shortcuts that carry no parameters (He et al. 2015, arXiv 1512.03385, 4.2)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trimtab.models.initial import kaiming_fan_out_


class PlainShortcutBlock(nn.Module):
    """Two 3 x 3 convolutions; where the shape changes the shortcut subsamples and appends zero channels (option A)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride = stride
        self.added = outputs - inputs

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) -> (N, outputs, ceil(H / stride), ceil(W / stride))."""
        out = torch.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        shortcut = x if self.stride == 1 else x[:, :, :: self.stride, :: self.stride]
        if self.added:
            shortcut = F.pad(shortcut, (0, 0, 0, 0, 0, self.added))
        return torch.relu(out + shortcut)


class CifarResNet(nn.Module):
    """ResNet of depth `2 * len(widths) * blocks + 2`: one 3 x 3 convolution, stages of equal length, mean, one Linear.

    With three stages of 16, 32 and 64 channels this is the 6n + 2 network of the paper: n = 1, 3, 9 give 8, 20 and 56
    layers. ResNet-20 with 10 classes has 269,722 parameters (option A; with 1 x 1 projections, option B, it would be
    272,474). The added channels are zeros after the existing ones [ours; the paper leaves their place open].

    Args:
        blocks: blocks per stage (n).
        num_classes: outputs.
        in_channels: channels of the images.
        widths: channels of each stage; each stage after the first halves the sides.

    Raises:
        ValueError: no block, no stage, or widths that shrink.

    Example:
        >>> net = CifarResNet(3, num_classes=10)
        >>> sum(p.numel() for p in net.parameters())
        269722
    """

    def __init__(
        self, blocks: int, num_classes: int, in_channels: int = 3, widths: tuple[int, ...] = (16, 32, 64)
    ) -> None:
        super().__init__()
        if blocks < 1:
            raise ValueError(f"blocks must be 1 or more, got {blocks}")
        widths = tuple(widths)
        if not widths or min(widths) < 1 or list(widths) != sorted(widths):
            raise ValueError(f"widths must be one or more positive numbers that do not shrink, got {widths}")
        self.conv1 = nn.Conv2d(in_channels, widths[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        stages: list[nn.Module] = []
        inputs = widths[0]
        for number, width in enumerate(widths):
            stage: list[nn.Module] = []
            for position in range(blocks):
                stage.append(PlainShortcutBlock(inputs, width, 2 if number and position == 0 else 1))
                inputs = width
            stages.append(nn.Sequential(*stage))
        self.stages = nn.Sequential(*stages)
        self.fc = nn.Linear(inputs, num_classes)
        kaiming_fan_out_(self)

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, in_channels, H, W) -> logits (N, num_classes)."""
        features: Tensor = self.stages(torch.relu(self.bn1(self.conv1(x))))
        logits: Tensor = self.fc(features.mean((2, 3)))
        return logits


def resnet8(num_classes: int, in_channels: int) -> CifarResNet:
    """One block a stage."""
    return CifarResNet(1, num_classes, in_channels)


def resnet20(num_classes: int, in_channels: int) -> CifarResNet:
    """Three blocks a stage."""
    return CifarResNet(3, num_classes, in_channels)


def resnet56(num_classes: int, in_channels: int) -> CifarResNet:
    """Nine blocks a stage."""
    return CifarResNet(9, num_classes, in_channels)


def resnet_digits(num_classes: int, in_channels: int) -> CifarResNet:
    """Two stages of one block, for 8 x 8 images [ours]."""
    return CifarResNet(1, num_classes, in_channels, widths=(16, 32))
