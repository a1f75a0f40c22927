"""The three products of a layer on rounded operands, as one node of the autograd graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from trimtab.inexact import RoundedBackward
from trimtab.precision.operands import LayerOperands
from trimtab.precision.quantize import quantize
from trimtab.precision.recipes import Accumulator, Recipe

Lowering = Callable[[Tensor], Tensor]
"""Linear map from a layer's input to the matrices (..., rows, contraction) whose product it is."""


class QuantisedProduct(torch.autograd.Function):
    """`Y = X W'` with the gradients `dX = dY W` and `dW = dY' X`, all operands rounded along their contraction.

    X is (..., T, I), or what `lower` makes so; W is (..., O, I); Y is (..., T, O). Operands are rounded in float32 and the
    products of the rounded numbers are summed in float32, or as the recipe's accumulator does; results take the dtype of
    X and W again.
    """

    @staticmethod
    def forward(  # noqa: D102 (torch's own)
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        operands: LayerOperands,
        lower: Lowering | None,
        mark: RoundedBackward,
    ) -> Tensor:
        recipe, measures = operands.recipe, operands.measures
        ctx.operands, ctx.lower, ctx.rounded_backward = operands, lower, mark
        with torch.autocast(x.device.type, enabled=False):
            matrix = x if lower is None else lower(x)
            one, other = operands(matrix, "fprop", 0), operands(weight, "fprop", 1)
            y = multiplied(one, other, recipe.accumulator)
            ctx.change = None
            if measures:
                exact = multiplied(matrix, weight, None)
                operands.result(exact, y, "fprop")
                ctx.change = y - exact
        # rounded once where a second product takes the same numbers
        keep_x = lower is None and ctx.needs_input_grad[1] and shared(recipe, ("fprop", 0), ("wgrad", 1))
        keep_w = ctx.needs_input_grad[0] and shared(recipe, ("fprop", 1), ("dgrad", 1))
        ctx.kept = (keep_x and not measures, keep_w and not measures)
        ctx.save_for_backward(one if ctx.kept[0] else x, other if ctx.kept[1] else weight)
        ctx.dtypes = (x.dtype, weight.dtype)
        return y.to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(  # noqa: D102 (torch's own)
        ctx: Any, gradient: Tensor
    ) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        operands: LayerOperands = ctx.operands
        recipe, lower, (keep_x, keep_w) = operands.recipe, ctx.lower, ctx.kept
        x, weight = ctx.saved_tensors
        dx = dw = None
        with torch.autocast(gradient.device.type, enabled=False):
            if ctx.change is not None:
                operands.raised((gradient.double() * ctx.change).sum())
            once = all(ctx.needs_input_grad[:2]) and shared(recipe, ("dgrad", 0), ("wgrad", 0))
            rounded = operands(gradient, "dgrad", 0) if ctx.needs_input_grad[0] else None
            if rounded is not None:
                other = weight.mT if keep_w else operands(weight.mT, "dgrad", 1)
                dx = multiplied(rounded, other, recipe.accumulator)
                if ctx.change is not None:
                    operands.result(multiplied(gradient, weight.mT, None), dx, "dgrad")
                dx = (dx if lower is None else transposed(lower, x, dx)).to(ctx.dtypes[0])
            if ctx.needs_input_grad[1]:
                one = rounded.mT if once and rounded is not None else operands(gradient.mT, "wgrad", 0)
                matrix = x if lower is None else lower(x)
                other = matrix.mT if keep_x else operands(matrix.mT, "wgrad", 1)
                dw = multiplied(one, other, recipe.accumulator)
                if ctx.change is not None:
                    operands.result(multiplied(gradient.mT, matrix.mT, None), dw, "wgrad")
                dw = dw.to(ctx.dtypes[1])
        return dx, dw, None, None, None


def shared(recipe: Recipe, one: tuple[str, int], other: tuple[str, int]) -> bool:
    """Whether the factor at two places of the recipe (product, first or second) is rounded to the same numbers."""
    operand = recipe[one[0]][one[1]]
    same = operand is not None and operand == recipe[other[0]][other[1]] and operand.either_way
    return same and recipe[one[0]].hadamard is None and recipe[other[0]].hadamard is None


def transposed(lower: Lowering, x: Tensor, gradient: Tensor) -> Tensor:
    """The transpose of a linear map, at the shape of x, in the gradient's dtype."""
    with torch.enable_grad():
        source = torch.zeros_like(x, dtype=gradient.dtype).requires_grad_()
        image = lower(source)
    (found,) = torch.autograd.grad(image, source, gradient.view_as(image))
    return found


def multiplied(one: Tensor, other: Tensor, accumulator: Accumulator | None) -> Tensor:
    """`one @ other'` in float32 for (..., M, K) and (..., N, K), summed as the accumulator does where there is one.

    Example:
        >>> ones = torch.ones(1, 96)
        >>> multiplied(ones, ones, None).item(), multiplied(ones, ones, Accumulator("e8m2", promote=None)).item()
        (96.0, 96.0)
        >>> multiplied(ones[:, :72], ones[:, :72], Accumulator("e8m2", promote=None)).item()  # 72 is no e8m2
        64.0
    """
    one, other = one.float(), other.float()
    if accumulator is None:
        return one @ other.mT
    length, step = one.shape[-1], accumulator.step
    total: Tensor | None = None
    running: Tensor | None = None
    for start in range(0, length, step):
        part = one[..., start : start + step] @ other[..., start : start + step].mT
        running = part if running is None else running.add_(part)
        quantize(running, accumulator.format, accumulator.rounding, out=running)
        if accumulator.promote is not None and (start + step) % accumulator.promote == 0:
            total = running if total is None else total.add_(running)
            running = None
    if running is None:
        return one @ other.mT if total is None else total
    return running if total is None else total.add_(running)
