"""Where gates fit: channels that go without a change of the function when all that reads them is zero, and heads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from trimtab.parameters import Entry, entries
from trimtab.parameters.layouts import is_linear
from trimtab.pruning.graph import (
    LAYERS,
    dependency_graph,
    graph_library,
    group_of,
    groups_of,
    outputs_of,
    same_outputs,
    take_channels,
    twin_of,
)

HEAD_COUNTS = ("heads", "num_heads", "n_heads", "num_attention_heads", "n_head")
"""How attention modules call the number of their heads."""
PROJECTIONS = (
    ("query", "key", "value"), ("q_proj", "k_proj", "v_proj"), ("q_lin", "k_lin", "v_lin"), ("to_q", "to_k", "to_v"),
    ("wq", "wk", "wv"), ("q", "k", "v"),
)  # fmt: skip
"""How they call their queries, keys and values."""
OUTPUTS = ("out", "out_proj", "o_proj", "out_lin", "to_out", "to_out.0", "wo", "c_proj", "proj", "dense", "o")
"""How they call the layer that reads the heads."""


@dataclass(frozen=True)
class Place:
    """Parts of a network behind one vector of gates.

    Attributes:
        name: the first layer whose outputs they are, or the attention module.
        kind: "channels" or "heads".
        size: how many gates.
        readers: the layers whose inputs the gates multiply; each has a multiple of `size` inputs, gate after gate.
    """

    name: str
    kind: str
    size: int
    readers: tuple[str, ...]


def input_dim(module: nn.Module) -> int:
    """The dimension of a layer's input that holds its channels."""
    return -1 if is_linear(module) else 1


def weight_of(model: nn.Module, reader: str) -> Entry:
    """The weight of a layer whose inputs are gated.

    Raises:
        ValueError: it has none of its own (weight_norm), it is tied, or which way it lies is not known.
    """
    module = model.get_submodule(reader)
    parameter = getattr(module, "_parameters", {}).get("weight")
    if parameter is None:
        raise ValueError(
            f"{reader} ({type(module).__name__}) has no parameter `weight` of its own that a gate could go into"
        )
    (entry,) = (entry for entry in entries(model) if entry.parameter is parameter)
    others = [name for name in (entry.name, *entry.aliases) if name != f"{reader}.weight"]
    if others:
        raise ValueError(
            f"a gate on a tied weight: {reader}.weight is also {', '.join(others)}, which would lose the same inputs; "
            "untie it, or leave the layer out"
        )
    if entry.input_axis is None:
        raise ValueError(f"which dimension of {reader}.weight are inputs is not known (register_layout says it)")
    return entry


# channels


def _groups(
    library: Any, twin: nn.Module, example: Tensor
) -> Iterator[tuple[str, int, dict[str, Any] | str, list[int]]]:
    """(name, channels, reader -> positions of about half of the channels, those channels) of every group of a network.

    Instead of the readers the reason, where they are not known.
    """
    names = {id(module): name for name, module in twin.named_modules()}
    graph = dependency_graph(library, twin, example)
    for root, group in groups_of(graph):
        if isinstance(group, str):
            yield names[id(root)], 0, group, []
            continue
        size = len(group[0].idxs)
        number = size // 2
        if size > 2 and number % 2 == 0:
            number -= 1  # an odd one: whole heads alone would fit a view
        half = list(range(number))
        readers = {
            names[id(dep.target.module)]: list(idxs)
            for dep, idxs in group_of(graph, root, half)
            if dep.handler.__name__ == "prune_in_channels" and isinstance(dep.target.module, tuple(LAYERS))
        }
        yield names[id(root)], size, readers, half


def _reason(
    library: Any, model: nn.Module, example: Tensor, name: str, readers: Mapping[str, Any], half: Any
) -> str | None:
    """Why channels cannot be gated; half of them are taken from one copy and not read in another."""
    zeroed, smaller = twin_of(model), twin_of(model)
    try:
        with torch.no_grad():
            for reader, places in readers.items():
                entry = weight_of(zeroed, reader)
                assert entry.input_axis is not None
                entry.parameter.index_fill_(entry.input_axis, torch.tensor(places, device=entry.parameter.device), 0)
        take_channels(library, smaller, example, name, half)
        same = same_outputs(outputs_of(smaller, example), outputs_of(zeroed, example))
    except (RuntimeError, ValueError, IndexError, TypeError, AssertionError) as error:
        return f"the network breaks without some of its channels ({str(error).splitlines()[0][:120]})"
    return (
        None
        if same
        else "without some of its channels the network computes something else than with readers that skip them"
    )


def channel_places(
    model: nn.Module, example: Tensor, include: Sequence[str], exclude: Sequence[str]
) -> tuple[list[Place], list[tuple[str, str]]]:
    """Every group of channels that gates fit, and the others with the reasons."""
    library = graph_library()
    found, left_out = [], []
    for name, size, readers, half in _groups(library, twin_of(model), example):
        if not any(fnmatchcase(name, pattern) for pattern in include):
            continue
        if isinstance(readers, str):
            left_out.append((name, readers))
            continue
        if any(fnmatchcase(each, pattern) for each in (name, *readers) for pattern in exclude):
            left_out.append((name, "named in exclude"))
            continue
        reason = None
        if not readers:
            reason = "no layer reads its channels: they are those of the output"
        elif size < 2:
            reason = "it has one channel only"
        elif any(_ragged(model, reader, places, size, half) for reader, places in readers.items()):
            reason = "its channels do not lie in order where they are read"
        else:
            reason = _reason(library, model, example, name, readers, half)
        if reason is not None and "a gate on a tied weight" not in reason:
            left_out.append((name, reason))
            continue
        for reader in readers:
            weight_of(model, reader)  # a tied weight is an error
        found.append(Place(name, "channels", size, tuple(readers)))
    return found, left_out


def _ragged(model: nn.Module, reader: str, places: list[int], size: int, half: list[int]) -> bool:
    """Whether the inputs of a reader are not the channels one after the other."""
    entry = next((e for e in entries(model) if f"{reader}.weight" in (e.name, *e.aliases)), None)
    if entry is None:  # computed from others, which `_reason` says
        return False
    inputs = entry.parameter.shape[entry.input_axis] if entry.input_axis is not None else 0
    return inputs % size != 0 or places != list(range(len(half) * (inputs // size)))


# heads


def _heads_of(module: nn.Module) -> int | None:
    for holder in (module, getattr(module, "config", None)):
        for label in HEAD_COUNTS:
            if isinstance(count := getattr(holder, label, None), int) and count > 1:
                return count
    return None


def _child(module: nn.Module, names: Sequence[str]) -> str | None:
    for name in names:
        try:
            if is_linear(module.get_submodule(name)):
                return name
        except AttributeError:
            continue
    return None


def head_places(
    model: nn.Module, include: Sequence[str], outputs: Mapping[str, int]
) -> tuple[list[Place], list[tuple[str, str]]]:
    """Every attention module whose heads are read by a linear layer of its own, and the others with the reasons."""
    found, left_out = [], []
    for name, module in model.named_modules():
        if not any(fnmatchcase(name, pattern) for pattern in include):
            continue
        if isinstance(module, nn.MultiheadAttention):
            left_out.append((name, "nn.MultiheadAttention multiplies by its out_proj without calling it"))
            continue
        told = next((count for pattern, count in outputs.items() if fnmatchcase(name, pattern)), None)
        if told is not None:
            found.append(_head_place(model, name, name, told))
            continue
        heads, out = _heads_of(module), _child(module, OUTPUTS)
        if not outputs and heads is not None and out is not None and "attention" in type(module).__name__.lower():
            found.append(_head_place(model, name, f"{name}.{out}".lstrip("."), heads))
    return found, left_out


def _head_place(model: nn.Module, name: str, reader: str, heads: int) -> Place:
    entry = weight_of(model, reader)
    inputs = entry.parameter.shape[entry.input_axis or 0]
    if inputs % heads:
        raise ValueError(f"{reader} has {inputs} inputs, which {heads} heads do not divide")
    return Place(name, "heads", heads, (reader,))


def projections_of(attention: nn.Module) -> tuple[str, str, str] | None:
    """Names of the layers of queries, keys and values; None where they are not three layers of the known names."""
    for names in PROJECTIONS:
        if all(_child(attention, (name,)) for name in names):
            return names
    return None
