"""The mean of a network's outputs over several views of an image."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from torch import Tensor
from torch.nn import functional as F

from trimtab.checks import one_of

Views = Literal[1, 2, 6]
COUNTS = ("1", "2", "6")


def over_views(outputs_of: Callable[[Tensor], Tensor], images: Tensor, views: int) -> Tensor:
    """Outputs averaged over views of the images: 1 as they are, 2 also mirrored, 6 also moved by a pixel each way.

    With `f` the mean of an image and its mirror image, two views are `f(x)` and six `f(x) / 2 + (f(x moved up and left) +
    f(x moved down and right)) / 4`, where the border is filled by reflection (the author's code of arXiv 2404.00498).

    Args:
        outputs_of: the network, images (N, C, H, W) -> logits (N, classes).
        images: (N, C, H, W).
        views: 1, 2 or 6.

    Raises:
        ValueError: another number of views, or outputs that have pixels, which a mirror would move.

    Example:
        >>> import torch
        >>> left = lambda images: images[:, 0, :, :1].mean(1)  # looks at the first column
        >>> x = torch.tensor([0.0, 0.0, 0.0, 8.0]).expand(1, 1, 4, 4)
        >>> [over_views(left, x, count).item() for count in (1, 2, 6)]
        [0.0, 4.0, 2.0]
    """
    one_of("views", str(views), COUNTS)
    if views == 1:
        return outputs_of(images)

    def mirrored(x: Tensor) -> Tensor:
        outputs = (outputs_of(x).float() + outputs_of(x.flip(3)).float()) / 2
        if outputs.ndim != 2:
            raise ValueError(
                f"views are for classification, the network's outputs have the shape {tuple(outputs.shape)}"
            )
        return outputs

    plain = mirrored(images)
    if views == 2:
        return plain
    height, width = images.shape[2:]
    padded = F.pad(images, (1, 1, 1, 1), mode="reflect")
    moved = mirrored(padded[:, :, :height, :width]) + mirrored(padded[:, :, 2:, 2:])
    return plain / 2 + moved / 4
