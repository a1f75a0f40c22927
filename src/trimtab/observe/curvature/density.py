"""Spectral density by stochastic Lanczos quadrature."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from trimtab.checks import positive, whole
from trimtab.observe.curvature.krylov import Krylov, gaussian
from trimtab.observe.curvature.operator import SymmetricOperator
from trimtab.observe.curvature.results import SpectralDensity

LEAST_POINTS = 1024
REACH = 6.0  # widths of the grid beyond the outermost nodes: what lies outside is below 1e-8


def spectral_density(
    operator: SymmetricOperator,
    probes: int = 10,
    steps: int = 60,
    *,
    width: float | None = None,
    points: int = LEAST_POINTS,
    seed: int = 0,
) -> SpectralDensity:
    """The density of the eigenvalues, from Gaussian quadratures that Lanczos gives.

    `phi(t) = 1/n sum_i N(t; lambda_i, width^2)`, estimated by the mean over probes of `sum_j w_j N(t; theta_j, width^2)`,
    theta_j the eigenvalues of the Lanczos matrix after `steps` steps from a random unit vector, w_j the squared first
    components of its eigenvectors. The first `2 steps - 1` moments of each quadrature are those of its start vector.

    Args:
        operator: a symmetric operator.
        probes: random start vectors, at least 2 for the standard errors. Default 10 [ours].
        steps: Lanczos steps for each. Default 60 [ours]. Products: at most probes times steps.
        width: standard deviation of the Gaussians, in units of the eigenvalues. Default: 1/200 of the range [ours].
        points: grid points. Default 1024; more are taken when the width needs them, at least 4 per width.
        seed: of the start vectors; the same numbers on every device.

    Raises:
        ValueError: probes below 2, steps or points below 1, a width that is not positive.

    Reference: Ubaru, Chen, Saad 2017; Ghorbani, Krishnan, Xiao 2019, arXiv 1901.10159.

    Example:
        >>> from trimtab.observe.curvature.operator import MatrixOperator
        >>> found = spectral_density(MatrixOperator(torch.diag(torch.tensor([0.0, 0.0, 0.0, 4.0]))), probes=50)
        >>> round(found.mass(low=1.0), 1)
        0.2
    """
    for name, value, least in (("probes", probes, 2), ("steps", steps, 1), ("points", points, 1)):
        whole(name, value, least)
    if width is not None:
        positive("width", width)
    generator = torch.Generator().manual_seed(seed)
    before = operator.products
    quadratures = [_quadrature(operator, steps, generator) for _ in range(probes)]
    nodes, weights = torch.cat([q[0] for q in quadratures]), torch.cat([q[1] for q in quadratures]) / probes
    low, high = float(nodes.min()), float(nodes.max())
    if width is None:
        width = (high - low) / 200 or max(abs(high), 1.0) / 200
    low, high = low - REACH * width, high + REACH * width
    points = max(points, math.ceil(4 * (high - low) / width) + 1)
    grid = torch.linspace(low, high, points, dtype=torch.float64)
    kernel = torch.exp(-0.5 * ((grid[:, None] - nodes[None, :]) / width).square()) / (width * math.sqrt(2 * math.pi))
    means = torch.stack([(w * n).sum() for n, w in quadratures])
    squares = torch.stack([(w * n.square()).sum() for n, w in quadratures])
    return SpectralDensity(
        grid=tuple(grid.tolist()),
        density=tuple((kernel @ weights).tolist()),
        width=width,
        nodes=tuple(tuple(n.tolist()) for n, _ in quadratures),
        weights=tuple(tuple(w.tolist()) for _, w in quadratures),
        mean=float(means.mean()),
        mean_error=float(means.std() / math.sqrt(probes)),
        second_moment=float(squares.mean()),
        second_moment_error=float(squares.std() / math.sqrt(probes)),
        products=operator.products - before,
        probes=probes,
        steps=steps,
        seed=seed,
        setting=operator.setting,
    )


def _quadrature(operator: SymmetricOperator, steps: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Nodes and weights of one start vector; fewer than `steps` when its Krylov space ends."""
    krylov = Krylov(operator)
    krylov.start(gaussian(operator.size, generator, operator))
    while krylov.pending and krylov.multiplied < steps:
        krylov.step()
    nodes, vectors = torch.linalg.eigh(krylov.projection()[0])
    weights = vectors[0].square()
    return nodes, weights / weights.sum()
