"""Numbers of a loss landscape from its spectral density: how much of the curvature is negative."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass

from trimtab.checks import positive
from trimtab.observe.curvature.results import SpectralDensity


@dataclass(frozen=True)
class Negativity:
    """How much of the curvature is negative.

    Attributes:
        ratio: `r_e = |least eigenvalue / greatest|`, mean over the probes.
        k: `K_n`, mean over the probes.
        per_run: `K_n` of each probe.
        standard_error: of `k`.
        power: n.
        steps: Lanczos steps of each probe; `K_n` depends on them.
    """

    ratio: float
    k: float
    per_run: tuple[float, ...]
    standard_error: float
    power: float
    steps: int


def negativity(density: SpectralDensity, power: float = 0.5) -> Negativity:
    """`r_e = |l_min / l_max|` and `K_n = sum_{l < 0} |l w|^n / sum_{l > 0} (l w)^n`, l and w nodes and weights of a quadrature.

    Both fall towards 0 as training nears a minimum. Plots along filter-normalised directions mislead where there is BatchNorm;
    these do not.

    Args:
        density: as of `spectral_density`, 100 steps or so. Weights sum to 1, so `K_n` depends on the steps: compare at equal
            ones.
        power: n, above 0; below 1 small eigenvalues count too. Default 0.5 (authors' code).

    Returns:
        The two, means over the probes, with the standard error of `K_n`. Eigenvalues below 1e-12 of the greatest count as 0;
        without a negative one `K_n` is 0, without a positive one infinite, with a warning [ours; the authors divide by 0].

    Raises:
        ValueError: `power` is not above 0.

    Reference: Loss Landscape Analysis, arXiv 2412.10146.

    Example:
        >>> import torch
        >>> from trimtab.observe.curvature import MatrixOperator, spectral_density
        >>> found = negativity(spectral_density(MatrixOperator(torch.diag(torch.tensor([-1.0, 2.0, 4.0]))), probes=3))
        >>> round(found.ratio, 4)
        0.25
    """
    positive("power", power)
    ratios, each = [], []
    for nodes, weights in zip(density.nodes, density.weights, strict=True):
        floor = 1e-12 * max(map(abs, nodes))
        above = sum((node * weight) ** power for node, weight in zip(nodes, weights, strict=True) if node > floor)
        below = sum((-node * weight) ** power for node, weight in zip(nodes, weights, strict=True) if node < -floor)
        if not above:
            warnings.warn("no eigenvalue is above 0: K_n is infinite", stacklevel=2)
        each.append(below / above if above else math.inf)
        largest = max(nodes)
        ratios.append(abs(min(nodes) / largest) if min(nodes) < -floor and largest else 0.0 if largest else math.inf)
    mean = sum(each) / len(each)
    spread = sum((one - mean) ** 2 for one in each) / max(1, len(each) - 1) if math.isfinite(mean) else math.nan
    return Negativity(sum(ratios) / len(ratios), mean, tuple(each), math.sqrt(spread / len(each)), power, density.steps)
