"""Parts of MLPs and attention for `RouteByLabel`: hidden units and heads."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

from torch import nn

from trimtab.checks import number, whole
from trimtab.gradients.routing import Part


def _linears(model: nn.Module, pattern: str) -> dict[str, nn.Linear]:
    found = {name: module for name, module in model.named_modules() if fnmatchcase(name, pattern)}
    wrong = [name for name, module in found.items() if not isinstance(module, nn.Linear)]
    if not found or wrong:
        what = f"{wrong[0]} is a {type(found[wrong[0]]).__name__}" if wrong else "it names none"
        raise ValueError(f"{pattern!r} must name Linear layers of {type(model).__name__}: {what}")
    return {name: module for name, module in found.items() if isinstance(module, nn.Linear)}


def _held(name: str, layer: nn.Linear, rows: Part, columns: Part) -> dict[str, Part]:
    """Rows of weight and bias, or columns of the weight and no bias."""
    if columns is None:
        return {f"{name}.weight": rows, **({f"{name}.bias": rows} if layer.bias is not None else {})}
    part: Part = (slice(None), columns)  # type: ignore[assignment]
    return {f"{name}.weight": part, **({f"{name}.bias": None} if layer.bias is not None else {})}


def forget_units(model: nn.Module, up: str, down: str, fraction: float) -> dict[str, Part]:
    """The last hidden units of MLPs: rows and biases of the first layers, columns of the second; their biases wholly retained.

    Args:
        model: the network.
        up, down: shell patterns of the layers' names, such as "*.mlp.fc1" and "*.mlp.fc2"; paired in the model's order.
        fraction: of the units, in (0, 1); at least one unit.

    Raises:
        ValueError: a pattern names something else than Linear layers, the pairs do not fit, or `fraction` is out of range.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> forget_units(net, "0", "2", 0.25)["0.weight"]
        slice(6, 8, None)
    """
    number("fraction", fraction, above=0, below=1)
    first, second = _linears(model, up), _linears(model, down)
    if [one.out_features for one in first.values()] != [one.in_features for one in second.values()]:
        raise ValueError(f"the outputs of {list(first)} are not the inputs of {list(second)}, one by one")
    found: dict[str, Part] = {}
    for (above, layer), (below, other) in zip(first.items(), second.items(), strict=True):
        units = layer.out_features
        cut = slice(units - max(1, round(fraction * units)), units)
        found |= {**_held(above, layer, cut, None), **_held(below, other, None, cut)}
    return found


def forget_heads(
    model: nn.Module, inputs: str | Sequence[str], output: str, heads: int, forget: int = 1
) -> dict[str, Part]:
    """The last heads of attention: rows of queries, keys and values, columns of the output layer, whose bias is retained.

    Args:
        model: the network.
        inputs: shell patterns of the names of the layers of queries, keys and values; one may hold all three one after another.
        output: pattern of the layers after attention.
        heads: of each layer; 2 or more.
        forget: heads of these, the last ones; fewer than `heads`.

    Raises:
        ValueError: a pattern names something else than Linear layers, or a width is no multiple of the heads.

    Example:
        >>> net = nn.ModuleDict({"qkv": nn.Linear(8, 24), "out": nn.Linear(8, 8)})
        >>> forget_heads(net, "qkv", "out", heads=4)["out.weight"]
        (slice(None, None, None), [6, 7])
    """
    heads = whole("heads", heads, least=2)
    forget = whole("forget", forget, least=1, most=heads - 1)
    found: dict[str, Part] = {}
    for name, layer in _linears(model, output).items():
        found |= _held(name, layer, None, _last_heads(name, layer.in_features, 1, heads, forget))
    width = {layer.in_features for layer in _linears(model, output).values()}
    for pattern in [inputs] if isinstance(inputs, str) else inputs:
        for name, layer in _linears(model, pattern).items():
            copies = 3 if layer.out_features % 3 == 0 and layer.out_features // 3 in width else 1
            found |= _held(name, layer, _last_heads(name, layer.out_features, copies, heads, forget), None)
    return found


def _last_heads(name: str, size: int, copies: int, heads: int, forget: int) -> list[int]:
    own = size // copies
    if own % heads:
        raise ValueError(f"{name} has {own} for {heads} heads, which is no multiple")
    first = own - forget * (own // heads)
    return [copy * own + at for copy in range(copies) for at in range(first, own)]
