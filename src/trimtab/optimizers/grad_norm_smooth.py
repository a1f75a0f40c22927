"""GradNormSmooth: Newton's method, regularised by the gradient's norm over a smoothness that it learns."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
from torch import Tensor

from trimtab.checks import non_negative, one_of, positive, whole
from trimtab.collectives import is_sharded
from trimtab.levers import CopiedWhole

SOLVERS = ("dense", "cg")
DENSE = 5000
"""Numbers up to which the Hessian is written out."""
ROWS = 256
"""Rows of it that one backward pass makes."""
Product = Callable[[Tensor], Tensor]


class GradNormSmooth(CopiedWhole):
    """Newton's method for small, exact problems: `x <- x - (H + lam I)^-1 g` with `lam = ||g|| / (gamma + 1e-8)`.

    A step is taken when `f(x) - f(x+) >= ||g(x+)||^2 / (8 lam)`; gamma, the gradient-normalised smoothness, then doubles. Else
    it is halved and the step tried again. Far from the minimum the steps are short, near it those of Newton.

    Args:
        params: parameters, or one group of them; dense, real, of one device and dtype, not sharded.
        curvature: "hessian" (default), or a function without arguments that gives, at the weights as they are, something to
            multiply vectors with by `@`, in the parameters' order: a matrix, or an operator such as
            `lambda: GaussNewton(Objective(model, loss, batches))` of `trimtab.observe.curvature`.
        gamma: at the start; above 0. Default 1.
        gamma_min: least gamma after a step that was taken; above 0. Default 1e-9 (authors' code).
        tries: halvings at most in a step; 1 or more. Default 40 (authors' code).
        solver: "dense" (default, a Cholesky factor; up to 5,000 numbers) or "cg" (conjugate gradients by products alone).
        tolerance: norm of the gradient below which no step is taken; 0 or more. Default 0.

    Attributes:
        gamma: as it is now.
        stalled: whether the last step was not taken: the gradient is below `tolerance`, or nothing that was tried made the
            loss fall enough. The weights and gamma are then as before.

    Raises:
        TypeError: no closure, or one that gives no tensor with a graph; (at a copy) a curvature of your own.
        ValueError: a number out of range; several groups; a sharded or complex parameter; too many numbers for "dense"; (at
            the first step) two calls of the closure differ.
        FloatingPointError: loss or gradient at the present weights is not finite.

    A saved state holds gamma and the steps taken; all else is as the constructor has it.

    The closure gives the loss of **all data**, as a tensor, without calling backward, and always the same at the same weights:
    no dropout, no draws of data. It is called once more for each try. `trimtab.attach` is refused: no gradient stands between
    the closure and the step; add penalties to the closure's loss.

    Where all tries fail, the authors' code takes the last one and keeps the gamma that the halvings left, 2^-40 of what it was;
    here nothing is taken [ours]. So is a curvature that is not positive definite with `lam`: halved and tried again.

    Reference: Semenov et al., Gradient-Normalized Smoothness, arXiv 2506.13710.

    Example:
        >>> x = torch.zeros(2, requires_grad=True)
        >>> optimizer = GradNormSmooth([x])
        >>> curvature, slope = torch.tensor([1.0, 10.0]), torch.tensor([1.0, -2.0])
        >>> for _ in range(8):
        ...     _ = optimizer.step(lambda: (0.5 * curvature * x * x - slope * x).sum())
        >>> x.detach()
        tensor([ 1.0000, -0.2000])
    """

    def __init__(
        self,
        params: Iterable[Any],
        curvature: Literal["hessian"] | Callable[[], Any] = "hessian",
        gamma: float = 1.0,
        gamma_min: float = 1e-9,
        tries: int = 40,
        solver: Literal["dense", "cg"] = "dense",
        tolerance: float = 0.0,
    ) -> None:
        if not callable(curvature):
            one_of("curvature", curvature, ("hessian",))
        self.curvature = curvature
        self.gamma_min = positive("gamma_min", gamma_min)
        self.tries = whole("tries", tries, least=1)
        self.solver = one_of("solver", solver, SOLVERS)
        self.tolerance = non_negative("tolerance", tolerance)
        self.stalled = False
        super().__init__(params, {"gamma": positive("gamma", gamma), "steps": 0})
        if len(self.param_groups) > 1:
            raise ValueError(f"{type(self).__name__} solves for all weights together; give one group, not several")
        for at, weight in enumerate(self._weights):
            if is_sharded(weight) or not weight.is_floating_point() or weight.layout is not torch.strided:
                raise ValueError(
                    f"{type(self).__name__} takes whole, dense, real weights; parameter {at} of shape {tuple(weight.shape)} is "
                    f"{'sharded' if is_sharded(weight) else weight.dtype}"
                )
        self.size = sum(weight.numel() for weight in self._weights)
        if solver == "dense" and self.size > DENSE:
            raise ValueError(f"solver='dense' writes out {self.size} x {self.size} numbers; from {DENSE} on use 'cg'")

    @property
    def _weights(self) -> list[Tensor]:
        found: list[Tensor] = self.param_groups[0]["params"]
        return found

    @property
    def gamma(self) -> float:
        """The gradient-normalised smoothness."""
        return float(self.param_groups[0]["gamma"])

    def register_step_pre_hook(self, hook: Any) -> Any:
        """Refused: a lever would act on gradients that are not there."""
        raise TypeError(
            f"{type(self).__name__} takes its gradients from the loss itself, so that no lever or hook can act on them; add "
            "penalties to the loss that the closure gives"
        )

    def __getstate__(self) -> dict[str, Any]:
        if callable(self.curvature):
            raise TypeError(
                f"{type(self).__name__} with a curvature of your own cannot be copied: that would stay the one of the "
                "original's weights; make another optimizer for the copy"
            )
        return super().__getstate__()

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor]) -> Tensor:  # type: ignore[override]
        """Take one step; returns the loss before it.

        Args:
            closure: gives the loss, see above.
        """
        if not callable(closure):
            raise TypeError(f"{type(self).__name__}.step needs a closure that returns the loss, got {closure!r}")
        loss = self._loss(closure)
        group = self.param_groups[0]
        first = group["steps"] == 0 and math.isfinite(loss.item())
        if first and (again := self._loss(closure).item()) != loss.item():
            raise ValueError(
                f"two calls of the closure at the same weights gave {loss.item()} and {again}; it must be exact: all data, no "
                "dropout, running statistics as they are"
            )
        group["steps"] += 1
        gradient = self._gradient(loss, graph=not callable(self.curvature))
        size, found = float(gradient.norm()), loss.detach()
        if not math.isfinite(float(found)) or not math.isfinite(size):
            raise FloatingPointError(
                f"the loss is {float(found)}, the norm of its gradient {size}, at the present weights"
            )
        self.stalled = True
        if size > self.tolerance:
            self._search(closure, float(found), gradient, size)
        return found

    def _search(self, closure: Callable[[], Tensor], loss: float, gradient: Tensor, size: float) -> None:
        group, kept = self.param_groups[0], [weight.detach().clone() for weight in self._weights]
        solve, g, gamma = self._solver(gradient), gradient.detach(), self.gamma
        for _ in range(self.tries):
            regularised = size / (gamma + 1e-8)
            self._move(kept)  # where the graph of the gradient is
            step = solve(g, regularised)
            if step is None:
                gamma /= 2
                continue
            self._move(kept, step)
            if all(map(torch.equal, self._weights, kept)):
                break  # too short to be told from none; shorter ones are no better
            after = self._loss(closure)
            slope = float(self._gradient(after).norm())
            if loss - after.item() >= slope**2 / (8 * regularised):
                group["gamma"], self.stalled = max(2 * gamma, self.gamma_min), False
                for weight in self._weights:
                    torch.autograd.graph.increment_version(weight)
                return
            gamma /= 2
        self._move(kept)

    def _loss(self, closure: Callable[[], Tensor]) -> Tensor:
        with torch.enable_grad():
            loss = closure()
        if not isinstance(loss, Tensor) or not loss.requires_grad:
            raise TypeError(
                f"the closure of {type(self).__name__} must return the loss as a tensor, without calling backward on it, got "
                f"{loss!r}"
            )
        return loss

    def _gradient(self, loss: Tensor, *, graph: bool = False) -> Tensor:
        with torch.enable_grad():
            found = torch.autograd.grad(loss, self._weights, create_graph=graph, materialize_grads=True)
            return torch.cat([one.reshape(-1) for one in found])

    def _move(self, kept: list[Tensor], step: Tensor | None = None) -> None:
        """To `kept - step`, unseen by autograd, so that the graph at `kept` can be used again there."""
        steps = [None] * len(kept) if step is None else torch.split(step, [one.numel() for one in kept])
        for weight, old, part in zip(self._weights, kept, steps, strict=True):
            weight.data.copy_(old if part is None else old - part.view_as(old))

    def _solver(self, gradient: Tensor) -> Callable[[Tensor, float], Tensor | None]:
        """What solves `(H + lam I) d = g` for several lam; None where that is not positive definite."""
        if callable(self.curvature):
            operator = self.curvature()
            multiply: Product = lambda vector: operator @ vector  # noqa: E731
        else:
            multiply = lambda vector: self._product(gradient, vector)  # noqa: E731
        if self.solver == "cg":
            return lambda g, lam: _conjugate_gradients(lambda v: multiply(v) + lam * v, g)
        eye = torch.eye(self.size, dtype=gradient.dtype, device=gradient.device)
        if callable(self.curvature):
            whole_matrix = torch.stack([multiply(row) for row in eye])
        else:
            parts = [torch.autograd.grad(gradient, self._weights, rows, retain_graph=True, is_grads_batched=True,
                                         materialize_grads=True) for rows in torch.split(eye, ROWS)]  # fmt: skip
            whole_matrix = torch.cat([torch.cat([one.flatten(1) for one in part], 1) for part in parts])
        matrix = (whole_matrix + whole_matrix.mT) / 2

        def dense(g: Tensor, lam: float) -> Tensor | None:
            factor, wrong = torch.linalg.cholesky_ex(matrix + lam * eye)
            return None if int(wrong) else torch.cholesky_solve(g.unsqueeze(1), factor).squeeze(1)

        return dense

    def _product(self, gradient: Tensor, vector: Tensor) -> Tensor:
        found = torch.autograd.grad(gradient, self._weights, vector, retain_graph=True, materialize_grads=True)
        return torch.cat([one.reshape(-1) for one in found])


def _conjugate_gradients(multiply: Product, g: Tensor) -> Tensor | None:
    """`A d = g` up to `min(1/2, sqrt ||g||) ||g||`; None where A curves down along the way."""
    size = float(g.norm())
    aim = min(0.5, math.sqrt(size)) * size
    found, rest = torch.zeros_like(g), g.clone()
    along, square = rest.clone(), float(rest.dot(rest))
    for _ in range(2 * g.numel()):
        if math.sqrt(square) <= aim:
            break
        product = multiply(along)
        curved = float(along.dot(product))
        if not curved > 0:
            return None
        found.add_(along, alpha=square / curved)
        rest.sub_(product, alpha=square / curved)
        before, square = square, float(rest.dot(rest))
        along = rest + (square / before) * along
    return found
