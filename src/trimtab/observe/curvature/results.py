"""What the curvature measures return: frozen records that say how sure they are and how they were obtained."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True)
class Setting:
    """What was measured, on what, and how.

    Attributes:
        curvature: "hessian", "gauss-newton", one of them "in relative coordinates" or "on the nonzero weights", or "loss".
        parameters: number of coordinates.
        samples: what the loss is averaged over: samples, or the loss's own weights, over all batches and ranks.
        batches: number of batches on this rank.
        reduction: "mean" or "sum", over the samples.
        batch_norm: "frozen" (evaluation statistics), "batch" (those of each batch) or "none" (the model has no such layer).
        dtype: of the computation, for example "float32".
        attention: "math" when fused attention was switched to the MATH backend (the only one with a double backward),
            "none" when no fused attention was met, "unchanged" when no second derivative was needed.
    """

    curvature: str
    parameters: int
    samples: float
    batches: int
    reduction: str
    batch_norm: str
    dtype: str
    attention: str


@dataclass(frozen=True)
class Eigenvalues:
    """Extreme eigenvalues with their residuals.

    Attributes:
        values: eigenvalues, most extreme first.
        residuals: norm of `H v - value * v` for the unit Ritz vector v; an eigenvalue of H lies within it of the value.
        converged: every residual is at most `tolerance` times the modulus of its value, or at the rounding floor.
        which: "largest", "smallest" (signed ends of the spectrum) or "magnitude" (largest modulus).
        products: products with the operator that were used.
        block: start vectors; an eigenvalue of multiplicity up to `block` is found as often as it occurs.
        tolerance: as asked for.
        seed: of the start vectors.
        setting: what was measured, None for a plain matrix.
        vectors: shape (k, n), unit Ritz vectors in rows, when asked for.
    """

    values: tuple[float, ...]
    residuals: tuple[float, ...]
    converged: bool
    which: str
    products: int
    block: int
    tolerance: float
    seed: int
    setting: Setting | None = None
    vectors: Tensor | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True)
class Trace:
    """Stochastic estimate of a trace.

    Attributes:
        value: the estimate; unbiased where the number of products was fixed, see `trace` for a target.
        standard_error: of the value; 0 when the sketch spans everything, so that the value is exact.
        method: "hutchinson" or "hutch++".
        products: products used.
        probes: random probes behind the standard error (its degrees of freedom are one less).
        sketch: dimension of the subspace whose part is exact (0 for Hutchinson).
        target: the standard error asked for, None when the number of products was fixed.
        converged: the target was reached; True when there was none.
        seed: of the probes.
        setting: what was measured, None for a plain matrix.
    """

    value: float
    standard_error: float
    method: str
    products: int
    probes: int
    sketch: int
    target: float | None
    converged: bool
    seed: int
    setting: Setting | None = None


@dataclass(frozen=True)
class SpectralDensity:
    """Density of the eigenvalues, an average over quadratures with random start vectors.

    Attributes:
        grid: eigenvalues at which the density is given, ascending.
        density: per unit of eigenvalue; integrates to 1 over the grid.
        width: standard deviation of the Gaussian that stands for each quadrature node.
        nodes: for each probe, the quadrature's nodes (Ritz values).
        weights: for each probe, the nodes' weights, summing to 1.
        mean: mean eigenvalue, trace / n.
        mean_error: its standard error over the probes.
        second_moment: mean squared eigenvalue.
        second_moment_error: its standard error over the probes.
        products: products used.
        probes: number of start vectors.
        steps: most Lanczos steps per probe.
        seed: of the start vectors.
        setting: what was measured, None for a plain matrix.
    """

    grid: tuple[float, ...] = field(repr=False)
    density: tuple[float, ...] = field(repr=False)
    width: float
    nodes: tuple[tuple[float, ...], ...] = field(repr=False)
    weights: tuple[tuple[float, ...], ...] = field(repr=False)
    mean: float
    mean_error: float
    second_moment: float
    second_moment_error: float
    products: int
    probes: int
    steps: int
    seed: int
    setting: Setting | None = None

    def mass(self, low: float = float("-inf"), high: float = float("inf")) -> float:
        """Fraction of the eigenvalues in [low, high], from the nodes, without the Gaussians' width."""
        inside = sum(
            weight
            for nodes, weights in zip(self.nodes, self.weights, strict=True)
            for node, weight in zip(nodes, weights, strict=True)
            if low <= node <= high
        )
        return inside / self.probes


@dataclass(frozen=True)
class Sharpness:
    """How far the loss rises within a ball around the weights.

    Attributes:
        value: greatest loss found in the ball minus the loss at the weights, a lower bound of the maximum.
        one_step: the same after the single step of SAM (or ASAM).
        loss: at the weights.
        rho: radius of the ball, in weights' units, or relative to each weight when `adaptive`.
        adaptive: whether the ball is `||e / |w| || <= rho`.
        steps: ascent steps taken.
        gradients: gradients over all batches that were used.
        gradient_norm: of the loss at the weights; in the relative coordinates when `adaptive`.
        setting: what was measured.
    """

    value: float
    one_step: float
    loss: float
    rho: float
    adaptive: bool
    steps: int
    gradients: int
    gradient_norm: float
    setting: Setting


@dataclass(frozen=True)
class NormalizedEigenvalue:
    """An eigenvalue times the squared norm of the weights.

    Attributes:
        value: `eigenvalue * weight_norm^2`.
        residual: `residual * weight_norm^2`.
        eigenvalue: as measured.
        weight_norm: Euclidean norm of the parameters the operator acts on.
        converged: as measured.
    """

    value: float
    residual: float
    eigenvalue: float
    weight_norm: float
    converged: bool
