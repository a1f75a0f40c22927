"""Measurement, prediction and bound on one problem whose every constant is known: logistic regression with an L2 penalty."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor

from trimtab.precision import PerChannel, Scaling, quantize
from trimtab.precision.binarize import NAME as BINARY
from trimtab.precision.logistic import LogisticRegression
from trimtab.precision.rounding import Rounding
from trimtab.precision.theory import expected_second_moment, fixed_step_bound
from trimtab.studies.documents import Record

STEPS, REPETITIONS, BATCH, L2 = 2500, 32, 64, 0.1
STEP = 0.05
"""Step size times L."""
POINTS = 100
SEED = 0


class Descent(Record):
    """SGD with rounded gradients on the problem, over repetitions that start at w = 0 and draw rows of their own."""

    format: str
    rounding: str
    scaling: str = Field(description="none, or tensor: one scale for the gradient")
    steps: list[int] = Field(description="k, counted from 1: the start")
    gap: list[float] = Field(description="F(w_k) - F*, mean over the repetitions")
    half: list[float] = Field(description="half the 95 % interval of that mean")
    prediction: list[float] | None = Field(
        description="of the quadratic model at the minimum with the measured q and noise"
    )
    bound: list[float] | None = Field(
        description="upper bound with the measured q_min and noise; null where none holds"
    )
    q: float | None = Field(description="<E g~, E g> / ||E g||^2 summed over all steps; null where the gradient died")
    q_min: float | None = Field(description="least ratio <g~, g> / ||g||^2 of a step, summed over the repetitions")
    dead: float = Field(description="share of non-zero gradient entries that became zero")
    noise: float = Field(description="s^2: largest mean over the repetitions of ||g~ - q g||^2")
    floor: float = Field(description="mean gap over the last quarter of the steps")
    floor_half: float
    floor_predicted: float | None
    floor_bound: float | None
    why_no_bound: str = ""


@functools.lru_cache(maxsize=1)
def breast_cancer() -> LogisticRegression:
    """scikit-learn's breast cancer data (569 rows, 30 features standardised, an intercept), L2 strength 0.1."""
    from sklearn.datasets import load_breast_cancer

    loaded = load_breast_cancer()
    features = torch.tensor(loaded.data, dtype=torch.float64)
    features = (features - features.mean(0)) / features.std(0, unbiased=False)
    features = torch.cat([features, torch.ones(len(features), 1, dtype=torch.float64)], 1)
    return LogisticRegression(features, torch.tensor(loaded.target) * 2 - 1, L2)


def _losses(problem: LogisticRegression, weights: Tensor) -> Tensor:
    """F of each row of `weights`."""
    margins = (weights @ problem.features.T) * problem.labels
    return torch.nn.functional.softplus(-margins).mean(1) + problem.l2 / 2 * weights.square().sum(1)


def _gradients(problem: LogisticRegression, weights: Tensor, rows: Tensor) -> Tensor:
    """The mini-batch gradient of each row of `weights` (R, d) over its own `rows` (R, b)."""
    features, labels = problem.features[rows], problem.labels[rows]
    slopes = -labels * torch.sigmoid(-labels * torch.einsum("rbd,rd->rb", features, weights))
    return torch.einsum("rbd,rb->rd", features, slopes) / rows.shape[1] + problem.l2 * weights


def _predicted(
    problem: LogisticRegression, step_size: float, steps: Sequence[int], q: float, noise: Tensor, batch: int
) -> list[float]:
    """Gaps of the quadratic model at w*: each eigenvector of the Hessian by `expected_second_moment`.

    Args:
        problem: gives Hessian and covariance of the mini-batch gradient at w*.
        step_size: mu.
        steps: k, from 1.
        q: shrinkage, put into the step size: of unbiased rounding the measured one may lie a little above 1.
        noise: E e e^T, shape (d, d).
        batch: rows of a mini-batch.
    """
    best = problem.minimiser
    chance = torch.sigmoid(problem.features @ best)
    hessian = problem.features.T @ ((chance * (1 - chance))[:, None] * problem.features) / len(problem)
    curvatures, vectors = torch.linalg.eigh(hessian + problem.l2 * torch.eye(len(best), dtype=torch.float64))
    slopes = -problem.labels * torch.sigmoid(-problem.labels * (problem.features @ best))
    each = (problem.features * slopes[:, None]) @ vectors
    variances = each.var(0, unbiased=False) / batch
    added = (vectors.T @ noise @ vectors).diagonal().clamp(min=0)
    start = vectors.T @ -best
    gaps = []
    for step in steps:
        parts = [
            curvature / 2 * expected_second_moment(
                step - 1, x, curvature, step_size * q, gradient_variance=variance, quantiser_variance=extra / q**2
            )
            for curvature, x, variance, extra in zip(
                curvatures.tolist(), start.tolist(), variances.tolist(), added.tolist(), strict=True
            )
        ]  # fmt: skip
        gaps.append(sum(parts))
    return gaps


def descend(
    format: str,
    rounding: Rounding = "nearest",
    scaling: str = "none",
    *,
    problem: LogisticRegression | None = None,
    steps: int = STEPS,
    repetitions: int = REPETITIONS,
    batch: int = BATCH,
    step_size: float | None = None,
    seed: int = SEED,
) -> Descent:
    """SGD with gradients rounded to `format`, with prediction and bound from what was measured on the way.

    Prediction: each eigenvector of the Hessian at w* on its own, by the closed form of a quadratic, with q and the
    covariance of the rounding's noise measured in the last quarter of the steps. Bound: `fixed_step_bound` with the problem's
    constants, the least q of a step and the largest noise of a step; it assumes a noise of mean zero, which rounding to
    nearest does not promise.

    Args:
        format: number format of the gradients, "full" for none.
        rounding: as for `quantize`.
        scaling: "none", or "tensor" for one scale per gradient.
        problem: default `breast_cancer()`.
        steps, repetitions, batch: steps of each repetition, how many there are, rows of a mini-batch (with replacement).
        step_size: mu. Default `0.05 / L` [ours]: the floor shows within the steps, the bound falls.
        seed: of rows and stochastic rounding.
    """
    problem = breast_cancer() if problem is None else problem
    size = STEP / problem.smoothness if step_size is None else step_size
    scheme: Scaling | None = PerChannel() if scaling == "tensor" else None  # a repetition is a row
    rows_generator, noise_generator = (torch.Generator().manual_seed(seed + part) for part in (0, 1))
    weights = torch.zeros(repetitions, problem.features.shape[1], dtype=torch.float64)
    shown = sorted(
        {int(step) for step in torch.logspace(0, torch.tensor(float(steps)).log10().item(), POINTS)} | {steps}
    )
    gaps: dict[int, Tensor] = {}
    late = torch.zeros(repetitions, dtype=torch.float64)
    late_steps, least, most, died, alive = 0, float("inf"), 0.0, 0.0, 0.0
    products, squares = 0.0, 0.0
    covariance = torch.zeros(weights.shape[1], weights.shape[1], dtype=torch.float64)
    minimum = problem.minimum
    for step in range(1, steps + 1):
        last_quarter = step > steps - steps // 4
        if step in shown or last_quarter:
            gap = _losses(problem, weights) - minimum
            if step in shown:
                gaps[step] = gap
            if last_quarter:
                late += gap
                late_steps += 1
        rows = torch.randint(len(problem), (repetitions, batch), generator=rows_generator)
        gradient = _gradients(problem, weights, rows)
        if format == "full":
            used = gradient
        else:
            used = quantize(gradient, format, rounding, scaling=scheme, generator=noise_generator)
        product, square = float((used * gradient).sum()), float(gradient.square().sum())
        q = product / square
        error = used - q * gradient
        least, most = min(least, q), max(most, float(error.square().sum(1).mean()))
        if last_quarter:
            products, squares = products + product, squares + square
            covariance += error.T @ error / repetitions
        died += float(((used == 0) & (gradient != 0)).sum())
        alive += float((gradient != 0).sum())
        weights = weights - size * used
    late /= late_steps
    covariance /= late_steps
    q_late = products / squares
    student = _student(repetitions)
    prediction = _predicted(problem, size, shown, q_late, covariance, batch) if q_late > 0 else None
    bound, why = _bound(problem, size, shown, float(gaps[1].mean()), batch, least, most)
    return Descent(
        format=format,
        rounding=rounding,
        scaling=scaling,
        steps=shown,
        gap=[float(gaps[step].mean()) for step in shown],
        half=[float(student * gaps[step].std() / repetitions**0.5) for step in shown],
        prediction=prediction,
        bound=bound,
        q=q_late if q_late > 0 else None,
        q_min=least,
        dead=died / alive,
        noise=most,
        floor=float(late.mean()),
        floor_half=float(student * late.std() / repetitions**0.5),
        floor_predicted=None if prediction is None else prediction[-1],
        floor_bound=None if bound is None else bound[-1],
        why_no_bound=why,
    )


def _student(count: int) -> float:
    from scipy.stats import t

    return float(t.ppf(0.975, count - 1))


def _bound(
    problem: LogisticRegression, size: float, steps: Sequence[int], gap: float, batch: int, least: float, noise: float
) -> tuple[list[float] | None, str]:
    if least <= 0:
        return None, "in some step every entry of the gradient became zero (q_min = 0)"
    try:
        return [
            fixed_step_bound(
                step, gap, size, smoothness=problem.smoothness, convexity=problem.convexity,
                variance=problem.variance(batch), q_min=min(least, 1.0), quantiser_variance=noise,
            )
            for step in steps
        ], ""  # fmt: skip
    except ValueError as error:
        return None, str(error)


def wanted_descents(
    formats: Sequence[str], rounding: Sequence[Rounding], scaling: Sequence[str]
) -> list[tuple[str, Rounding, str]]:
    """Arguments of `descend`: full precision, then each format with each rounding and each scaling a vector has.

    Those are none and one scale for the gradient, which stands for every scaling in blocks or tensors.

    Example:
        >>> wanted_descents(["e4m3"], ["nearest"], ["none", "mx"])
        [('full', 'nearest', 'none'), ('e4m3', 'nearest', 'none'), ('e4m3', 'nearest', 'tensor')]
    """
    kinds = [kind for kind, named in (("none", "none" in scaling), ("tensor", set(scaling) - {"none"})) if named]
    rounded = [name for name in formats if name != BINARY]  # no format of gradients
    return [("full", "nearest", "none"), *((name, way, kind) for name in rounded for way in rounding for kind in kinds)]
