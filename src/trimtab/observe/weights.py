"""How the weights of a network are distributed: spread, mass near zero, variance of their magnitude."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from trimtab.checks import positive, whole
from trimtab.parameters import PRUNABLE, Rule, Source, select

NEAR_ZERO = 0.1


@dataclass(frozen=True)
class WeightDistribution:
    """Distribution of the prunable weights of one network, each divided by the root mean square of its layer.

    Attributes:
        edges: n + 1 bin edges, from -limit to limit.
        counts: weights in each bin; those beyond a limit are counted in the outermost bin.
        near_zero: fraction of weights with |w| < 0.1 root mean square of their layer; zeros count.
        variance_of_magnitude: biased variance of |w| over mean |w| squared, averaged over layers that are not all
            zero. Gaussian weights have pi / 2 - 1 = 0.571.
        root_mean_square: of all prunable weights, unnormalised.
    """

    edges: list[float]
    counts: list[int]
    near_zero: float
    variance_of_magnitude: float
    root_mean_square: float


def _whole(parameter: Tensor) -> Tensor:
    """The parameter, flat, as float64; a sharded one is gathered, so every rank must call."""
    tensor = parameter.detach()
    gather = getattr(tensor, "full_tensor", None)
    whole: Tensor = tensor if gather is None else gather()
    return whole.double().reshape(-1)


def weight_distribution(
    source: Source, bins: int = 81, limit: float = 4.0, rule: Rule | None = None
) -> WeightDistribution:
    """Histogram of `w / rms(layer)` over the prunable weights, with three numbers that sum it up.

    `rms = sqrt(mean w^2)` of the layer; `variance_of_magnitude = mean over layers of Var(|w|) / (mean |w|)^2`, biased.
    Computed in float64. A layer of zeros has ratio 0 everywhere and is left out of the variance [ours].

    Args:
        source: a model, an optimizer or tensors.
        bins: number of bins. Default 81 [ours], odd so that zero stands in the middle of one.
        limit: largest ratio shown, in units of the layer's root mean square. Default 4 [ours].
        rule: which parameters count. Default: two dimensions or more, frozen ones too.

    Raises:
        ValueError: no prunable weights, weights that are not finite, `bins` < 1 or `limit` <= 0.

    Example:
        >>> found = weight_distribution([torch.tensor([[3.0, -1.0], [1.0, 0.0]])], bins=3, limit=2.0)
        >>> found.counts, found.near_zero
        ([0, 3, 1], 0.25)
    """
    whole("bins", bins, 1)
    positive("limit", limit)
    default = PRUNABLE if isinstance(source, nn.Module) else Rule(frozen=True)
    chosen = select(source, default if rule is None else rule, computed=True).chosen
    layers = [entry for entry in chosen if entry.parameter.numel()]
    if not layers:
        raise ValueError("there are no prunable weights: no tensor was chosen by the rule")
    counts = torch.zeros(bins, dtype=torch.float64)
    elements, near, squares, variances = 0, 0, 0.0, []
    for entry in layers:
        weight = _whole(entry.parameter)
        square = float(weight.square().mean())
        if not torch.isfinite(weight).all():
            raise ValueError(f"{entry.name} holds weights that are not finite")
        rms = square**0.5
        ratio = weight / rms if rms else torch.zeros_like(weight)
        # clamp: weights beyond the limit stand in the outermost bins
        counts += torch.histc(ratio.clamp(-limit, limit), bins, -limit, limit).double().cpu()
        near += int((ratio.abs() < NEAR_ZERO).sum())
        elements += weight.numel()
        squares += square * weight.numel()
        if rms:
            magnitude = weight.abs()
            variances.append(float(magnitude.var(correction=0) / magnitude.mean().square()))
    return WeightDistribution(
        edges=torch.linspace(-limit, limit, bins + 1, dtype=torch.float64).tolist(),
        counts=[int(count) for count in counts.tolist()],
        near_zero=near / elements,
        variance_of_magnitude=sum(variances) / len(variances) if variances else 0.0,
        root_mean_square=(squares / elements) ** 0.5,
    )
