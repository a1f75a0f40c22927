"""Convolutions as products of two matrices: their patches, and the way back."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Multiply = Callable[[Tensor, Tensor, Callable[[Tensor], Tensor] | None], Tensor]
"""(input, weight (..., O, I), map from the input to matrices (..., T, I) or None) -> (..., T, O)."""


def convolved(module: Any, x: Tensor, multiply: Multiply) -> Tensor:
    """What a Conv1d, Conv2d or Conv3d gives, bias apart, as one product: patches times kernels.

    A row of the patches is one place of the output, its entries the inputs that are summed there, in the order of the
    kernel: channels, then places. Groups are products of their own.
    """
    single = x.ndim == module.weight.ndim - 1
    x = _batched(module, x)
    padding = _padding(module)
    if module.padding_mode != "zeros":
        x = F.pad(x, padding, mode=module.padding_mode)
        padding = [0] * len(padding)
    kernel, stride, dilation, groups = module.kernel_size, module.stride, module.dilation, module.groups
    weight = module.weight.reshape(groups, module.out_channels // groups, -1)

    def lower(image: Tensor) -> Tensor:
        return patches(F.pad(image, padding) if any(padding) else image, kernel, stride, dilation, groups)

    y = multiply(x, weight, lower)  # (groups, places, outputs of a group)
    sizes = [
        (length + sum(padding[2 * (x.ndim - 3 - axis) :][:2]) - (reach - 1) * apart - 1) // step + 1
        for axis, (length, reach, apart, step) in enumerate(zip(x.shape[2:], kernel, dilation, stride, strict=True))
    ]
    found: Tensor = split(y, 1, (x.shape[0], *sizes)).movedim(0, -2).flatten(-2).movedim(-1, 1)
    return found.squeeze(0) if single else found


def _batched(module: Any, x: Tensor) -> Tensor:
    """An image as a batch of one; ValueError for what the layer does not take."""
    dims = module.weight.ndim
    if x.ndim not in (dims - 1, dims) or x.shape[1 - dims] != module.in_channels:
        raise ValueError(
            f"{type(module).__name__} takes images of {module.in_channels} channels in {dims} dimensions, or one in "
            f"{dims - 1}, got shape {tuple(x.shape)}"
        )
    return x.unsqueeze(0) if x.ndim < dims else x


def split(x: Tensor, axis: int, sizes: tuple[int, ...]) -> Tensor:
    """A dimension as several."""
    found: Tensor = x.unflatten(axis, sizes)  # type: ignore[no-untyped-call]
    return found


def _padding(module: Any) -> list[int]:
    """What goes around the image, as `torch.nn.functional.pad` takes it: the last dimension first."""
    found: list[int] = []
    for axis in reversed(range(len(module.kernel_size))):
        if module.padding == "same":
            both = module.dilation[axis] * (module.kernel_size[axis] - 1)
            found += [both // 2, both - both // 2]
        else:
            found += [0, 0] if module.padding == "valid" else [module.padding[axis]] * 2
    return found


def patches(
    x: Tensor, kernel: tuple[int, ...], stride: tuple[int, ...], dilation: tuple[int, ...], groups: int
) -> Tensor:
    """(N, channels, places...) -> (groups, N times places, entries of a kernel).

    Example:
        >>> patches(torch.arange(4.0).view(1, 1, 4), (2,), (1,), (2,), 1)
        tensor([[[0., 2.],
                 [1., 3.]]])
    """
    dims = len(kernel)
    for axis, (reach, apart, step) in enumerate(zip(kernel, dilation, stride, strict=True)):
        x = x.unfold(2 + axis, (reach - 1) * apart + 1, step)[..., ::apart]
    # (N, channels, places..., kernel...)
    x = split(x, 1, (groups, x.shape[1] // groups)).movedim(1, 0).movedim(2, 2 + dims)
    # (groups, N, places..., channels, kernel...)
    return x.reshape(groups, x.shape[1] * math.prod(x.shape[2 : 2 + dims]), math.prod(x.shape[2 + dims :]))


def convolved_transposed(module: Any, x: Tensor, output_size: list[int] | None, multiply: Multiply) -> Tensor:
    """What a ConvTranspose1d or ConvTranspose2d gives, bias apart: inputs times kernels, summed where patches overlap."""
    single = x.ndim == module.weight.ndim - 1
    x = _batched(module, x)
    dims, groups = x.ndim - 2, module.groups
    spans = zip(x.shape[2:], module.stride, module.padding, module.dilation, module.kernel_size, strict=True)
    least = [(length - 1) * step - 2 * pad + apart * (reach - 1) + 1 for length, step, pad, apart, reach in spans]
    if output_size is None:
        sizes = [length + more for length, more in zip(least, module.output_padding, strict=True)]
    else:
        sizes = list(output_size)[-dims:]
        if not all(low <= size < low + step for low, size, step in zip(least, sizes, module.stride, strict=True)):
            raise ValueError(f"output_size must lie less than the stride above {least}, got {output_size}")
    rows = split(x, 1, (groups, x.shape[1] // groups)).movedim(2, -1).movedim(1, 0).flatten(1, -2)
    # rows: (groups, N times places, inputs)
    weight = split(module.weight, 0, (groups, -1)).flatten(2).mT  # (groups, outputs times kernel, inputs)
    y = split(multiply(rows, weight, None), 1, (x.shape[0], math.prod(x.shape[2:])))
    columns = y.permute(1, 0, 3, 2).flatten(1, 2)  # (N, outputs times kernel, places)
    alone = dims == 1  # an image of one row

    def spread_over(values: tuple[int, ...], row: int) -> tuple[int, ...]:
        return (row, *values) if alone else values

    found = F.fold(
        columns,
        spread_over(tuple(sizes), 1),
        spread_over(module.kernel_size, 1),
        dilation=spread_over(module.dilation, 1),
        padding=spread_over(module.padding, 0),
        stride=spread_over(module.stride, 1),
    )
    found = found.squeeze(2) if alone else found
    return found.squeeze(0) if single else found


def with_bias(y: Tensor, bias: Tensor | None, axis: int = -1) -> Tensor:
    """`y` plus the bias along its axis, in the dtype of y."""
    if bias is None:
        return y
    shape = [1] * y.ndim
    shape[axis] = -1
    return y + bias.to(y.dtype).view(shape)


def reason_against_layer(module: nn.Module, known: dict[type[nn.Module], Any]) -> str | None:
    """Why the products of a layer cannot be taken over: a forward pass of its own. None where they can."""
    if "forward" in module.__dict__:
        return "its forward is replaced already"
    for kind, forward in known.items():
        if isinstance(module, kind):
            own = getattr(kind, "_conv_forward", None)
            same = type(module).forward is forward and getattr(type(module), "_conv_forward", None) is own
            return None if same else f"{type(module).__name__} has a forward pass of its own"
    return f"{type(module).__name__} is not among the layers that are known"


def check_dtype(*tensors: Tensor) -> None:
    """TypeError for float64 and for what is no floating-point number."""
    for tensor in tensors:
        if tensor.dtype == torch.float64:
            raise TypeError(
                "products of rounded operands are emulated in float32, and this is a product of float64; use model.float()"
            )
        if not tensor.is_floating_point():
            raise TypeError(f"operands of products are rounded as floating-point numbers, got {tensor.dtype}")
