"""What shrunk and noisy gradients do to SGD: closed forms on a quadratic, bounds for strongly convex functions.

The model (arXiv 2508.07142): the step uses `g~ = q g + e` instead of the stochastic gradient g, with a shrinkage q in (0, 1]
and a quantiser noise e of mean zero, so that a nominal step size mu acts as mu q.

What follows from it, and what does not: shrinkage alone slows SGD down and, at the same nominal step size, *lowers* the floor,
exactly as a step of mu q would. Only the quantiser's noise raises the floor; relative to the signal by 1 / q.
"""

from __future__ import annotations

from trimtab.checks import non_negative, number, positive, whole


def _contraction(curvature: float, step_size: float, shrinkage: float) -> float:
    """`1 - mu q lambda` after checking its three factors and that SGD is stable."""
    effective = (
        positive("step_size", step_size)
        * number("shrinkage", shrinkage, above=0, most=1)
        * positive("curvature", curvature)
    )
    if effective >= 2:
        raise ValueError(
            f"step_size * shrinkage * curvature must be below 2, or SGD diverges on the quadratic; got {effective:g}"
        )
    return 1 - effective


def stationary_second_moment(
    curvature: float,
    step_size: float,
    *,
    shrinkage: float = 1.0,
    gradient_variance: float = 0.0,
    quantiser_variance: float = 0.0,
) -> float:
    """`E x^2` that SGD ends in on `f(x) = lambda / 2 x^2`: `mu (q^2 sigma^2 + s^2) / (q lambda (2 - mu q lambda))`.

    Assumes `x <- x - mu (q (lambda x + n) + e)` with independent n, e of mean 0 and variances sigma^2, s^2, which do not
    depend on x. The expected loss is lambda / 2 times the result.

    Args:
        curvature: lambda, positive.
        step_size: mu, positive; `mu q lambda < 2`.
        shrinkage: q in (0, 1]. Default 1.
        gradient_variance: sigma^2 of the stochastic gradient, 0 or more. Default 0.
        quantiser_variance: s^2 of the quantiser's noise, 0 or more. Default 0.

    Raises:
        ValueError: an argument out of range, or a step too long to be stable.

    Source: closed form of the model of arXiv 2508.07142 on a quadratic [ours].

    Example:
        >>> full = stationary_second_moment(1.0, 0.1, gradient_variance=1.0)
        >>> shrunk = stationary_second_moment(1.0, 0.1, shrinkage=0.5, gradient_variance=1.0)
        >>> noisy = stationary_second_moment(1.0, 0.1, shrinkage=0.5, gradient_variance=1.0, quantiser_variance=1.0)
        >>> shrunk < full < noisy
        True
    """
    kept = _contraction(curvature, step_size, shrinkage)
    noise = shrinkage**2 * non_negative("gradient_variance", gradient_variance)
    noise += non_negative("quantiser_variance", quantiser_variance)
    return step_size * noise / (shrinkage * curvature * (1 + kept))


def expected_second_moment(
    step: int,
    start: float,
    curvature: float,
    step_size: float,
    *,
    shrinkage: float = 1.0,
    gradient_variance: float = 0.0,
    quantiser_variance: float = 0.0,
) -> float:
    """`E x_k^2` after k steps from x_0: `(1 - mu q lambda)^(2 k) (x_0^2 - floor) + floor`.

    The floor is `stationary_second_moment`; assumptions, arguments and errors are those given there.

    Args:
        step: k, 0 or more.
        start: x_0.
        curvature: lambda, positive.
        step_size: mu, positive.
        shrinkage: q in (0, 1].
        gradient_variance: sigma^2.
        quantiser_variance: s^2.

    Example:
        >>> expected_second_moment(0, 3.0, 1.0, 0.1)
        9.0
        >>> round(expected_second_moment(10, 3.0, 1.0, 0.1, shrinkage=0.5) / 9.0, 6) == round(0.95**20, 6)
        True
    """
    whole("step", step, 0)
    floor = stationary_second_moment(
        curvature,
        step_size,
        shrinkage=shrinkage,
        gradient_variance=gradient_variance,
        quantiser_variance=quantiser_variance,
    )
    return _contraction(curvature, step_size, shrinkage) ** (2 * step) * (start * start - floor) + floor


def fixed_step_bound(
    step: int,
    initial_gap: float,
    step_size: float,
    *,
    smoothness: float,
    convexity: float,
    variance: float,
    growth: float = 1.0,
    q_min: float = 1.0,
    quantiser_variance: float = 0.0,
) -> float:
    """Upper bound of `E[F(w_k) - F*]` at a fixed step size: linear decrease to a floor.

    `floor + (1 - mu c q_min)^(k - 1) (F_1 - F* - floor)`, `floor = mu L (M + s^2) / (2 c q_min)`.

    Assumes F L-smooth and c-strongly convex, `E||g||^2 <= M + M_G ||grad F||^2`, E g = grad F, `q_k >= q_min` independent of
    the draw of g, E e = 0, `E||e||^2 <= s^2`, and `mu <= q_min / (L M_G)`.

    Args:
        step: k, counted from 1: `step=1` is the start.
        initial_gap: `F(w_1) - F*`, 0 or more.
        step_size: mu.
        smoothness: L.
        convexity: c, at most L.
        variance: M, 0 or more.
        growth: M_G, at least 1 as E||g||^2 >= ||grad F||^2. Default 1.
        q_min: least shrinkage over the steps, in (0, 1]. Default 1.
        quantiser_variance: s^2, 0 or more. Default 0.

    Raises:
        ValueError: an argument out of range, or a step size beyond `q_min / (L M_G)`.

    Source: the textbook analysis of SGD (Bottou, Curtis, Nocedal 2018, arXiv 1606.04838, theorem 4.6) with the model of
    arXiv 2508.07142 put in [ours].

    Example:
        >>> setting = dict(smoothness=1.0, convexity=0.1, variance=1.0)
        >>> far = fixed_step_bound(10_000, 1.0, 0.1, **setting)
        >>> round(far, 6)  # the floor
        0.5
        >>> fixed_step_bound(10_000, 1.0, 0.1, q_min=0.5, **setting)  # this bound knows q_min only: it doubles
        1.0
    """
    whole("step", step, 1)  # the start is step 1
    gap = non_negative("initial_gap", initial_gap)
    mu, least = positive("step_size", step_size), number("q_min", q_min, above=0, most=1)
    smooth, convex = _constants(smoothness, convexity)
    noise = non_negative("variance", variance) + non_negative("quantiser_variance", quantiser_variance)
    longest = least / (smooth * _growth(growth))
    if mu > longest * (1 + 1e-12):
        raise ValueError(f"step_size must be at most q_min / (smoothness * growth) = {longest:g}, got {step_size}")
    floor = mu * smooth * noise / (2 * convex * least)
    return floor + (1 - mu * convex * least) ** (step - 1) * (gap - floor)


def diminishing_step_bound(
    step: int,
    initial_gap: float,
    beta: float,
    gamma: float,
    *,
    smoothness: float,
    convexity: float,
    variance: float,
    growth: float = 1.0,
    q_min: float = 1.0,
    quantiser_variance: float = 0.0,
) -> float:
    """Upper bound of `E[F(w_k) - F*]` for step sizes `beta / (gamma + k)`: `nu / (gamma + k)`, no floor.

    `nu = max{beta^2 L (M + s^2) / (2 (beta c q_min - 1)), (gamma + 1)(F_1 - F*)}`. Assumptions, arguments and source as in
    `fixed_step_bound` (there theorem 4.7), with `beta > 1 / (c q_min)` and `beta / (gamma + 1) <= q_min / (L M_G)`.

    Args:
        step: k, counted from 1.
        initial_gap: `F(w_1) - F*`.
        beta: numerator of the step size.
        gamma: positive offset of its denominator.
        smoothness: L.
        convexity: c.
        variance: M.
        growth: M_G, at least 1.
        q_min: least shrinkage.
        quantiser_variance: s^2.

    Raises:
        ValueError: an argument out of range, beta too small or the first step too long.

    Example:
        >>> bound = diminishing_step_bound(1000, 1.0, 20.0, 100.0, smoothness=1.0, convexity=0.1, variance=1.0)
        >>> round(bound, 4)
        0.1818
    """
    whole("step", step, 1)  # the start is step 1
    gap = non_negative("initial_gap", initial_gap)
    numerator, offset = positive("beta", beta), positive("gamma", gamma)
    least = number("q_min", q_min, above=0, most=1)
    smooth, convex = _constants(smoothness, convexity)
    noise = non_negative("variance", variance) + non_negative("quantiser_variance", quantiser_variance)
    if numerator * convex * least <= 1:
        raise ValueError(f"beta must exceed 1 / (convexity * q_min) = {1 / (convex * least):g}, got {beta}")
    longest = least / (smooth * _growth(growth))
    if numerator / (offset + 1) > longest * (1 + 1e-12):
        raise ValueError(
            f"the first step size beta / (gamma + 1) must be at most q_min / (smoothness * growth) = {longest:g}, got "
            f"{numerator / (offset + 1):g}; raise gamma"
        )
    nu = max(numerator**2 * smooth * noise / (2 * (numerator * convex * least - 1)), (offset + 1) * gap)
    return nu / (offset + step)


def _growth(value: float) -> float:
    growth = positive("growth", value)
    if growth < 1:
        raise ValueError(f"growth must be at least 1, since E||g||^2 >= ||E g||^2, got {value}")
    return growth


def _constants(smoothness: float, convexity: float) -> tuple[float, float]:
    smooth = positive("smoothness", smoothness)
    return smooth, number("convexity", convexity, above=0, most=smooth)
