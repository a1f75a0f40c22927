"""Backward passes that are rounded on purpose: marked where they are made, found where exact ones are needed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class RoundedBackward:
    """Mark of a node of the autograd graph, its attribute `rounded_backward`.

    Attributes:
        where: what rounds, in words.
        way_out: a context manager, as code, in which it does not.
    """

    where: str
    way_out: str


def rounded_backward(outputs: Any) -> RoundedBackward | None:
    """The first mark in the graph behind `outputs`, tensors in any nest of tuples, lists, mappings and data classes.

    Example:
        >>> import torch
        >>> rounded_backward(torch.ones(1, requires_grad=True) * 2) is None
        True
    """
    waiting = [tensor.grad_fn for tensor in _tensors(outputs) if tensor.grad_fn is not None]
    seen = set(waiting)
    while waiting:
        node = waiting.pop()
        if isinstance(mark := getattr(node, "rounded_backward", None), RoundedBackward):
            return mark
        for following, _ in node.next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                waiting.append(following)
    return None


def _tensors(item: Any) -> Iterable[Tensor]:
    if isinstance(item, Tensor):
        yield item
    elif isinstance(item, Mapping):
        for value in item.values():
            yield from _tensors(value)
    elif isinstance(item, tuple | list):
        for value in item:
            yield from _tensors(value)
    elif hasattr(item, "__dataclass_fields__"):
        yield from _tensors(list(vars(item).values()))


def recomputing() -> bool:
    """Whether the present forward pass is one that activation checkpointing computes again, inside a backward pass."""
    return bool(torch._C._current_graph_task_id() != -1)  # noqa: SLF001  (as torch.utils.checkpoint asks it)
