"""What torchjd's rules remember from step to step, as plain tensors, numbers and lists."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

INNER = frozenset(vars(nn.Module()))
"""What every module has in it."""


def remembered_of(module: nn.Module) -> dict[str, Any]:
    """Attributes and buffers of a rule.

    Raises:
        ValueError: one of them is no tensor, number, word or tuple of such.

    Example:
        >>> layer = nn.Module()
        >>> layer.seen, layer.key = torch.ones(1), (2, torch.float32)
        >>> remembered_of(layer)
        {'seen': tensor([1.]), 'key': {'tuple': [2, {'dtype': 'float32'}]}}
    """
    own = {**{key: value for key, value in vars(module).items() if key not in INNER}, **module._buffers}
    return {key: _to_plain(value, f"{type(module).__name__}.{key}") for key, value in own.items()}


def _to_plain(value: Any, name: str) -> Any:
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, torch.dtype):
        return {"dtype": str(value).removeprefix("torch.")}
    if isinstance(value, torch.device):
        return {"device": str(value)}
    if isinstance(value, tuple):
        return {"tuple": [_to_plain(one, name) for one in value]}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise ValueError(
        f"{name} is of the type {type(value).__name__}, which cannot be saved: only numbers, words, tensors and tuples can"
    )


def from_plain(value: Any) -> Any:
    """What `remembered_of` made plain.

    Example:
        >>> from_plain({"tuple": [2, {"dtype": "float32"}]})
        (2, torch.float32)
    """
    if isinstance(value, Tensor):
        return value.clone()
    if not isinstance(value, dict):
        return value
    ((kind, held),) = value.items()
    if kind == "tuple":
        return tuple(map(from_plain, held))
    return getattr(torch, held) if kind == "dtype" else torch.device(held)
