"""FrozenCodes: a linear layer whose weights are whole numbers that stay, times scales that may be trained."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trimtab.checks import whole
from trimtab.precision.blocks import Block
from trimtab.precision.format import Format, named
from trimtab.precision.quantize import quantize
from trimtab.precision.scaling import PerChannel, Scaling


class FrozenCodes(nn.Module):
    """A linear layer in codes: `y = x (scales * codes)' + bias`, codes in a byte each, scales a parameter (arXiv 2505.13430).

    The codes are those of `quantize(weight, format, scaling=PerChannel())`, or `Block(group)`: multiplied by the first scales
    they are its numbers, bit for bit in float32; scales have the layer's dtype. Only the scales (and the bias, if it does) have
    gradients; the weights take a byte each and 4 bytes for each group. The forward pass makes the weights anew each time.

    Args:
        linear: the layer; it is not changed.
        format: a symmetric integer format of 2 to 8 bits, default "int4".
        group: inputs that share a scale, the last group shorter where it does not divide; default None: one scale for each
            output.

    Raises:
        TypeError: no `nn.Linear`.
        ValueError: another kind of format, a group below 1, weights that are not finite.

    Example:
        >>> layer = FrozenCodes(nn.Linear(6, 2))
        >>> layer.codes.dtype, tuple(layer.scales.shape)
        (torch.int8, (2, 1, 1))
    """

    codes: Tensor
    bias: Tensor | None

    def __init__(self, linear: nn.Linear, format: str | Format = "int4", group: int | None = None) -> None:
        super().__init__()
        if not isinstance(linear, nn.Linear):
            raise TypeError(f"FrozenCodes is of torch.nn.Linear, got {type(linear).__name__}")
        self.format = named(format)
        if self.format.exponent or self.format.bits > 8:
            raise ValueError(
                f"codes are symmetric integers of 2 to 8 bits, int2 to int8, got format {self.format.name!r}"
            )
        self.group = None if group is None else whole("group", group, 1)
        weight = linear.weight.detach()
        if not bool(weight.isfinite().all()):
            raise ValueError(f"the weights of {linear} hold inf or NaN")
        scaling: Scaling = PerChannel() if group is None else Block(group)
        rows = scaling.grouped(scaling.lines(weight))
        scales = scaling.of_rows(rows, self.format, torch.promote_types(weight.dtype, torch.float32)).decode
        codes = quantize((rows / scales).to(scales.dtype), self.format)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.register_buffer("codes", codes.to(torch.int8).view(self.out_features, -1, rows.shape[1]))
        self.scales = nn.Parameter(scales.to(weight.dtype).view(self.out_features, -1, 1))
        self.register_parameter("bias", linear.bias)

    @property
    def weight(self) -> Tensor:
        """The weights as the layer uses them, shape (outputs, inputs); with a gradient to the scales."""
        return (self.codes * self.scales).flatten(1)[:, : self.in_features]

    def forward(self, x: Tensor) -> Tensor:
        """`x` of shape (..., inputs)."""
        return F.linear(x, self.weight, self.bias)

    @property
    def bytes(self) -> tuple[int, int]:
        """What codes, scales and bias take, and what the layer in floats takes."""
        rest = 0 if self.bias is None else self.bias.numel() * self.bias.element_size()
        size = self.scales.element_size()
        full = self.in_features * self.out_features * size
        return self.codes.numel() + self.scales.numel() * size + rest, full + rest

    def extra_repr(self) -> str:
        """Sizes, format and group."""
        return f"{self.in_features}, {self.out_features}, {self.format.name}, group={self.group}"


def freeze_codes(
    model: nn.Module,
    format: str | Format = "int4",
    group: int | None = None,
    exclude: Sequence[str] = (),
) -> list[tuple[str, str]]:
    """Replace the linear layers of `model` by `FrozenCodes`, in place.

    Layers that share a weight with another module stay as they are, and so does `model` itself where it is one.

    Args:
        model: the network.
        format, group: as for `FrozenCodes`.
        exclude: shell patterns of names that stay.

    Returns:
        What was left alone, name and reason: modules with weights that are no linear layers, excluded ones.

    Raises:
        ValueError: there is no layer to replace.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
        >>> freeze_codes(net, "int2", exclude=("2",)), type(net[0]).__name__
        ([('2', "name matches exclude pattern '2'")], 'FrozenCodes')
    """
    if isinstance(exclude, str):
        raise TypeError(f"exclude must be a tuple of patterns, got the string {exclude!r}")
    users: dict[Tensor, int] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            users[parameter] = users.get(parameter, 0) + 1
    left: list[tuple[str, str]] = []
    found: list[tuple[str, nn.Linear]] = []
    places: dict[nn.Module, list[str]] = {}  # one module may be called at several
    for name, module in model.named_modules(remove_duplicate=False):
        places.setdefault(module, []).append(name)
    for name, module in model.named_modules():
        if next(module.parameters(recurse=False), None) is None or isinstance(module, FrozenCodes):
            continue
        pattern = next((each for each in exclude if fnmatchcase(name, each)), None)
        if type(module) is not nn.Linear or not name:
            left.append((name, f"{type(module).__name__} is no linear layer inside of the network"))
        elif pattern is not None:
            left.append((name, f"name matches exclude pattern {pattern!r}"))
        elif users[module.weight] > 1:
            left.append((name, "its weight is shared with another module"))
        else:
            found.append((name, module))
    if not found:
        raise ValueError(f"{type(model).__name__} has no linear layer to put in codes; left alone: {left}")
    made = [(name, FrozenCodes(linear, format, group)) for name, linear in found]  # all or none
    for (_, linear), (_, layer) in zip(found, made, strict=True):
        for name in places[linear]:
            parent, _, last = name.rpartition(".")
            setattr(model.get_submodule(parent), last, layer)
    return left
