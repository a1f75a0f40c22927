"""A tiny convolutional network for 8 x 8 digits: a few seconds of training on one core."""

from __future__ import annotations

from torch import Tensor, nn

from trimtab.checks import whole
from trimtab.models.initial import kaiming_fan_out_


class DigitsCNN(nn.Module):
    """Three 3 x 3 convolutions with BatchNorm (16, 32, 64 channels), one pooling, mean, one Linear [ours].

    One input channel and 10 classes: 24,058 parameters.

    Example:
        >>> sum(p.numel() for p in DigitsCNN(num_classes=10, in_channels=1).parameters())
        24058
    """

    def __init__(self, num_classes: int, in_channels: int = 1, width: int = 16) -> None:
        super().__init__()
        whole("width", width, 1)

        def convolve(inputs: int, outputs: int) -> list[nn.Module]:
            return [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]

        self.features = nn.Sequential(
            *convolve(in_channels, width),
            *convolve(width, 2 * width),
            nn.MaxPool2d(2),
            *convolve(2 * width, 4 * width),
        )
        self.fc = nn.Linear(4 * width, num_classes)
        kaiming_fan_out_(self)

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, in_channels, H, W) -> logits (N, num_classes)."""
        logits: Tensor = self.fc(self.features(x).mean((2, 3)))
        return logits
