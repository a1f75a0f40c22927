"""Which channels of a network depend on each other, as torch-pruning finds it from one forward pass; tried on copies."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

LAYERS = [nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d, nn.Linear]
"""Layers whose channels can be the first of a group."""
VISITS = 64
"""How often a search for dependent channels may come by one operation; sixteen concatenations in a row need four."""


def graph_library() -> Any:
    """torch-pruning; ImportError that says how to get it."""
    try:
        import torch_pruning  # type: ignore[import-untyped]
    except ModuleNotFoundError as error:
        raise ImportError(
            "removing channels needs torch-pruning, which knows which layers depend on each other: pip install "
            "'trimtab[channels]'"
        ) from error
    return torch_pruning


def dependency_graph(library: Any, model: nn.Module, example: Tensor) -> Any:
    """The dependency graph of a model; its parameters must require gradients while it is traced.

    A search in it that comes to no end is a ValueError: torch-pruning goes round for ever where channels are turned and joined,
    as rotary embeddings do.
    """
    with torch.enable_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        graph = library.DependencyGraph().build_dependency(model, example_inputs=example, verbose=False)
    for node in graph.module2node.values():
        node.dependencies = _Counted(node.dependencies)
    return graph


class _Counted(list[Any]):
    """What depends on a node; says how often a search may come by."""

    left = VISITS

    def __iter__(self) -> Iterator[Any]:
        self.left -= 1
        if self.left < 0:
            raise ValueError("what depends on its channels has no end in torch-pruning, as with rotary embeddings")
        return super().__iter__()


def group_of(graph: Any, layer: nn.Module, places: Sequence[int]) -> Any:
    """All that goes with these output channels of a layer; ValueError where the search has no end."""
    for node in graph.module2node.values():
        node.dependencies.left = VISITS
    return graph.get_pruning_group(layer, graph.get_pruner_of_module(layer).prune_out_channels, idxs=list(places))


def groups_of(graph: Any) -> Iterator[tuple[nn.Module, Any]]:
    """(first layer, all output channels that go together, or the reason why that is not known) of the whole network."""
    seen: set[int] = set()
    layers = [
        module for module in graph.module2node if isinstance(module, nn.Module) and isinstance(module, tuple(LAYERS))
    ]
    for layer in layers:
        if id(layer) in seen:
            continue
        try:
            group = group_of(graph, layer, range(graph.get_pruner_of_module(layer).get_out_channels(layer)))
        except ValueError as error:
            yield layer, str(error)
            continue
        seen |= {id(dep.target.module) for dep, _ in group if graph.is_out_channel_pruning_fn(dep.handler)}
        yield layer, group


def marked(hook: Callable[..., Any]) -> Callable[..., Any]:
    """The hook, known as one of gates, which a copy of the network does not take along."""
    hook.of_gates = True  # type: ignore[attr-defined]
    return hook


def gate_hooks(model: nn.Module) -> list[tuple[dict[int, Any], int]]:
    """Every hook of gates: the table that holds it, and its number there."""
    return [
        (table, number)
        for module in model.modules()
        for table in (module._forward_pre_hooks, module._forward_hooks)
        for number, hook in table.items()
        if getattr(hook, "of_gates", False)
    ]


def twin_of(model: nn.Module) -> nn.Module:
    """A copy without gates that evaluates, with parameters that require gradients and the gradients that are there."""
    twin = copy.deepcopy(model).eval()
    for table, number in gate_hooks(twin):
        del table[number]
    for (_, parameter), (_, original) in zip(twin.named_parameters(), model.named_parameters(), strict=True):
        parameter.requires_grad_()
        parameter.grad = None if original.grad is None else original.grad.clone()
    return twin


def outputs_of(model: nn.Module, example: Tensor) -> list[Tensor]:
    """Every tensor of what the model puts out."""
    with torch.no_grad():
        return [leaf for leaf in tree_leaves(model(example)) if isinstance(leaf, Tensor)]


def same_outputs(found: list[Tensor], expected: list[Tensor]) -> bool:
    """Whether two networks put out the same, but for rounding: within 1e-4 of the largest number."""
    return len(found) == len(expected) and all(
        one.shape == other.shape
        and torch.allclose(one.double(), other.double(), rtol=1e-4, atol=1e-4 * float(other.double().abs().amax()))
        for one, other in zip(found, expected, strict=True)
        if other.numel()
    )


def take_channels(
    library: Any, model: nn.Module, example: Tensor, name: str, gone: list[int], graph: Any = None
) -> None:
    """Take these output channels of a layer from the model, and all that follows from them."""
    graph = dependency_graph(library, model, example) if graph is None else graph
    layer = model.get_submodule(name)
    group = group_of(graph, layer, sorted(gone))
    if not graph.check_pruning_group(group):
        raise ValueError("a layer of the group would keep no channel")
    for part, _ in group:
        module = part.target.module
        if isinstance(module, nn.Module) and "weight" not in module._parameters and hasattr(module, "weight"):
            name = part.target.name.split(" ")[0]
            raise ValueError(f"the weight of {name} is computed from others, such as under weight_norm")
    group.prune()
