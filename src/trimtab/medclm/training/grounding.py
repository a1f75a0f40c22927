"""Two optional terms that tie the model to the box: where it looks, and what the image features inside the box mean."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from trimtab.medclm.records import Box, Row

KERNEL, SIGMA = 9, 3.0
"""Of the blur on a grid of 24 x 24; other grids scale sigma with their size (ours)."""


def box_share(box: Box, grid: int) -> Tensor:
    """Share of each patch that the box covers; (grid, grid), rows from the top, float32 in [0, 1].

    >>> box_share(Box(x0=0.5, y0=0.0, x1=1.0, y1=0.25), 2)
    tensor([[0.0000, 0.5000],
            [0.0000, 0.0000]])
    """
    edges = torch.arange(grid + 1, dtype=torch.float32) / grid

    def cover(low: float, high: float) -> Tensor:
        return (edges[1:].clamp(max=high) - edges[:-1].clamp(min=low)).clamp(min=0) * grid

    return torch.outer(cover(box.y0, box.y1), cover(box.x0, box.x1))


def target_map(box: Box, grid: int) -> Tensor:
    """The box on the patch grid, blurred by a Gaussian (kernel 9, sigma 3 at 24 x 24), summing to 1; (grid * grid,)."""
    sigma = SIGMA * grid / 24
    reach = min(KERNEL // 2, grid - 1)
    steps = torch.arange(-reach, reach + 1, dtype=torch.float32)
    kernel = torch.exp(-(steps**2) / (2 * sigma**2))
    kernel = kernel / kernel.sum()
    blurred = nn.functional.conv2d(
        box_share(box, grid)[None, None], torch.outer(kernel, kernel)[None, None], padding=reach
    )
    flat = blurred.flatten()
    return flat / flat.sum()


def grid_of(patches: int) -> int:
    """Side of the square grid.

    Raises:
        ValueError: it is not square.
    """
    side = math.isqrt(patches)
    if side * side != patches:
        raise ValueError(f"{patches} image tokens are no square grid: the grounding terms need one (LLaVA, VipLlava)")
    return side


def attention_loss(attention: Tensor, images: Tensor, learnt: Tensor, rows: Sequence[Row]) -> Tensor:
    """`KL(blurred box || attention)` averaged over the rows that have a box; shape (), 0 where none has.

    Args:
        attention: last layer's attention, (rows, heads, tokens, tokens); averaged over heads and over the learnt tokens, taken
            at the image tokens and divided by its sum.
        images: (rows, tokens), True at image tokens; the same number in each row.
        learnt: (rows, tokens), True at the target's tokens.
        rows: of the batch.
    """
    total, count = attention.new_zeros((), dtype=torch.float32), 0
    for place, row in enumerate(rows):
        if row.box is None:
            continue
        looked = attention[place].float().mean(0)[learnt[place]].mean(0)[images[place]]
        looked = looked / looked.sum().clamp(min=1e-12)
        wanted = target_map(row.box, grid_of(int(images[place].sum()))).to(looked.device)
        total = total + (wanted * (wanted.clamp(min=1e-12).log() - looked.clamp(min=1e-12).log())).sum()
        count += 1
    return total / max(count, 1)


def anchor_loss(features: Tensor, words: Sequence[Tensor | None], rows: Sequence[Row]) -> Tensor:
    """`1 - cos(mean patch feature inside the box, mean embedding of the words)` averaged over rows with box and words.

    Args:
        features: projected patch features, (rows, patches, width).
        words: per row the embeddings of "lesion in organ", (words, width), or None.
        rows: of the batch.
    """
    total, count = features.new_zeros((), dtype=torch.float32), 0
    for row, feature, word in zip(rows, features, words, strict=True):
        if row.box is None or word is None:
            continue
        inside = box_share(row.box, grid_of(feature.shape[0])).flatten().to(feature.device)
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
