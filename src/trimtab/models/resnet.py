"""ResNet-18 and ResNet-50 with projection shortcuts (He et al. 2015, arXiv 1512.03385), for small and large images."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from trimtab.checks import one_of
from trimtab.models.initial import kaiming_fan_out_

STEMS = ("cifar", "imagenet")


def _shortcut(inputs: int, outputs: int, stride: int) -> nn.Module:
    if stride == 1 and inputs == outputs:
        return nn.Identity()
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions beside a shortcut."""

    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = _shortcut(inputs, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) -> (N, width, ceil(H / stride), ceil(W / stride))."""
        out = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(out)) + self.downsample(x))


class Bottleneck(nn.Module):
    """1 x 1, 3 x 3 and 1 x 1 convolutions beside a shortcut; the 3 x 3 one strides, as in the common later form."""

    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        outputs = width * self.expansion
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.downsample = _shortcut(inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) -> (N, 4 * width, ceil(H / stride), ceil(W / stride))."""
        out = torch.relu(self.bn1(self.conv1(x)))
        out = torch.relu(self.bn2(self.conv2(out)))
        return torch.relu(self.bn3(self.conv3(out)) + self.downsample(x))


class ResNetEncoder(nn.Module):
    """The convolutional part of a ResNet; gives the features of every resolution.

    Args:
        block: `BasicBlock` or `Bottleneck`.
        layers: blocks in each of the four stages.
        in_channels: channels of the images.
        stem: "imagenet": 7 x 7 convolution with stride 2 and 3 x 3 max pooling with stride 2. "cifar": one 3 x 3
            convolution, no striding, for images of about 32 x 32.

    Raises:
        ValueError: an unknown stem.
    """

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        layers: tuple[int, int, int, int],
        in_channels: int = 3,
        stem: str = "imagenet",
    ) -> None:
        super().__init__()
        one_of("stem", stem, STEMS)
        self.conv1 = (
            nn.Conv2d(in_channels, 64, 7, 2, padding=3, bias=False)
            if stem == "imagenet"
            else nn.Conv2d(in_channels, 64, 3, padding=1, bias=False)
        )
        self.bn1 = nn.BatchNorm2d(64)
        self.maxpool = nn.MaxPool2d(3, 2, padding=1) if stem == "imagenet" else nn.Identity()
        inputs = 64
        for number, (width, count) in enumerate(zip((64, 128, 256, 512), layers, strict=True), start=1):
            stage: list[nn.Module] = []
            for position in range(count):
                stage.append(block(inputs, width, 2 if number > 1 and position == 0 else 1))
                inputs = width * block.expansion
            self.add_module(f"layer{number}", nn.Sequential(*stage))
        self.widths = (64, *(width * block.expansion for width in (64, 128, 256, 512)))

    def features(self, x: Tensor) -> list[Tensor]:
        """Features after the first convolution and after each of the four stages, from fine to coarse."""
        found = [torch.relu(self.bn1(self.conv1(x)))]
        x = self.maxpool(found[0])
        for number in (1, 2, 3, 4):
            x = self.get_submodule(f"layer{number}")(x)
            found.append(x)
        return found

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, in_channels, H, W) -> the coarsest features."""
        return self.features(x)[-1]


class ResNet(ResNetEncoder):
    """A ResNet for classification: encoder, mean over the positions, one Linear.

    The names of the parameters are those of the common PyTorch ResNet, so public ImageNet weights fit the "imagenet"
    stem. ResNet-18, "cifar" stem, 10 classes: 11,173,962 parameters; "imagenet" stem, 1000 classes: 11,689,512;
    ResNet-50 likewise 25,557,032.

    Example:
        >>> with torch.device("meta"):
        ...     net = ResNet(BasicBlock, (2, 2, 2, 2), num_classes=10, stem="cifar")
        >>> sum(p.numel() for p in net.parameters())
        11173962
    """

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        layers: tuple[int, int, int, int],
        num_classes: int,
        in_channels: int = 3,
        stem: str = "imagenet",
    ) -> None:
        super().__init__(block, layers, in_channels, stem)
        self.fc = nn.Linear(self.widths[-1], num_classes)
        kaiming_fan_out_(self)

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, in_channels, H, W) -> logits (N, num_classes)."""
        logits: Tensor = self.fc(super().forward(x).mean((2, 3)))
        return logits


def resnet18(num_classes: int, in_channels: int, stem: str = "cifar") -> ResNet:
    """ResNet-18, by default for small images."""
    return ResNet(BasicBlock, (2, 2, 2, 2), num_classes, in_channels, stem)


def resnet50(num_classes: int, in_channels: int, stem: str = "cifar") -> ResNet:
    """ResNet-50, by default for small images."""
    return ResNet(Bottleneck, (3, 4, 6, 3), num_classes, in_channels, stem)
