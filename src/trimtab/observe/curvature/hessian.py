"""Hessian and Gauss-Newton matrix of a network's loss, as operators."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from trimtab.inexact import rounded_backward
from trimtab.observe.curvature.data import Batch
from trimtab.observe.curvature.objective import Objective, SeesAttention
from trimtab.observe.curvature.operator import Scaled, SymmetricOperator
from trimtab.observe.curvature.results import Setting

Multiply = Callable[[Sequence[Tensor]], Tensor]


class LossOperator(SymmetricOperator):
    """A curvature matrix of an objective, summed over its batches and over the ranks of a process group.

    With one batch the graph that a product needs is built once and kept, so that a product costs one backward pass
    through it; with several it is built anew for each batch in each product, and memory stays that of one batch.

    Args:
        objective: loss, network and batches.
        keep_graph: keep the graphs of all batches. Default: only when there is a single one.

    Raises:
        ValueError: on `@`, as every `SymmetricOperator`; a backward pass that is rounded (`LowPrecision(activations=...)`,
            `StraightThrough`). Rounding of the forward pass alone is allowed: the curvature is then that which the
            straight-through estimator sees.
    """

    curvature = ""

    def __init__(self, objective: Objective, *, keep_graph: bool | None = None) -> None:
        super().__init__(objective.size, objective.dtype, objective.device)
        self.objective = objective
        self._keep = objective.batches.single if keep_graph is None else keep_graph
        self._attention = "unchanged"
        self._kept: list[tuple[Batch, float, Multiply]] | None = None

    def _graph(self, leaves: list[Tensor], batch: Batch) -> tuple[float, Multiply]:
        """The loss on the batch, and a function that multiplies its matrix with a list of tensors."""
        raise NotImplementedError

    def _build(self, batch: Batch) -> tuple[float, Multiply]:
        leaves = [weight.detach().requires_grad_() for weight in self.objective.weights]
        if self._attention != "unchanged":
            return self._graph(leaves, batch)
        with SeesAttention() as watch:
            built = self._graph(leaves, batch)
        self._attention = "math" if watch.seen else "none"
        return built

    def _outputs(self, leaves: list[Tensor], batch: Batch) -> Any:
        """What the network gives for the batch, refused where its backward pass is rounded."""
        outputs = self.objective.outputs(leaves, batch)
        if (rounded := rounded_backward(outputs)) is not None:
            raise ValueError(
                f"the backward pass is rounded ({rounded.where}): products would be those of no symmetric matrix; make the "
                f"objective and measure inside `with {rounded.way_out}:`"
            )
        return outputs

    @property
    def setting(self) -> Setting | None:
        """What is measured."""
        return self.objective.setting(self.curvature, self._attention)

    @property
    def weights(self) -> Tensor:
        """The parameters where the curvature is taken, shape (size,)."""
        return self.objective.flat(self.objective.weights)

    def release(self) -> None:
        """Free the kept graphs; the next product builds them again."""
        self._kept = None

    @torch.inference_mode(mode=False)
    def _product(self, vector: Tensor) -> Tensor:
        parts = self.objective.split(vector)
        kept = self._kept

        def value(batch: Batch) -> tuple[float, Tensor]:
            loss, multiply = self._build(batch)
            if self._keep:
                built.append((batch, loss, multiply))
            return loss, multiply(parts)

        built: list[tuple[Batch, float, Multiply]] = []
        if kept is not None:
            known = {id(batch): (loss, multiply) for batch, loss, multiply in kept}

            def again(batch: Batch) -> tuple[float, Tensor]:
                loss, multiply = known[id(batch)]
                return loss, multiply(parts)

            product = self.objective.combine(again, [batch for batch, _, _ in kept])[1]
        else:
            with self.objective.evaluating(plain_kernels=True), torch.enable_grad():
                product = self.objective.combine(value)[1]
            self._kept = built if self._keep else None
        assert product is not None
        return product


class Hessian(LossOperator):
    """Second derivatives of the loss: `(H v)_i = d/dw_i (grad L(w) . v)`, exact, by two backward passes.

    Works with ReLU networks (the derivative of the slope is 0 there, as autograd has it) and smooth ones. Fused
    attention, which has no second backward, is switched to PyTorch's MATH backend; the result's setting says so.

    Example:
        >>> net = torch.nn.Linear(2, 1, bias=False)
        >>> data = (torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.zeros(2, 1))
        >>> (Hessian(Objective(net, torch.nn.functional.mse_loss, data)) @ torch.ones(2)).tolist()
        [1.0, 4.0]
    """

    curvature = "hessian"

    def _graph(self, leaves: list[Tensor], batch: Batch) -> tuple[float, Multiply]:
        loss = self.objective.scalar(self._outputs(leaves, batch), batch)
        gradients = torch.autograd.grad(loss, leaves, create_graph=True, allow_unused=True, materialize_grads=True)
        curved = [position for position, gradient in enumerate(gradients) if gradient.requires_grad]

        def multiply(parts: Sequence[Tensor]) -> Tensor:
            if not curved:
                return self.objective.flat([torch.zeros_like(leaf) for leaf in leaves])
            found = torch.autograd.grad(
                [gradients[position] for position in curved],
                leaves,
                [parts[position] for position in curved],
                retain_graph=True,
                allow_unused=True,
                materialize_grads=True,
            )
            return self.objective.flat(found)

        return float(loss.detach()), multiply


class GaussNewton(LossOperator):
    """Generalized Gauss-Newton matrix: `G = J^T H_out J`, J the outputs' Jacobian, H_out the loss's Hessian in the outputs.

    The Hessian without the networks' own curvature; positive semi-definite for a loss that is convex in the outputs
    (cross-entropy, squared error), and equal to the Hessian for a linear network. Schraudolph 2002; for cross-entropy it
    is the Fisher matrix (Martens, arXiv 1412.1193).

    Raises:
        TypeError: on `@`, when the model returns anything but one tensor.

    Example:
        >>> net = torch.nn.Linear(2, 1, bias=False)
        >>> data = (torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.zeros(2, 1))
        >>> (GaussNewton(Objective(net, torch.nn.functional.mse_loss, data)) @ torch.ones(2)).tolist()
        [1.0, 4.0]
    """

    curvature = "gauss-newton"

    def _graph(self, leaves: list[Tensor], batch: Batch) -> tuple[float, Multiply]:
        outputs = self._outputs(leaves, batch)
        if not isinstance(outputs, Tensor):
            raise TypeError(
                f"the Gauss-Newton matrix needs a model that returns one tensor, got {type(outputs).__name__}"
            )
        cotangent = torch.zeros_like(outputs, requires_grad=True)
        # J^T u is linear in u: its derivative by u, transposed, is J.
        pulled = torch.autograd.grad(
            outputs, leaves, cotangent, create_graph=True, allow_unused=True, materialize_grads=True
        )
        moving = [position for position, part in enumerate(pulled) if part.requires_grad]
        detached = outputs.detach().requires_grad_()
        loss = self.objective.scalar(detached, batch)
        (slope,) = torch.autograd.grad(loss, detached, create_graph=True)

        def multiply(parts: Sequence[Tensor]) -> Tensor:
            if not moving or not slope.requires_grad:
                return self.objective.flat([torch.zeros_like(leaf) for leaf in leaves])
            (pushed,) = torch.autograd.grad(
                [pulled[position] for position in moving],
                cotangent,
                [parts[position] for position in moving],
                retain_graph=True,
            )
            (bent,) = torch.autograd.grad(slope, detached, pushed, retain_graph=True, materialize_grads=True)
            found = torch.autograd.grad(
                outputs, leaves, bent, retain_graph=True, allow_unused=True, materialize_grads=True
            )
            return self.objective.flat(found)

        return float(loss.detach()), multiply


def relative(operator: LossOperator) -> Scaled:
    """The operator in relative coordinates: `D A D` with `D = diag(|w|)`, in units of the loss.

    Its largest eigenvalue is adaptive sharpness to second order: `max L(w + e) - L(w)` over `||e / |w||| <= rho` is
    about `rho^2 / 2` times it where the gradient vanishes. Rescaling a unit's incoming weights by a > 0 and its outgoing
    ones by 1 / a, which leaves a ReLU network the same function, leaves it the same; zero weights stay zero. Adaptive
    sharpness: Kwon et al. 2021, arXiv 2102.11600.

    Example:
        >>> net = torch.nn.Linear(1, 1, bias=False)
        >>> net.weight.data.fill_(3.0).item()
        3.0
        >>> objective = Objective(net, torch.nn.functional.mse_loss, (torch.ones(1, 1), torch.zeros(1, 1)))
        >>> (relative(Hessian(objective)) @ torch.ones(1)).item()
        18.0
    """
    return Scaled(operator, operator.weights.abs(), "in relative coordinates")


def on_nonzero(operator: LossOperator) -> Scaled:
    """The operator on the weights that are not zero, as if the pruned ones were not there: `M A M`, M = diag(w != 0).

    Its spectrum has an exact zero for each zero weight.

    Example:
        >>> net = torch.nn.Linear(2, 1, bias=False)
        >>> _ = net.weight.data.copy_(torch.tensor([[0.0, 1.0]]))
        >>> objective = Objective(net, torch.nn.functional.mse_loss, (torch.ones(1, 2), torch.zeros(1, 1)))
        >>> (on_nonzero(Hessian(objective)) @ torch.ones(2)).tolist()
        [0.0, 2.0]
    """
    return Scaled(operator, (operator.weights != 0).to(operator.dtype), "on the nonzero weights")
