"""Gradients of every layout and size that the passes tell apart, and the transforms written out in NumPy float64."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from trimtab.parameters import Entry

Array = NDArray[np.float64]

SHAPES: dict[str, tuple[tuple[int, ...], int]] = {
    # name: shape, output axis
    "small": ((5, 4), 0),
    "small again": ((5, 4), 0),
    "convolution": ((6, 3, 3, 3), 0),
    "channels last": ((6, 4, 3, 3), 0),
    "transposed convolution": ((4, 7, 2, 2), 1),
    "sequence": ((4, 3, 5), 0),
    "strided": ((9, 8), 0),
    "medium": ((40, 500), 0),
    "medium again": ((40, 500), 0),
    "large": ((600, 500), 0),
    "large transposed convolution": ((300, 200, 5), 1),
    "one row": ((1, 11), 0),
    "row of one": ((6, 1), 0),
    "one element": ((1, 1), 0),
    "vector": ((12,), 0),
    "scalar": ((), 0),
    "empty": ((0, 4), 0),
}


def sample(seed: int = 0, dtype: torch.dtype = torch.float32, mean: float = 0.3) -> list[Entry]:
    """One entry per shape, weights and gradients random, each tensor of another scale."""
    generator = torch.Generator().manual_seed(seed)
    result = []
    for number, (name, (shape, axis)) in enumerate(SHAPES.items()):
        scale = 10.0 ** (number % 5 - 3)
        parameter = nn.Parameter(torch.randn(shape, generator=generator).to(dtype))
        gradient = ((torch.randn(shape, generator=generator) + mean) * scale).to(dtype)
        if name == "channels last":
            gradient = gradient.to(memory_format=torch.channels_last)
        if name == "strided":
            gradient = gradient.T.contiguous().T
        parameter.grad = gradient
        result.append(Entry(name, parameter, axis if len(shape) > 1 else None))
    return result


def gradients(entries: Sequence[Entry]) -> dict[str, Tensor]:
    """Copies of the gradients by name."""
    return {entry.name: entry.parameter.grad.clone() for entry in entries if entry.parameter.grad is not None}


def as_array(tensor: Tensor) -> Array:
    return tensor.detach().double().numpy()


def units(entry: Entry, value: Tensor) -> Array:
    """(units, elements) of `value`, by moving the output axis first."""
    array = as_array(value)
    if array.ndim < 2:
        return array.reshape(1, -1)
    moved = np.moveaxis(array, entry.output_axis or 0, 0)
    return moved.reshape(moved.shape[0], math.prod(moved.shape[1:]))


def from_units(entry: Entry, rows: Array) -> Array:
    """The inverse of `units`."""
    shape = tuple(entry.parameter.shape)
    if len(shape) < 2:
        return rows.reshape(shape)
    axis = entry.output_axis or 0
    moved = (shape[axis], *shape[:axis], *shape[axis + 1 :])
    return np.moveaxis(rows.reshape(moved), 0, axis)


def check(entries: Sequence[Entry], expected: dict[str, Array], relative: float = 2e-5) -> None:
    """Every gradient equals what is expected, to a share of the largest magnitude in it."""
    for entry in entries:
        actual, wanted = as_array(entry.parameter.grad), expected[entry.name]
        tolerance = relative * max(np.abs(wanted).max(initial=0.0), 1e-30)
        np.testing.assert_allclose(actual, wanted, rtol=0, atol=tolerance, err_msg=entry.name)
