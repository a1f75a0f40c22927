"""Kinds of tensors no lever can work on: without arithmetic, without a shape, without values, packed away."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from trimtab.parameters.wrappers import own_modules

PACKED = "quantised: packed, no parameter; prune before quantising"
REAL = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
"""The dtypes that PyTorch computes with; float8 and smaller ones are forms to store numbers in."""
QUANTISED = ("torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized", "torch.ao.nn.sparse.quantized")


def reason_against_dtype(tensor: Tensor) -> str | None:
    """Why no lever works on `tensor` by its dtype; None when one can.

    Example:
        >>> reason_against_dtype(torch.zeros(2, dtype=torch.float8_e5m2))
        'dtype torch.float8_e5m2 is for storage: PyTorch does not compute with it'
    """
    if tensor.dtype in REAL:
        return None
    if tensor.is_floating_point():
        return f"dtype {tensor.dtype} is for storage: PyTorch does not compute with it"
    return f"dtype {tensor.dtype} is not a real floating-point type"


def check_has_shape(name: str, tensor: Tensor) -> None:
    """ValueError for a lazy parameter before the first forward pass."""
    if is_lazy(tensor):
        raise ValueError(f"{name} is lazy and has no shape yet: run the model once on an example, then try again")


def check_has_values(name: str, tensor: Tensor) -> None:
    """ValueError for a parameter on the meta device."""
    if tensor.is_meta:
        raise ValueError(f"{name} is on the meta device and has no values: load the weights onto a real one first")


def check_no_nan(name: str, weight: Tensor) -> None:
    """ValueError for a weight that holds NaN."""
    if bool(weight.isnan().any()):
        raise ValueError(f"{name} holds NaN in {int(weight.isnan().sum())} of {weight.numel()} weights")


def check_is_finite(name: str, tensor: Tensor) -> None:
    """ValueError for a tensor that holds NaN or infinite values."""
    finite = tensor.detach().isfinite()
    if not bool(finite.all()):
        bad = tensor.numel() - int(finite.sum())
        raise ValueError(f"{name} holds NaN or infinite values in {bad} of {tensor.numel()} places")


def check_ready(model: nn.Module) -> None:
    """ValueError for the first parameter that has no shape or no values yet."""
    for name, parameter in model.named_parameters():
        check_has_shape(name, parameter)
        check_has_values(name, parameter)


def check_finite(model: nn.Module) -> None:
    """ValueError for the first parameter that has no shape or no values yet, or holds NaN or infinite ones."""
    check_ready(model)
    for name, parameter in model.named_parameters():
        if parameter.dtype in REAL:
            check_is_finite(name, parameter)


def packed_weights(model: nn.Module) -> Iterator[tuple[str, Tensor, nn.Module]]:
    """(name, weight, module) of the layers of PyTorch's quantisation, whose weights are no parameters."""
    for name, module in own_modules(model):
        if not type(module).__module__.startswith(QUANTISED):
            continue  # reading a weight that is computed (spectral_norm) would change the module
        if callable(weight := getattr(module, "weight", None)):
            yield f"{name}.weight".removeprefix("."), weight(), module
