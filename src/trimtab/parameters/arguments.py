"""What a model is called with: one input, several, or named ones, as examples and batches hold them."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

Arguments = tuple[tuple[Any, ...], dict[str, Any]]


def arguments(inputs: Any) -> Arguments:
    """Positional and keyword arguments of a model: a tuple or list gives the first, a mapping the second.

    Example:
        >>> arguments((1, 2)), arguments({"x": 1}), arguments(1)
        (((1, 2), {}), ((), {'x': 1}), ((1,), {}))
    """
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    return (tuple(inputs) if isinstance(inputs, tuple | list) else (inputs,)), {}


INPUT = ("input", "x", "hidden_states")
"""What layers call their input: torch's, transformers' Conv1D, and blocks of it."""


def layer_input(args: tuple[Any, ...], given: Mapping[str, Any]) -> Any:
    """What a layer is called on, by position or by name, as a hook with keywords gets it; None where there is nothing.

    Example:
        >>> layer_input((1, 2), {}), layer_input((), {"input": 3}), layer_input((), {})
        (1, 3, None)
    """
    if args:
        return args[0]
    return next((given[name] for name in INPUT if name in given), None)


def with_input(args: tuple[Any, ...], given: Mapping[str, Any], value: Any) -> Arguments:
    """The same call on another input.

    Example:
        >>> with_input((1, 2), {}, 9), with_input((), {"x": 3}, 9)
        (((9, 2), {}), ((), {'x': 9}))
    """
    if args:
        return (value, *args[1:]), dict(given)
    name = next(name for name in INPUT if name in given)
    return (), {**given, name: value}


def moved(item: Any, device: torch.device) -> Any:
    """`item` with every tensor in its mappings, tuples and lists on `device`; other things as they are."""
    if isinstance(item, Tensor):
        return item.to(device)
    if isinstance(item, Mapping):
        return {key: moved(value, device) for key, value in item.items()}
    if isinstance(item, tuple | list):
        parts = [moved(value, device) for value in item]
        return type(item)(*parts) if hasattr(item, "_fields") else type(item)(parts)
    return item


def _parameters(model: nn.Module) -> list[inspect.Parameter]:
    try:
        return list(inspect.signature(model.forward).parameters.values())
    except (TypeError, ValueError):  # no Python function
        return []


def arguments_of_batch(model: nn.Module, batch: Any) -> Arguments:
    """The inputs of `model` among what a loader gave.

    * a tensor: the input.
    * a mapping: keyword arguments, those that `forward` takes (the others, such as targets, stay behind).
    * a tuple or list that starts with a mapping, tuple or list: that one holds all inputs.
    * a tuple or list that starts with a tensor: as many leading items as `forward` has arguments without a default, at
      least one; the rest are targets.

    Raises:
        TypeError: the batch is something else, or holds fewer inputs than `forward` needs.

    Example:
        >>> arguments_of_batch(nn.Bilinear(1, 1, 1), ("left", "right", "target"))
        Traceback (most recent call last):
            ...
        TypeError: a batch must be a tensor, a mapping of inputs, or start with one, got tuple of str
        >>> found, _ = arguments_of_batch(nn.Bilinear(1, 1, 1), (torch.ones(1), torch.ones(1), "target"))
        >>> len(found)
        2
    """
    if isinstance(batch, tuple | list) and batch and isinstance(batch[0], Mapping | tuple | list):
        if not isinstance(batch[0], Mapping):
            return tuple(batch[0]), {}
        batch = batch[0]
    if isinstance(batch, Mapping):
        return (), _taken(model, batch)
    if isinstance(batch, Tensor):
        return (batch,), {}
    if not isinstance(batch, tuple | list) or not batch or not isinstance(batch[0], Tensor):
        kind = type(batch).__name__ + (
            f" of {type(batch[0]).__name__}" if isinstance(batch, tuple | list) and batch else ""
        )
        raise TypeError(f"a batch must be a tensor, a mapping of inputs, or start with one, got {kind}")
    by_position = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    needed = [p.name for p in _parameters(model) if p.kind in by_position and p.default is p.empty]
    if len(needed) > len(batch):
        raise TypeError(
            f"{type(model).__name__}.forward needs {len(needed)} inputs ({', '.join(needed)}), the batch holds "
            f"{len(batch)} items"
        )
    return tuple(batch[: max(1, len(needed))]), {}


def _taken(model: nn.Module, batch: Mapping[str, Any]) -> dict[str, Any]:
    """The items whose names `forward` knows; all where it takes `**kwargs`."""
    known = _parameters(model)
    if not known or any(parameter.kind is parameter.VAR_KEYWORD for parameter in known):
        return dict(batch)
    names = [parameter.name for parameter in known]
    missing = [p.name for p in known if p.default is p.empty and p.kind is not p.VAR_POSITIONAL and p.name not in batch]
    if missing:
        raise TypeError(
            f"{type(model).__name__}.forward needs {', '.join(missing)}, the batch holds {', '.join(map(str, batch))}"
        )
    return {name: batch[name] for name in names if name in batch}
