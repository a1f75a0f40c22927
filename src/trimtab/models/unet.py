"""U-Nets for segmentation (Ronneberger et al. 2015, arXiv 1505.04597): a small one, and one on a ResNet encoder."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trimtab.checks import whole
from trimtab.models.initial import kaiming_fan_out_
from trimtab.models.resnet import BasicBlock, Bottleneck, ResNetEncoder


def _two_convolutions(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
        nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


def _pad_to_multiple(x: Tensor, multiple: int) -> Tensor:
    """Zeros below and to the right until both sides are multiples of `multiple`."""
    height, width = x.shape[-2:]
    below, right = -height % multiple, -width % multiple
    return F.pad(x, (0, right, 0, below)) if below or right else x


class SmallUNet(nn.Module):
    """The U-Net with few channels, BatchNorm and padded convolutions, small enough for a CPU.

    `levels` halvings with `width, 2 width, 4 width, ...` channels; transposed 2 x 2 convolutions go up. Default width
    16 and 3 levels [ours]: 482,483 parameters for one channel and three classes. Sides that are no multiple of
    `2 ** levels` are padded with zeros and the output is cropped.

    Args:
        num_classes: classes, background included.
        in_channels: channels of the images.
        width: channels at full resolution.
        levels: number of halvings.

    Raises:
        ValueError: a width or a number of levels below 1.

    Example:
        >>> SmallUNet(num_classes=3, in_channels=1, width=4)(torch.zeros(1, 1, 45, 61)).shape
        torch.Size([1, 3, 45, 61])
    """

    def __init__(self, num_classes: int, in_channels: int = 1, width: int = 16, levels: int = 3) -> None:
        super().__init__()
        whole("width", width, 1)
        whole("levels", levels, 1)
        widths = [width * 2**level for level in range(levels + 1)]
        self.down = nn.ModuleList(
            _two_convolutions(inputs, outputs)
            for inputs, outputs in zip([in_channels, *widths[:-1]], widths, strict=True)
        )
        self.up = nn.ModuleList(nn.ConvTranspose2d(2 * fine, fine, 2, stride=2) for fine in reversed(widths[:-1]))
        self.merge = nn.ModuleList(_two_convolutions(2 * fine, fine) for fine in reversed(widths[:-1]))
        self.head = nn.Conv2d(width, num_classes, 1)
        kaiming_fan_out_(self)

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, in_channels, H, W) -> logits (N, num_classes, H, W)."""
        height, width = x.shape[-2:]
        x = _pad_to_multiple(x, 2 ** len(self.up))
        skips: list[Tensor] = []
        for number, block in enumerate(self.down):
            x = block(F.max_pool2d(x, 2) if number else x)
            skips.append(x)
        skips.pop()
        for up, merge in zip(self.up, self.merge, strict=True):
            x = merge(torch.cat([up(x), skips.pop()], dim=1))
        logits: Tensor = self.head(x)
        return logits[..., :height, :width]


class ResNetUNet(nn.Module):
    """A U-Net whose way down is a ResNet with the "imagenet" stem.

    The way up has five steps of nearest-neighbour doubling, joining the encoder's features of that size and two 3 x 3
    convolutions with BatchNorm; 256, 128, 64, 32, 16 channels, then a 3 x 3 convolution to the classes [ours; the
    widths are those in common use]. Sides that are no multiple of 32 are padded with zeros and the output is cropped.

    Args:
        block: `BasicBlock` or `Bottleneck`.
        layers: blocks in each stage of the encoder.
        num_classes: classes, background included.
        in_channels: channels of the images.

    Example:
        >>> net = ResNetUNet(BasicBlock, (1, 1, 1, 1), num_classes=2, in_channels=1)
        >>> net(torch.zeros(2, 1, 50, 33)).shape
        torch.Size([2, 2, 50, 33])
    """

    WIDTHS = (256, 128, 64, 32, 16)

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        layers: tuple[int, int, int, int],
        num_classes: int,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        self.encoder = ResNetEncoder(block, layers, in_channels, stem="imagenet")
        skips = (*reversed(self.encoder.widths[:-1]), 0)
        incoming = (self.encoder.widths[-1], *self.WIDTHS[:-1])
        self.decoder = nn.ModuleList(
            _two_convolutions(coarse + skip, width)
            for coarse, skip, width in zip(incoming, skips, self.WIDTHS, strict=True)
        )
        self.head = nn.Conv2d(self.WIDTHS[-1], num_classes, 3, padding=1)
        kaiming_fan_out_(self)

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, in_channels, H, W) -> logits (N, num_classes, H, W)."""
        height, width = x.shape[-2:]
        features = self.encoder.features(_pad_to_multiple(x, 32))
        out = features.pop()
        for block in self.decoder:
            out = F.interpolate(out, scale_factor=2.0, mode="nearest")
            if features:
                out = torch.cat([out, features.pop()], dim=1)
            out = block(out)
        logits: Tensor = self.head(out)
        return logits[..., :height, :width]


def unet_resnet18(num_classes: int, in_channels: int) -> ResNetUNet:
    """On the encoder of ResNet-18."""
    return ResNetUNet(BasicBlock, (2, 2, 2, 2), num_classes, in_channels)


def unet_resnet50(num_classes: int, in_channels: int) -> ResNetUNet:
    """On the encoder of ResNet-50."""
    return ResNetUNet(Bottleneck, (3, 4, 6, 3), num_classes, in_channels)
