"""What a layer multiplies its weight with: its inputs as rows, one for every product, beside the weight as a matrix."""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor, nn

from trimtab.parameters import Entry
from trimtab.parameters.layouts import is_linear
from trimtab.tensors.passes import working_dtype

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def reason_against(entry: Entry) -> str | None:
    """Why the inputs of the entry's products cannot be seen, or None: only linear layers and convolutions show them."""
    for owner in entry.owners or (entry.owner,):
        if isinstance(owner, nn.modules.linear.NonDynamicallyQuantizableLinear):
            return "nn.MultiheadAttention uses it without calling it: its inputs are not seen"
        if owner is None or not (is_linear(owner) or isinstance(owner, CONVOLUTIONS)):
            kind = "a tensor without an owner" if owner is None else type(owner).__name__
            return f"held by {kind}: only linear layers and convolutions show what a weight is multiplied with"
    return None


def groups_of(owner: nn.Module) -> int:
    """Of a convolution; 1 of a linear layer."""
    return int(owner.groups) if isinstance(owner, CONVOLUTIONS) else 1


def as_matrix(entry: Entry, weight: Tensor) -> Tensor:
    """The weight as (outputs, inputs), a view where it can be; a convolution's columns run over channels, then its kernel."""
    return weight.movedim(entry.output_axis or 0, 0).flatten(1)


def from_matrix(entry: Entry, matrix: Tensor) -> Tensor:
    """The inverse of `as_matrix`: a tensor of the weight's shape."""
    axis = entry.output_axis or 0
    moved = entry.parameter.movedim(axis, 0).shape
    return matrix.reshape(moved).movedim(0, axis)


def _padding(owner: nn.Conv1d | nn.Conv2d | nn.Conv3d) -> list[int]:
    """As `F.pad` takes it: before and after, of the last dimension first."""
    found: list[int] = []
    for axis in reversed(range(len(owner.kernel_size))):
        if isinstance(owner.padding, str):
            total = owner.dilation[axis] * (owner.kernel_size[axis] - 1) if owner.padding == "same" else 0
            found += [total // 2, total - total // 2]
        else:
            found += [int(owner.padding[axis])] * 2
    return found


def input_rows(owner: nn.Module, inputs: Tensor) -> Tensor:
    """Inputs as (groups, rows, columns of `as_matrix`), in float32 at least; of a convolution its unfolded patches [ours]."""
    wide = inputs.detach().to(working_dtype(inputs))
    if not isinstance(owner, CONVOLUTIONS):
        return wide.reshape(1, -1, wide.shape[-1])
    sizes = owner.kernel_size
    if wide.ndim == len(sizes) + 1:
        wide = wide.unsqueeze(0)
    mode = "constant" if owner.padding_mode == "zeros" else owner.padding_mode
    patches = F.pad(wide, _padding(owner), mode=mode)
    for axis, (size, step, spread) in enumerate(zip(sizes, owner.stride, owner.dilation, strict=True), start=2):
        patches = patches.unfold(axis, spread * (size - 1) + 1, step)[..., ::spread]
    groups = owner.groups
    patches = patches.reshape(
        len(patches), groups, -1, *patches.shape[2:]
    )  # samples, groups, channels, places .., kernel ..
    places = list(range(3, 3 + len(sizes)))
    kernel = list(range(3 + len(sizes), 3 + 2 * len(sizes)))
    ordered = patches.permute(1, 0, *places, 2, *kernel)
    columns = patches.shape[2] * math.prod(sizes)
    return ordered.reshape(groups, -1, columns)
