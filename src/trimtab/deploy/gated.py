"""Heads and channels that gates closed, taken out of the network for good."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from trimtab.deploy.channel_groups import counts_of
from trimtab.deploy.channels import SmallerNetwork
from trimtab.observe.untouched import untouched
from trimtab.pruning.gate_places import HEAD_COUNTS, Place, projections_of, weight_of
from trimtab.pruning.gates import Gates
from trimtab.pruning.graph import gate_hooks, graph_library, outputs_of, same_outputs, take_channels, twin_of


def remove_gated(gates: Gates, example: Tensor) -> SmallerNetwork:
    """A copy of the network without the heads and channels that `gates.finalize` closed; it computes the same.

    Where all of a place are closed, one stays (its readers have weight 0).

    Args:
        gates: after `finalize`.
        example: an input with at least one row; on it both networks must agree to 1e-4.

    Returns:
        A `SmallerNetwork`; the network given stays as it is.

    Raises:
        ImportError: torch-pruning is not installed.
        ValueError: gates that were not finalized, a place whose removal breaks the network (named), or a smaller network that
            computes something else.

    Example:
        >>> from trimtab.pruning import gate_channels
        >>> net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
        >>> gates = gate_channels(net, torch.randn(2, 4))  # doctest: +SKIP
        >>> gates.finalize(sparsity=0.5)  # doctest: +SKIP
        {'0': [0, 1, 2]}
        >>> remove_gated(gates, torch.randn(2, 4)).model[0].weight.shape  # doctest: +SKIP
        torch.Size([3, 4])
    """
    library = graph_library()
    if gates.attached or gate_hooks(gates.network):
        raise ValueError("finalize or remove all gates of the network first: what is removed are closed ones")
    model, smaller = gates.network, twin_of(gates.network)
    removed, groups = {}, []
    for place in gates.places:
        gone = gates.closed.get(place.name, [])[: place.size - 1]
        removed[place.name] = gone
        groups.append((place.name, [place.name, *place.readers], place.size, place.size - len(gone)))
        if not gone:
            continue
        try:
            if place.kind == "heads":
                _take_heads(smaller, place, gone)
            else:
                take_channels(library, smaller, example, place.name, gone)
            outputs_of(smaller, example)
        except (RuntimeError, ValueError, IndexError, TypeError, AssertionError) as error:
            raise ValueError(
                f"{place.name}: the network breaks without {len(gone)} of its {place.size} {place.kind} "
                f"({str(error).splitlines()[0][:160]})"
            ) from error
    with untouched(model):
        expected = outputs_of(model, example)
    if not same_outputs(outputs_of(smaller, example), expected):
        raise ValueError(
            f"without what is closed {type(model).__name__} computes something else than with weights of 0 "
            f"({', '.join(name for name, gone in removed.items() if gone)})"
        )
    for parameter, original in zip(smaller.parameters(), model.parameters(), strict=True):
        parameter.requires_grad_(original.requires_grad)
        parameter.grad = None
    before, after = counts_of(model, example), counts_of(smaller, example)
    modes = {name: module.training for name, module in model.named_modules()}
    for name, module in smaller.named_modules():
        module.training = modes[name]
    return SmallerNetwork(
        smaller, groups, removed, list(gates.left_out), [], (before[0], after[0]), (before[1], after[1]), model, example
    )


def _take_heads(model: nn.Module, place: Place, gone: list[int]) -> None:
    """Take heads from the projections of an attention and from what reads them."""
    attention = model.get_submodule(place.name)
    names = projections_of(attention)
    if names is None:
        raise ValueError("queries, keys and values are not three linear layers of known names")
    layers = [attention.get_submodule(name) for name in names]
    reader = model.get_submodule(place.readers[0])
    if not all(isinstance(layer, nn.Linear) for layer in (*layers, reader)):
        raise ValueError("its projections are no nn.Linear")
    rows = [weight_of(model, f"{place.name}.{name}").parameter.shape[0] for name in names]
    if rows[0] % place.size or len(set(rows)) > 1:
        raise ValueError(f"{', '.join(names)} have {rows} outputs: heads share keys or values")
    for layer in layers:
        _keep(layer, place.size, gone, 0)
    _keep(reader, place.size, gone, 1)
    for label in HEAD_COUNTS:
        if getattr(attention, label, None) == place.size:
            setattr(attention, label, place.size - len(gone))


def _keep(layer: nn.Module, heads: int, gone: list[int], axis: int) -> None:
    assert isinstance(layer, nn.Linear)
    size = layer.weight.shape[axis] // heads
    kept = [head * size + at for head in range(heads) if head not in set(gone) for at in range(size)]
    index = torch.tensor(kept, device=layer.weight.device)
    layer.weight = nn.Parameter(layer.weight.detach().index_select(axis, index))
    if axis == 0:
        layer.out_features = len(kept)
        if layer.bias is not None:
            layer.bias = nn.Parameter(layer.bias.detach()[index])
    else:
        layer.in_features = len(kept)
