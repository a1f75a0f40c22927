"""Two small layers in the place of one of low rank."""

from __future__ import annotations

import copy
from collections import Counter
from dataclasses import dataclass
from typing import Any, get_args

import torch
from torch import Tensor, nn

from trimtab.checks import number, one_of
from trimtab.frames import Tabular
from trimtab.parameters.kinds import check_has_values, check_is_finite
from trimtab.pruning.low_rank import Scheme, as_matrix, of_low_rank, truncated


@dataclass(frozen=True, repr=False)
class Decomposed(Tabular):
    """What `decompose` made.

    Attributes:
        model: the network with two layers (a `nn.Sequential` of the old name) in the place of each one that was replaced.
        rows: per replaced layer its name, rank, full rank, weights before and after.
        left_out: layers that stay, each with the reason.
    """

    model: nn.Module
    rows: tuple[tuple[str, int, int, int, int], ...]
    left_out: tuple[tuple[str, str], ...]

    def records(self) -> list[dict[str, Any]]:
        """One per replaced layer: `name`, `rank`, `full`, `weights`, `left`."""
        return [dict(zip(("name", "rank", "full", "weights", "left"), row, strict=True)) for row in self.rows]

    def _title(self) -> str:
        return repr(self)

    def __repr__(self) -> str:
        before, after = sum(row[3] for row in self.rows), sum(row[4] for row in self.rows)
        return f"Decomposed({len(self.rows)} layers: {before:,} -> {after:,} weights; {len(self.left_out)} layers stay)"


def decompose(model: nn.Module, energy: float = 0.9, scheme: Scheme = "channel") -> Decomposed:
    """A copy of `model` in which two layers stand for each one whose rank is low enough to make them smaller.

    "channel": a convolution of the same kernel to r channels, then 1 x 1; "spatial": kh x 1 to r channels, then 1 x kw;
    "depthwise": 1 x 1 to r channels for each output, then the same kernel on each output's own. A Linear layer becomes two. r
    is the smallest rank with `energy` of the squared singular values, as in `LowRankProjection`; what that trained is
    reproduced to rounding at an energy just below 1.

    Args:
        model: Linear and 1-3d convolutions without groups are looked at; the others stay.
        energy: of the squared singular values that stays, in (0, 1]. Default 0.9.
        scheme: "channel" (default), "spatial" (2-d convolutions) or "depthwise" (kernels above 1; r is that of the output that
            needs most); the others by channel.

    Returns:
        A `Decomposed`; layers where two would hold no fewer weights stay, with the reason. Names of parameters change.

    Raises:
        ValueError: a number out of range, a weight that is NaN, infinite or on the meta device (named), or no layer whose two
            parts would be smaller.

    Reference:
        Xu et al., Trained Rank Pruning for Efficient Deep Neural Networks, arXiv 1812.02402.

    Example:
        >>> layer = nn.Linear(64, 64)
        >>> layer.weight.data = torch.randn(64, 2) @ torch.randn(2, 64)
        >>> decompose(nn.Sequential(layer), 0.9999).model[0]
        Sequential(
          (0): Linear(in_features=64, out_features=2, bias=False)
          (1): Linear(in_features=2, out_features=64, bias=True)
        )
    """
    number("energy", energy, above=0, most=1)
    one_of("scheme", scheme, get_args(Scheme))
    twin: nn.Module = copy.deepcopy(model)
    holders = Counter(id(p) for _, m in twin.named_modules() for p in m._parameters.values() if p is not None)
    places = Counter(id(child) for m in twin.modules() for child in m.children())
    rows, left_out = [], []
    module: Any
    for name, module in list(twin.named_modules()):
        if not hasattr(module, "weight") or getattr(module.weight, "ndim", 0) < 2 or not name:
            continue
        reason = _reason(module)
        if reason is None and (holders[id(module.weight)] > 1 or places[id(module)] > 1):
            reason = "its weight is tied to another layer"
        if reason is not None:
            left_out.append((name, reason))
            continue
        check_has_values(f"{name}.weight", module.weight)
        check_is_finite(f"{name}.weight", module.weight)
        pair, rank, full = _pair(module, energy, scheme)
        before, after = (
            module.weight.numel(),
            sum(p.numel() for label, p in pair.named_parameters() if label.endswith("weight")),
        )
        if after >= before:
            left_out.append((name, f"at rank {rank} of {full} two layers hold {after:,} weights, it holds {before:,}"))
            continue
        parent, _, label = name.rpartition(".")
        setattr(twin.get_submodule(parent), label, pair.train(module.training))
        rows.append((name, rank, full, before, after))
    if not rows:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in left_out[:5])
        raise ValueError(
            f"{type(model).__name__} has no layer that two smaller ones could stand for ({reasons or 'none'})"
        )
    return Decomposed(twin, tuple(rows), tuple(left_out))


def _reason(module: nn.Module) -> str | None:
    weight = module._parameters.get("weight")
    if type(module) not in (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d):
        return f"a {type(module).__name__}, no Linear layer or convolution"
    if weight is None:
        return "its weight is computed from other parameters"
    if getattr(module, "groups", 1) != 1:
        return f"a convolution of {module.groups} groups"
    return None if weight.is_floating_point() else f"its weight is {weight.dtype}"


@torch.no_grad()
def _pair(layer: Any, energy: float, scheme: Scheme) -> tuple[nn.Sequential, int, int]:
    weight = layer.weight
    flat = isinstance(layer.padding, str) or layer.padding_mode != "zeros" if hasattr(layer, "padding") else True
    scheme = "channel" if scheme == "spatial" and (weight.ndim != 4 or flat) else scheme
    matrix = as_matrix(weight, scheme)
    if matrix.ndim == 3:
        return _depthwise(layer, matrix, energy)
    left, values, right = truncated(matrix, energy)
    root, rank = values.sqrt(), len(values)
    left, right = left * root, root[:, None] * right
    like = {"device": weight.device, "dtype": weight.dtype}
    second: Any
    if weight.ndim == 2:
        first: Any = nn.Linear(layer.in_features, rank, bias=False, **like)
        second = nn.Linear(rank, layer.out_features, bias=layer.bias is not None, **like)
        parts = right, left
    elif scheme == "channel":
        kind = type(layer)
        shared = {"padding": layer.padding, "dilation": layer.dilation, "padding_mode": layer.padding_mode}
        first = kind(layer.in_channels, rank, layer.kernel_size, layer.stride, bias=False, **shared, **like)
        second = kind(rank, layer.out_channels, 1, bias=layer.bias is not None, **like)
        parts = right.view(rank, *weight.shape[1:]), left.view(*left.shape, *[1] * (weight.ndim - 2))
    else:
        (high, wide), (down, across), (above, aside) = layer.kernel_size, layer.stride, layer.padding
        first = nn.Conv2d(
            layer.in_channels, rank, (high, 1), (down, 1), (above, 0), (layer.dilation[0], 1), bias=False, **like
        )
        second = nn.Conv2d(
            rank, layer.out_channels, (1, wide), (1, across), (0, aside), (1, layer.dilation[1]),
            bias=layer.bias is not None, **like,
        )  # fmt: skip
        parts = (
            left.view(layer.in_channels, high, rank).permute(2, 0, 1).unsqueeze(3),
            right.view(rank, layer.out_channels, wide).permute(1, 0, 2).unsqueeze(2),
        )
    for new, part in zip((first, second), parts, strict=True):
        new.weight.copy_(part)
        new.weight.requires_grad_(weight.requires_grad)
    if layer.bias is not None:
        second.bias.copy_(layer.bias)
        second.bias.requires_grad_(layer.bias.requires_grad)
    return nn.Sequential(first, second), rank, min(matrix.shape)


def _depthwise(layer: Any, matrices: Tensor, energy: float) -> tuple[nn.Sequential, int, int]:
    """1 x 1 to `rank` channels for each output, then the layer's kernel on the channels of each output."""
    weight, (outputs, inputs, _) = layer.weight, matrices.shape
    kept, _, rank = of_low_rank(matrices, energy)
    left, values, right = torch.linalg.svd(kept, full_matrices=False)
    root = values[:, :rank].sqrt()
    kind, like = type(layer), {"device": weight.device, "dtype": weight.dtype}
    kernel = {
        "stride": layer.stride, "padding": layer.padding, "dilation": layer.dilation, "padding_mode": layer.padding_mode,
    }  # fmt: skip
    first = kind(inputs, outputs * rank, 1, bias=False, **like)
    second = kind(
        outputs * rank, outputs, layer.kernel_size, groups=outputs, bias=layer.bias is not None, **kernel, **like
    )  # fmt: skip
    first.weight.copy_((left[:, :, :rank] * root.unsqueeze(1)).transpose(1, 2).reshape(first.weight.shape))
    second.weight.copy_((root.unsqueeze(2) * right[:, :rank]).reshape(second.weight.shape))
    if layer.bias is not None:
        second.bias.copy_(layer.bias)
        second.bias.requires_grad_(layer.bias.requires_grad)
    for new in (first, second):
        new.weight.requires_grad_(weight.requires_grad)
    return nn.Sequential(first, second), rank, min(matrices.shape[1:])
