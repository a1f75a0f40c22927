"""VGG-16 with BatchNorm, in the form used for 32 x 32 images (Simonyan and Zisserman 2014, arXiv 1409.1556)."""

from __future__ import annotations

from torch import Tensor, nn

from trimtab.models.initial import kaiming_fan_out_

LAYERS_16 = (64, 64, "pool", 128, 128, "pool", 256, 256, 256, "pool", 512, 512, 512, "pool", 512, 512, 512, "pool")


class VGG16BN(nn.Module):
    """Thirteen 3 x 3 convolutions, five 2 x 2 poolings, then one Linear instead of the paper's three (the CIFAR form).

    Convolutions keep their bias. 10 classes: 14,728,266 parameters. What is left of the image (1 x 1 at 32 x 32) is
    averaged, so larger images work too [ours].

    Raises:
        ValueError: an image smaller than 32 on a side.

    Example:
        >>> import torch
        >>> with torch.device("meta"):
        ...     net = VGG16BN(num_classes=10)
        >>> sum(p.numel() for p in net.parameters())
        14728266
    """

    def __init__(self, num_classes: int, in_channels: int = 3) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inputs = in_channels
        for item in LAYERS_16:
            if isinstance(item, str):
                layers.append(nn.MaxPool2d(2))
            else:
                layers += [nn.Conv2d(inputs, item, 3, padding=1), nn.BatchNorm2d(item), nn.ReLU(inplace=True)]
                inputs = item
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(512, num_classes)
        kaiming_fan_out_(self)

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, in_channels, H, W) -> logits (N, num_classes)."""
        if min(x.shape[-2:]) < 32:
            raise ValueError(f"vgg16_bn halves the image five times and needs 32 x 32 or more, got {tuple(x.shape)}")
        logits: Tensor = self.classifier(self.features(x).mean((2, 3)))
        return logits
