"""Cutting one split into two: stratified by class, or whole groups, seeded; a text at one place."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from trimtab.checks import below_one
from trimtab.datasets.dataset import Split
from trimtab.datasets.seeds import generator


def _shares(counts: Tensor, total: int) -> Tensor:
    """Split `total` over the classes in proportion to `counts`, by largest remainder (ties: lower class first)."""
    exact = counts.double() * total / counts.sum()
    shares = exact.floor().long()
    left = total - int(shares.sum())
    order = torch.argsort(exact - shares, descending=True, stable=True)
    shares[order[:left]] += 1
    return shares


def balanced_index(targets: Tensor, total: int, seed: int, purpose: str) -> Tensor:
    """Positions of `total` images with the class proportions of all, drawn at random, ascending.

    Args:
        targets: int64 (N,); or (N, H, W), for which the draw is plain.
        total: how many, 0..N.
        seed: of the draw.
        purpose: names the random stream.

    Example:
        >>> targets = torch.tensor([0] * 8 + [1] * 4)
        >>> targets[balanced_index(targets, 6, 0, "doc")].bincount().tolist()
        [4, 2]
    """
    order = torch.randperm(len(targets), generator=generator(seed, purpose))
    if targets.ndim > 1:
        return order[:total].sort().values
    shares = _shares(torch.bincount(targets), total)
    shuffled = targets[order]
    parts = [order[shuffled == number][: int(share)] for number, share in enumerate(shares)]
    return torch.cat(parts).sort().values


def part_off(split: Split, fraction: float, seed: int, purpose: str) -> tuple[Split, Split]:
    """Take about `fraction` of `split` away: (what is left, what was taken), both in the original order.

    Classification: ceil(fraction * N) images, stratified. Groups: ceil(fraction * number of groups) whole groups. A text: its
    end, whatever the seed, since windows between others would be half known.

    Raises:
        ValueError: the fraction is not in [0, 1), or nothing would be left.

    Example:
        >>> split = Split(torch.zeros(10, 1, 2, 2, dtype=torch.uint8), torch.arange(10) % 2)
        >>> [part.targets.bincount().tolist() for part in part_off(split, 0.2, 0, "doc")]
        [[4, 4], [1, 1]]
    """
    below_one(f"the fraction of images to take for {purpose}", fraction)
    if split.task == "text":
        chosen = torch.arange(len(split)) >= len(split) - _part(fraction, len(split))
    elif split.groups is None:
        taken = balanced_index(split.targets, _part(fraction, len(split)), seed, purpose)
        chosen = torch.zeros(len(split), dtype=torch.bool)
        chosen[taken] = True
    else:
        groups = torch.unique(split.groups)
        order = torch.randperm(len(groups), generator=generator(seed, purpose))
        chosen = torch.isin(split.groups, groups[order[: _part(fraction, len(groups))]])
    if bool(chosen.all()):
        kind = "windows of text" if split.task == "text" else "images"
        raise ValueError(f"{len(split)} {kind} are too few to take {fraction:g} of them for {purpose}")
    return split.at((~chosen).nonzero().flatten()), split.at(chosen.nonzero().flatten())


def _part(fraction: float, count: int) -> int:
    return math.ceil(fraction * count - 1e-9)
