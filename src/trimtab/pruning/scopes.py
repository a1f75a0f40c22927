"""Where weights are compared: over the whole network, or inside each layer, with which share for each."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from trimtab.tensors.selection import removed_count

SCOPES = ("global", "layer", "erk")
ROW = "row"
"""A fourth scope of one-shot pruning: each output row by itself, as Wanda compares."""
IN_GROUPS = "group"
"""What `Pruned.scope` says of an N:M pattern, which compares the M weights of each group whatever scope was asked for."""


def erk_densities(shapes: Sequence[Sequence[int]], density: float) -> list[float]:
    """Density of each layer by the Erdos-Renyi-Kernel rule (arXiv 1911.11134, section 3).

    `density_l = min(1, c * sum(shape_l) / prod(shape_l))` with c such that the kept weights add up to `density` of all.
    Layers that would exceed 1 are kept whole and c is found again for the rest.

    Example:
        >>> [round(d, 3) for d in erk_densities([(10, 10), (100, 100)], 0.1)]
        [0.918, 0.092]
    """
    sizes = [math.prod(shape) for shape in shapes]
    raw = [sum(shape) / size for shape, size in zip(shapes, sizes, strict=True)]
    whole: set[int] = set()
    budget = density * sum(sizes)
    while True:
        free = [layer for layer in range(len(sizes)) if layer not in whole]
        if not free:
            return [1.0] * len(sizes)
        factor = (budget - sum(sizes[layer] for layer in whole)) / sum(raw[layer] * sizes[layer] for layer in free)
        over = {layer for layer in free if factor * raw[layer] > 1}
        if not over:
            return [1.0 if layer in whole else factor * raw[layer] for layer in range(len(sizes))]
        whole |= over


def _rounded(wanted: Sequence[float], limits: Sequence[int], total: int) -> list[int]:
    """Whole numbers near `wanted` that add up to `total`: largest remainders first, position breaks ties."""
    counts = [min(int(value), limit) for value, limit in zip(wanted, limits, strict=True)]
    order = sorted(range(len(counts)), key=lambda layer: (counts[layer] - wanted[layer], layer))
    while sum(counts) < total:
        for layer in order:
            if sum(counts) < total and counts[layer] < limits[layer]:
                counts[layer] += 1
    return counts


def quotas(weights: Sequence[Tensor], sparsity: float | Sequence[float], scope: str) -> list[tuple[list[int], int]]:
    """Groups of tensors that are compared with each other, and how many weights each group loses.

    Args:
        weights: the tensors.
        sparsity: fraction to remove; with scope "layer" also one for each tensor.
        scope: "global" (one group), "layer" (every tensor loses its fraction), "erk".

    Returns:
        (positions of the tensors, count) per group; for global and erk the counts add up to `removed_count` of all.
    """
    sizes = [weight.numel() for weight in weights]
    if not isinstance(sparsity, float | int):
        assert scope == "layer", "one sparsity per tensor"
        counts = [removed_count(each, size) for each, size in zip(sparsity, sizes, strict=True)]
        return [([layer], count) for layer, count in enumerate(counts)]
    if scope == "global":
        return [(list(range(len(sizes))), removed_count(sparsity, sum(sizes)))]
    if scope == "layer":
        return [([layer], removed_count(sparsity, size)) for layer, size in enumerate(sizes)]
    if scope != "erk":
        raise ValueError(f"unknown scope {scope!r}; allowed are {', '.join(SCOPES)}")
    densities = erk_densities([tuple(weight.shape) for weight in weights], 1 - sparsity)
    wanted = [(1 - density) * size for density, size in zip(densities, sizes, strict=True)]
    counts = _rounded(wanted, sizes, removed_count(sparsity, sum(sizes)))
    return [([layer], count) for layer, count in enumerate(counts)]
