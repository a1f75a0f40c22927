"""Two optional terms that tie the model to the box: where it looks, and what the image features inside the box mean."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from trimtab.medclm.records import Box, Row

KERNEL, SIGMA = 9, 3.0
"""Of the blur on a grid of 24 x 24; other grids scale sigma with their size (ours)."""


@dataclass(frozen=True)
class View:
    """What the model sees of a row's image: the grid of its image tokens, and the box on what the processor has left of it.

    Attributes:
        rows, columns: of the image tokens, in reading order from the top left.
        box: in fractions of the part that is seen; None without lesion, or where it was cut off.
    """

    rows: int
    columns: int
    box: Box | None


def view(box: Box | None, size: tuple[int, int], tokens: int, processor: Any, grid: Sequence[int] | None) -> View:
    """The view of an image of `size` (width, height) that became `tokens` image tokens.

    LLaVA and VipLlava have a square grid; their image processor may cut a square from the middle, and the box with it.
    Qwen2.5-VL keeps the whole image and says its grid of patches (`image_grid_thw`), of which `merge_size`² make a token.

    Raises:
        ValueError: the tokens are neither a square nor the product of the grid.
    """
    pictures = processor.image_processor
    if grid is None:
        rows = columns = math.isqrt(tokens)
    else:
        rows, columns = (int(side) // pictures.merge_size for side in grid[1:])
    if rows * columns != tokens:
        raise ValueError(f"{tokens} image tokens are no grid of {rows} x {columns}: --attention and --anchor need one")
    if box is not None and getattr(pictures, "do_center_crop", False):
        box = _in_middle_square(box, *size)
    return View(rows, columns, box)


def _in_middle_square(box: Box, width: int, height: int) -> Box | None:
    side = min(width, height)

    def seen(value: float, size: int) -> float:
        return min(max((value * size - (size - side) / 2) / side, 0.0), 1.0)

    x0, x1, y0, y1 = seen(box.x0, width), seen(box.x1, width), seen(box.y0, height), seen(box.y1, height)
    return Box(x0=x0, y0=y0, x1=x1, y1=y1) if x0 < x1 and y0 < y1 else None


def box_share(box: Box, rows: int, columns: int) -> Tensor:
    """Share of each patch that the box covers; (rows, columns), rows from the top, float32 in [0, 1].

    >>> box_share(Box(x0=0.5, y0=0.0, x1=1.0, y1=0.25), 2, 2)
    tensor([[0.0000, 0.5000],
            [0.0000, 0.0000]])
    """

    return cover(torch.tensor(box.corners), rows, columns)


def cover(boxes: Tensor, rows: int, columns: int) -> Tensor:
    """Share of each patch that each box (..., 4), corners in fractions, covers; (..., rows, columns)."""

    def along(low: Tensor, high: Tensor, count: int) -> Tensor:
        edges = torch.arange(count + 1, dtype=torch.float32, device=boxes.device) / count
        inside = torch.minimum(edges[1:], high[..., None]) - torch.maximum(edges[:-1], low[..., None])
        return inside.clamp(min=0) * count

    x0, y0, x1, y1 = boxes.unbind(-1)
    return along(y0, y1, rows)[..., None] * along(x0, x1, columns)[..., None, :]


def _kernel(count: int) -> Tensor:
    sigma, reach = SIGMA * count / 24, min(KERNEL // 2, count - 1)
    steps = torch.arange(-reach, reach + 1, dtype=torch.float32)
    kernel = torch.exp(-(steps**2) / (2 * sigma**2))
    return kernel / kernel.sum()


def target_map(box: Box, rows: int, columns: int) -> Tensor:
    """The box on the grid, blurred by a Gaussian (kernel 9, sigma 3 at 24 x 24), summing to 1; (rows * columns,)."""
    down, across = _kernel(rows), _kernel(columns)
    blurred = nn.functional.conv2d(
        box_share(box, rows, columns)[None, None], torch.outer(down, across)[None, None],
        padding=(len(down) // 2, len(across) // 2),
    )  # fmt: skip
    flat = blurred.flatten()
    return flat / flat.sum()


def attention_loss(attention: Tensor, images: Tensor, learnt: Tensor, views: Sequence[View]) -> Tensor:
    """`KL(blurred box || attention)` averaged over the rows that have a box; shape (), 0 where none has.

    Args:
        attention: last layer's attention, (rows, heads, tokens, tokens); averaged over heads and over the learnt tokens, taken
            at the image tokens and divided by its sum.
        images: (rows, tokens), True at image tokens.
        learnt: (rows, tokens), True at the target's tokens.
        views: of the batch.
    """
    total, count = attention.new_zeros((), dtype=torch.float32), 0
    for place, seen in enumerate(views):
        if seen.box is None:
            continue
        looked = attention[place].float().mean(0)[learnt[place]].mean(0)[images[place]]
        looked = looked / looked.sum().clamp(min=1e-12)
        wanted = target_map(seen.box, seen.rows, seen.columns).to(looked.device)
        total = total + (wanted * (wanted.clamp(min=1e-12).log() - looked.clamp(min=1e-12).log())).sum()
        count += 1
    return total / max(count, 1)


def anchor_loss(features: Sequence[Tensor], words: Sequence[Tensor | None], views: Sequence[View]) -> Tensor:
    """`1 - cos(mean image token inside the box, mean embedding of the words)` averaged over rows with box and words.

    Args:
        features: per row what stands in the place of the image tokens before the first layer, (image tokens, width).
        words: per row the embeddings of "lesion in organ", (words, width), or None.
        views: of the batch.
    """
    total, count = features[0].new_zeros((), dtype=torch.float32), 0
    for seen, feature, word in zip(views, features, words, strict=True):
        if seen.box is None or word is None:
            continue
        inside = box_share(seen.box, seen.rows, seen.columns).flatten().to(feature.device)
        mean = (inside[:, None] * feature.float()).sum(0) / inside.sum()
        total = total + 1 - nn.functional.cosine_similarity(mean, word.float().mean(0), dim=0)
        count += 1
    return total / max(count, 1)


def anchor_words(row: Row) -> str | None:
    """ "lesion in organ" of a row, None without lesion.

    The lesion's class is the part of the domain before the modality.
    """
    if row.box is None:
        return None
    label = row.domain.rsplit(" x ", 1)[0]
    return f"{label} in {row.host.organ}" if row.host is not None and row.host.organ != "unknown" else label
