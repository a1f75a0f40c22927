"""How far the loss rises in a small ball around the weights."""

from __future__ import annotations

import torch
from torch import Tensor

from trimtab.checks import positive, whole
from trimtab.observe.curvature.objective import Objective
from trimtab.observe.curvature.results import Sharpness


def sharpness(
    objective: Objective, rho: float = 0.05, steps: int = 1, *, adaptive: bool = False, on_nonzero: bool = False
) -> Sharpness:
    """Sharpness in SAM's sense: `max L(w + e) - L(w)` over `||e||_2 <= rho`, by gradient ascent.

    One step: `e = rho g / ||g||`, exact to first order. Several: again and again `e <- rho g(w + e) / ||g(w + e)||`, which
    climbs at every step where the loss is convex and needs no step size (the power method where it is quadratic) [ours]; the
    best point visited counts, so that more steps never give less. Adaptive: the ball is `||e / |w| ||_2 <= rho`, the
    ascent takes place in the coordinates `e / |w|` (`e = rho w^2 g / || |w| g ||` for one step), and weights that are zero
    stay zero. No constant is added to |w|, so that rescaling a ReLU network's units changes nothing [ours; ASAM
    adds 0.01].

    Args:
        objective: loss, network and batches.
        rho: radius: in weights' units, default 0.05 (SAM's); relative to each weight when `adaptive` (ASAM uses 0.5 to 2).
        steps: ascent steps, 1 or more. Gradients: as many; losses: two with 1 step, else one more than steps.
        adaptive: relative to the weights' magnitude.
        on_nonzero: leave weights that are zero where they are, as if a pruned network had only the others. The adaptive
            form always does.

    Raises:
        ValueError: `rho` is not positive and finite, `steps` is below 1.

    Reference: SAM, arXiv 2010.01412; ASAM, arXiv 2102.11600.

    Example:
        >>> net = torch.nn.Linear(1, 1, bias=False)
        >>> _ = net.weight.data.fill_(1.0)
        >>> objective = Objective(net, torch.nn.functional.mse_loss, (torch.ones(1, 1), torch.zeros(1, 1)))
        >>> round(sharpness(objective, rho=0.1).value, 4)
        0.21
    """
    positive("rho", rho)
    whole("steps", steps, 1)
    weights = objective.flat(objective.weights)
    scale = weights.abs() if adaptive else (weights != 0).to(weights.dtype) if on_nonzero else None

    def direction(gradient: Tensor) -> tuple[Tensor, float]:
        """Unit ascent direction in the ball's coordinates (zero where the gradient vanishes), and the gradient's norm."""
        ascent = gradient if scale is None else scale * gradient
        norm = float(torch.linalg.vector_norm(ascent))
        return (ascent / norm if norm else ascent), norm

    def moved(step: Tensor) -> list[Tensor]:
        return objective.at(weights + (step if scale is None else scale * step))

    _, gradient = objective.gradient()
    unit, norm = direction(gradient)
    inside = rho * unit
    reached = [objective.loss(moved(inside))]
    for _ in range(steps - 1):
        _, gradient = objective.gradient(moved(inside))
        inside = rho * direction(gradient)[0]
        reached.append(objective.loss(moved(inside)))
    here = objective.loss()
    return Sharpness(
        value=max(reached) - here,
        one_step=reached[0] - here,
        loss=here,
        rho=rho,
        adaptive=adaptive,
        steps=steps,
        gradients=steps,
        gradient_norm=norm,
        setting=objective.setting(),
    )
