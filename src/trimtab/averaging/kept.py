"""Averages as tensors: laid out and sharded as what they are of, in float32 at least."""

from __future__ import annotations

from torch import Tensor

from trimtab.collectives import is_sharded
from trimtab.tensors.passes import working_dtype


def average_of(tensor: Tensor) -> Tensor:
    """A copy of `tensor` to average into, in float32 where it is a half.

    Example:
        >>> import torch
        >>> average_of(torch.ones(1, dtype=torch.bfloat16))
        tensor([1.])
    """
    dtype = tensor.dtype if tensor.is_complex() else working_dtype(tensor)
    return tensor.detach().to(dtype, copy=True)


def whole(tensor: Tensor) -> Tensor:
    """All of a sharded tensor, gathered (a collective), or a copy of the tensor."""
    gathered: Tensor = tensor.full_tensor() if is_sharded(tensor) else tensor.clone()  # type: ignore[attr-defined]
    return gathered


def placed(value: Tensor, like: Tensor | None, name: str) -> Tensor:
    """A saved average where `like` lies and sharded as it is; ValueError when the shapes differ."""
    if like is None:
        return value.clone()
    if value.shape != like.shape:
        raise ValueError(f"the saved average of {name} has shape {tuple(value.shape)}, not {tuple(like.shape)}")
    found = average_of(like)
    if not is_sharded(like):
        return found.copy_(value)
    from torch.distributed.tensor import distribute_tensor

    mesh, placements = like.device_mesh, like.placements  # type: ignore[attr-defined]
    return distribute_tensor(value.to(like.device, found.dtype), mesh, placements)
