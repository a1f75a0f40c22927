"""When a sparse Linear layer is faster than a dense one on this machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from trimtab.checks import below_one, whole
from trimtab.deploy.csr_linear import CsrLinear
from trimtab.deploy.timing import Comparison, compare_twice

SPARSITIES = (0.5, 0.7, 0.8, 0.9, 0.95, 0.99)


def compare_linear(dense: nn.Linear, sparse: CsrLinear, batch: int, budget: float = 0.2) -> Comparison:
    """Time both layers on the same random rows, without gradients; a gain is measured twice."""
    like = dense.weight
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(batch, dense.in_features, generator=generator).to(like)
    with torch.no_grad():
        return compare_twice(lambda: dense(rows), lambda: sparse(rows), budget)


def measure_linear(in_features: int, out_features: int, sparsity: float, batch: int, budget: float = 0.2) -> float:
    """Dense time over sparse time of a float32 Linear layer with random zeros; above 1 the sparse form is faster.

    Measured on this machine with PyTorch's present number of threads, the two interleaved.

    Args:
        in_features: columns of the weight.
        out_features: rows of the weight.
        sparsity: fraction of zeros, in [0, 1).
        batch: rows of the input.
        budget: seconds to spend.

    Raises:
        ValueError: `sparsity` outside [0, 1), or a size below 1.

    Example:
        >>> measure_linear(256, 256, sparsity=0.99, batch=1, budget=0.01) > 0
        True
    """
    sparsity = below_one("sparsity", sparsity)
    for name, size in (("in_features", in_features), ("out_features", out_features), ("batch", batch)):
        whole(name, size, 1)
    generator = torch.Generator().manual_seed(0)
    dense: nn.Linear = nn.utils.skip_init(nn.Linear, in_features, out_features)  # type: ignore[no-untyped-call]
    count = round(sparsity * in_features * out_features)
    with torch.no_grad():
        dense.bias.zero_()
        dense.weight.normal_(generator=generator)
        dense.weight.view(-1)[torch.randperm(in_features * out_features, generator=generator)[:count]] = 0.0
    return compare_linear(dense.eval(), CsrLinear(dense), batch, budget).ratio


@dataclass(frozen=True)
class BreakEven:
    """Where sparse begins to pay.

    Attributes:
        ratios: sparsity -> dense time over sparse time.
        sparsity: the least measured sparsity from which on every measured one is faster; None when there is none.
    """

    ratios: dict[float, float]
    sparsity: float | None


def break_even(
    in_features: int, out_features: int, batch: int, sparsities: Sequence[float] = SPARSITIES, budget: float = 0.2
) -> BreakEven:
    """Measure a Linear layer at several sparsities and say from which on the sparse form is faster.

    Args:
        in_features: columns of the weight.
        out_features: rows of the weight.
        batch: rows of the input.
        sparsities: where to measure.
        budget: seconds for each.

    Raises:
        ValueError: as `measure_linear`, or no sparsities.

    Example:
        >>> found = break_even(64, 64, batch=1, sparsities=(0.5, 0.9), budget=0.01)
        >>> sorted(found.ratios)
        [0.5, 0.9]
    """
    if not sparsities:
        raise ValueError("give at least one sparsity")
    ratios = {each: measure_linear(in_features, out_features, each, batch, budget) for each in sorted(set(sparsities))}
    return BreakEven(ratios, least_paying(ratios))


def least_paying(ratios: dict[float, float]) -> float | None:
    """The least sparsity from which on every ratio is above 1.

    Example:
        >>> least_paying({0.5: 1.2, 0.8: 0.9, 0.9: 1.5, 0.99: 4.0})
        0.9
    """
    found = None
    for sparsity in sorted(ratios, reverse=True):
        if ratios[sparsity] <= 1:
            break
        found = sparsity
    return found
