"""GradientDifference (DIFF2): private are the changes of the gradient, which are small where the steps are."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from trimtab.checks import non_negative, positive, whole


class Release(NamedTuple):
    """What one step gave away, for an accountant.

    Attributes:
        sensitivity: norm that a clipped gradient or difference may have.
        sigma: deviation of the noise over the sensitivity, its noise multiplier.
    """

    sensitivity: float
    sigma: float


class GradientDifference:
    """A private estimate of the gradient from its differences.

    `v_0 = clip_C1(g(x_0)) + sigma1 C1 z`, and from then on
    `v_r = v_(r-1) + clip_(C2 ||d||)(g(x_r) - g(x_(r-1))) + sigma2 C2 ||d|| z` with `d = x_r - x_(r-1)`; every `restart` steps
    it begins anew. The noise is as small as the step.

    Args:
        C1: greatest norm of a gradient; above 0.
        C2: greatest norm of a difference over that of the step, a smoothness; above 0.
        sigma1, sigma2: noise multipliers; 0 or more.
        restart: steps from one full gradient to the next; 1 or more.
        seed: of the noise. Default 0. For real privacy the noise must come from a secure source, which this is not.

    Raises:
        ValueError: a value is out of range; (at a step) shapes change, or a gradient is not finite.

    Attributes:
        releases: sensitivity and noise multiplier of every step so far, as opacus' accountants take them.

    Gradients must be of the same data at both points (full batch), and of one client; average the estimates of several. With
    sigma 0 and clips that never bind the estimate is the gradient. There is no accountant here.

    Reference: Murata and Suzuki, DIFF2, arXiv 2302.03884; the formula as a reading note gives it, the paper itself was not
    read.

    Example:
        >>> estimate = GradientDifference(C1=10.0, C2=10.0, sigma1=0.0, sigma2=0.0, restart=5)
        >>> _ = estimate.step(torch.tensor([1.0]), torch.tensor([0.0]))
        >>> estimate.step(torch.tensor([3.0]), torch.tensor([1.0]))
        tensor([3.])
    """

    def __init__(self, C1: float, C2: float, sigma1: float, sigma2: float, restart: int, seed: int = 0) -> None:
        self.C1, self.C2 = positive("C1", C1), positive("C2", C2)
        self.sigma1, self.sigma2 = non_negative("sigma1", sigma1), non_negative("sigma2", sigma2)
        self.restart, self.seed = whole("restart", restart, least=1), whole("seed", seed)
        self.releases: list[Release] = []
        self._steps = 0
        self._value: Tensor | None = None
        self._gradient: Tensor | None = None
        self._point: Tensor | None = None
        self._draws = torch.Generator().manual_seed(self.seed)

    @torch.no_grad()
    def step(self, gradient: Tensor, point: Tensor) -> Tensor:
        """The estimate at this point, of the gradient there; both flat or of any one shape."""
        if gradient.shape != point.shape or (self._point is not None and point.shape != self._point.shape):
            before = "" if self._point is None else f", before them {tuple(self._point.shape)}"
            raise ValueError(
                f"gradient and point must have one shape, got {tuple(gradient.shape)} and {tuple(point.shape)}{before}"
            )
        if not bool(gradient.isfinite().all()):
            raise ValueError("the gradient is not finite: a difference with it would stay in every estimate to come")
        if self._steps % self.restart == 0 or self._value is None or self._gradient is None or self._point is None:
            value = self._private(gradient, self.C1, self.sigma1)
        else:
            held = (self._value, self._gradient, self._point)  # a resumed state may come from another device
            self._value, self._gradient, self._point = (one.to(gradient.device) for one in held)
            length = float(torch.linalg.vector_norm(point - self._point))
            value = self._value + self._private(gradient - self._gradient, self.C2 * length, self.sigma2)
        self._steps += 1
        self._value, self._gradient, self._point = value, gradient.clone(), point.clone()
        return value.clone()

    def _private(self, vector: Tensor, most: float, sigma: float) -> Tensor:
        self.releases.append(Release(most, sigma))
        length = float(torch.linalg.vector_norm(vector))
        clipped = vector * (most / length) if length > most else vector.clone()
        if sigma and most:
            noise = torch.randn(vector.shape, generator=self._draws, dtype=torch.float64)
            clipped += sigma * most * noise.to(vector)
        return clipped

    def state_dict(self) -> dict[str, Any]:
        """Estimate, last gradient and point, the noise's draws, what was released."""
        held = {"value": self._value, "gradient": self._gradient, "point": self._point}
        return {
            "steps": self._steps,
            "releases": [list(one) for one in self.releases],
            "draws": self._draws.get_state(),
            **{name: None if one is None else one.clone() for name, one in held.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self._steps = int(state["steps"])
        self.releases = [Release(*one) for one in state["releases"]]
        self._draws.set_state(state["draws"].cpu())
        self._value, self._gradient, self._point = state["value"], state["gradient"], state["point"]

    def __repr__(self) -> str:
        return (
            f"GradientDifference(C1={self.C1}, C2={self.C2}, sigma1={self.sigma1}, sigma2={self.sigma2}, "
            f"restart={self.restart})"
        )
