"""Rounding inside a network: the value is rounded, the gradient passes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from trimtab.inexact import RoundedBackward
from trimtab.precision.format import Format, named
from trimtab.precision.quantize import OverflowPolicy, quantize
from trimtab.precision.rounding import Rounding
from trimtab.precision.scaling import Scaling


class _Rounded(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        ahead: Callable[[Tensor], Tensor],
        back: Callable[[Tensor], Tensor],
        mark: RoundedBackward | None,
    ) -> Tensor:
        ctx.back = back
        ctx.rounded_backward = mark
        return ahead(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        return ctx.back(gradients[0]), None, None, None


WAY_OUT = "trimtab.precision.full_precision(model)"


class StraightThrough(nn.Module):
    """Rounds what flows forward to one format and the gradient that flows back to another.

        y = quantize(x, forward_format)         dL/dx := quantize(dL/dy, backward_format)

    The rounding's own derivative, zero almost everywhere, is taken as 1, beyond the largest number too (the straight-through
    estimator, arXiv 1308.3432). A module for activations; for weights the same module is a parametrisation, which leaves the
    parameter that the optimizer steps in full precision:
    `torch.nn.utils.parametrize.register_parametrization(layer, "weight", StraightThrough("e4m3"))`.

    Args:
        forward_format: format or name; None leaves the values as they are.
        backward_format: format or name; None (default) leaves the gradients as they are.
        rounding: of the values; as for `quantize`, default "nearest".
        backward_rounding: of the gradients; default "nearest".
        overflow: of both; default "saturate".
        scaling: of the values; default None.
        backward_scaling: of the gradients; default None.
        seed: of the module's own generator for stochastic rounding, default 0. Its state is part of `state_dict`, so a
            resumed run draws on. Give modules different seeds: equal ones draw equal numbers.

    Raises:
        TypeError, ValueError: as `quantize`; ValueError when both formats are None.

    Example:
        >>> x = torch.tensor([0.3, 2.4], requires_grad=True)
        >>> y = StraightThrough("e2m1", backward_format="e4m3")(x)
        >>> (y * torch.tensor([1.0, 0.3])).sum().backward()
        >>> y.detach(), x.grad
        (tensor([0.5000, 2.0000]), tensor([1.0000, 0.3125]))
    """

    def __init__(
        self,
        forward_format: str | Format | None,
        backward_format: str | Format | None = None,
        rounding: Rounding = "nearest",
        backward_rounding: Rounding = "nearest",
        overflow: OverflowPolicy = "saturate",
        scaling: Scaling | None = None,
        backward_scaling: Scaling | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if forward_format is None and backward_format is None:
            raise ValueError("StraightThrough needs a forward_format, a backward_format or both; got None for both")
        self.forward_format = None if forward_format is None else named(forward_format)
        self.backward_format = None if backward_format is None else named(backward_format)
        self.rounding, self.backward_rounding = rounding, backward_rounding
        self.overflow = overflow
        self.scaling, self.backward_scaling = scaling, backward_scaling
        self.seed = seed
        self._state = torch.empty(0, dtype=torch.uint8)
        self._generator: torch.Generator | None = None
        self.full = False
        empty = torch.empty(0)  # bad settings are refused here, not in the first batch
        self._round(empty, self.forward_format, rounding, scaling)
        self._round(empty, self.backward_format, backward_rounding, backward_scaling)

    def forward(self, x: Tensor) -> Tensor:
        """`x` rounded; float64, float32, float16 or bfloat16 of any shape. `x` itself within `full_precision`."""
        if self.full:
            return x
        back = self.backward_format
        mark = None if back is None else RoundedBackward(f"StraightThrough, to {back.name}", WAY_OUT)
        rounded: Tensor = _Rounded.apply(  # type: ignore[no-untyped-call]
            x,
            lambda value: self._round(value, self.forward_format, self.rounding, self.scaling),
            lambda value: self._round(value, self.backward_format, self.backward_rounding, self.backward_scaling),
            mark,
        )
        return rounded

    def _round(self, x: Tensor, format: Format | None, rounding: Rounding, scaling: Scaling | None) -> Tensor:
        if format is None:
            return x.view_as(x)
        drawn = rounding == "stochastic" or (scaling is not None and scaling.random)
        generator = self._drawn_from(x.device) if drawn and x.numel() else None
        return quantize(x, format, rounding, self.overflow, scaling, generator)

    def _drawn_from(self, device: torch.device) -> torch.Generator:
        """The module's generator; begun anew from the seed when the module moves to another device."""
        if self._generator is None or self._generator.device.type != device.type:
            self._generator = torch.Generator(device).manual_seed(self.seed)
            if self._state.numel() == self._generator.get_state().numel():
                self._generator.set_state(self._state)
            self._state = self._state[:0]
        return self._generator

    def get_extra_state(self) -> Tensor:
        """State of the generator; empty before the first stochastic rounding."""
        return self._state if self._generator is None else self._generator.get_state()

    def set_extra_state(self, state: Tensor) -> None:
        """Go on drawing where the saved module stood."""
        self._generator, self._state = None, state.cpu().clone()

    def __getstate__(self) -> dict[str, Any]:
        """For copies and pickles, which cannot hold a generator."""
        return {**self.__dict__, "_generator": None, "_state": self.get_extra_state(), "full": False}

    def extra_repr(self) -> str:
        """Formats and whatever differs from the defaults."""
        parts = []
        for name, format, rounding, scaling in (
            ("forward", self.forward_format, self.rounding, self.scaling),
            ("backward", self.backward_format, self.backward_rounding, self.backward_scaling),
        ):
            if format is not None:
                parts.append(f"{name}={format.name} {rounding}" + (f" {scaling}" if scaling else ""))
        return ", ".join(parts + ([] if self.overflow == "saturate" else [f"overflow={self.overflow}"]))


@contextmanager
def full_precision(model: nn.Module) -> Iterator[None]:
    """Within the block no `StraightThrough` in `model` rounds, forward or backward; parametrisations included.

    What is built inside, a graph for instance, stays exact afterwards. A `LowPrecision` lever has a block of its own,
    `lever.full_precision()`, which puts its master weights back too.

    Example:
        >>> rounds = StraightThrough("e2m1")
        >>> with full_precision(rounds):
        ...     inside = rounds(torch.tensor(2.4))
        >>> round(inside.item(), 2), rounds(torch.tensor(2.4)).item()
        (2.4, 2.0)
    """
    rounding = [module for module in model.modules() if isinstance(module, StraightThrough) and not module.full]
    for module in rounding:
        module.full = True
    try:
        yield
    finally:
        for module in rounding:
            module.full = False
