"""A small network that converges within a few epochs (after "94 % on CIFAR-10 in 3.29 seconds", arXiv 2404.00498)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trimtab.checks import positive, whole

KERNEL = 2
"""Side of the whitened patches."""


def whitening_filters(images: Tensor, eps: float = 5e-4) -> Tensor:
    """Filters that make the 2 x 2 patches of `images` white: their outputs are uncorrelated, each of mean square 1.

    With `C = mean over patches p of p p^T = sum of l_i v_i v_i^T` (not centred, as the images are) filter i is
    `v_i / sqrt(l_i + eps)`, greatest l first; then the same filters negative, so that no sign is lost in what follows.

    Args:
        images: (N, C, H, W) floats with sides of 2 or more.
        eps: keeps the faintest directions from being blown up. Default 5e-4 (the author's code).

    Returns:
        (2 * 4 C, C, 2, 2) in the dtype of the images; computed in float64.

    Raises:
        ValueError: no image, or sides below 2.

    Example:
        >>> whitening_filters(torch.randn(8, 3, 6, 6)).shape
        torch.Size([24, 3, 2, 2])
    """
    if images.ndim != 4 or not len(images) or min(images.shape[2:]) < KERNEL:
        raise ValueError(
            f"whitening needs images (N, C, H, W) with sides of {KERNEL} or more, got {tuple(images.shape)}"
        )
    positive("eps", eps)
    channels = images.shape[1]
    size = channels * KERNEL * KERNEL
    total = torch.zeros(size, size, dtype=torch.float64, device=images.device)
    count = 0
    for part in torch.split(images, 500):
        patches = F.unfold(part.double(), KERNEL).transpose(1, 2).reshape(-1, size)
        total += patches.T @ patches
        count += len(patches)
    values, vectors = torch.linalg.eigh(total / count)
    filters = (vectors / (values + eps).sqrt()).flip(1).T.reshape(size, channels, KERNEL, KERNEL)
    return torch.cat([filters, -filters]).to(images.dtype)


def _normalised(channels: int) -> nn.BatchNorm2d:
    """BatchNorm without a trained scale; its running statistics follow quickly, since there are few steps.

    The author's eps of 1e-12 would blow up the gradient of a channel that pruning has nearly emptied; PyTorch's stays [ours].
    """
    layer = nn.BatchNorm2d(channels, momentum=0.4)
    layer.weight.requires_grad = False
    return layer


def _convolution(inputs: int, outputs: int) -> nn.Conv2d:
    """3 x 3 without bias; the first filters hand their channel on as it is (dirac), the others start as PyTorch's do."""
    layer = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
    nn.init.dirac_(layer.weight.data[: min(inputs, outputs)])
    return layer


class Group(nn.Module):
    """Convolution, maximum over 2 x 2, BatchNorm, GELU, convolution, BatchNorm, GELU."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1 = _convolution(inputs, outputs)
        self.bn1 = _normalised(outputs)
        self.conv2 = _convolution(outputs, outputs)
        self.bn2 = _normalised(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) -> (N, outputs, H // 2, W // 2)."""
        x = F.gelu(self.bn1(F.max_pool2d(self.conv1(x), 2)))
        return F.gelu(self.bn2(self.conv2(x)))


class CifarFast(nn.Module):
    """Whitened 2 x 2 patches, three groups of two convolutions, a maximum over what is left, a scaled head.

    `logits = head_scale * W max(groups(gelu(whiten(x))))`. The whitening convolution is frozen and made from training images
    (`start_from`); its bias is trained. BatchNorm has no scale, the head no bias. The author's network has widths of 64, 256
    and 256; the halves here are for a CPU [ours].

    Args:
        num_classes: outputs.
        in_channels: channels of the images.
        width: channels of the first group; the other two have four times as many. Default 32 [ours]: 0.5 M parameters.
        head_scale: factor of the logits. Default 1/9 (the author's code).

    Raises:
        ValueError: a width below 1, or a scale that is not above 0; in `forward` images with sides below 9.

    Example:
        >>> net = CifarFast(num_classes=10, in_channels=3)
        >>> net.start_from(torch.randn(8, 3, 32, 32))
        >>> net(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """

    def __init__(self, num_classes: int, in_channels: int = 3, width: int = 32, head_scale: float = 1 / 9) -> None:
        super().__init__()
        whole("width", width, 1)
        self.head_scale = positive("head_scale", head_scale)
        patch = in_channels * KERNEL * KERNEL
        self.whiten = nn.Conv2d(in_channels, 2 * patch, KERNEL)
        self.whiten.weight.requires_grad = False
        self.groups = nn.Sequential(Group(2 * patch, width), Group(width, 4 * width), Group(4 * width, 4 * width))
        self.head = nn.Linear(4 * width, num_classes, bias=False)

    @torch.no_grad()
    def start_from(self, images: Tensor) -> None:
        """Make the whitening from these training images (N, C, H, W), normalised as those that the network will see."""
        filters = whitening_filters(images)
        if filters.shape != self.whiten.weight.shape:
            raise ValueError(
                f"the network takes {self.whiten.in_channels} channels, the images to start from have {images.shape[1]}"
            )
        self.whiten.weight.copy_(filters)

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, in_channels, H, W) -> logits (N, num_classes)."""
        if min(x.shape[2:]) < 9:
            raise ValueError(f"cifar10_fast takes images with sides of 9 or more, got {tuple(x.shape[2:])}")
        features: Tensor = self.groups(F.gelu(self.whiten(x))).amax((2, 3))
        logits: Tensor = self.head(features) * self.head_scale
        return logits
