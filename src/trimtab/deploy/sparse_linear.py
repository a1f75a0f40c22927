"""Replace the Linear layers that this machine runs faster as sparse ones, and say why the others are left."""

from __future__ import annotations

import copy
from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from trimtab.checks import positive
from trimtab.deploy.csr_linear import DTYPES, CsrLinear
from trimtab.deploy.latency import compare_linear
from trimtab.deploy.timing import Comparison, compare_twice
from trimtab.frames import Tabular
from trimtab.observe.untouched import uncompiled, untouched
from trimtab.parameters.arguments import arguments
from trimtab.parameters.kinds import PACKED, check_ready, packed_weights
from trimtab.parameters.wrappers import is_wrapper, own_modules, unwrapped

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
READS_WEIGHTS = (nn.TransformerEncoderLayer, nn.TransformerDecoderLayer, nn.MultiheadAttention)
NO_SPARSE_CONVOLUTION = "PyTorch has no sparse convolution for the CPU: a zero costs as much as any weight"


@dataclass(frozen=True)
class LinearRow:
    """One layer with a matrix of weights.

    Attributes:
        name: of the module.
        kind: class of the module.
        shape: of its weight.
        sparsity: fraction of zeros in its weight.
        batch: rows it was given by the example input; None when it was not measured.
        ratio: dense time over sparse time; None when it was not measured.
        replaced: whether it is a CsrLinear now.
        verdict: why, in one sentence.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    sparsity: float
    batch: int | None
    ratio: float | None
    replaced: bool
    verdict: str


@dataclass(frozen=True)
class SparseLinearReport(Tabular):
    """What became faster and what did not.

    Attributes:
        rows: one per Linear and convolution.
        model: the whole model before and after, on the example input; None when nothing was replaced.
    """

    rows: tuple[LinearRow, ...]
    model: Comparison | None

    @property
    def replaced(self) -> int:
        """Number of layers replaced."""
        return sum(row.replaced for row in self.rows)

    def records(self) -> list[dict[str, Any]]:
        """One per layer, with the fields of `LinearRow`."""
        return [asdict(row) for row in self.rows]

    def __str__(self) -> str:
        lines = [f"{row.name} ({row.kind}, {row.sparsity:.0%} zeros): {row.verdict}" for row in self.rows]
        if self.model is None:
            return "\n".join([*lines, "nothing was replaced: nothing will be faster on this machine"])
        return "\n".join([*lines, f"whole model: {self.model.ratio:.2f} times the speed of the dense one"])


def _sparsity(weight: Tensor) -> float:
    return 1 - int(torch.count_nonzero(weight)) / max(weight.numel(), 1)


class _Watched(nn.Linear):
    """A Linear that remembers whether other code reads its weight, and how many rows it was called with."""

    weight_was_read: bool
    rows: int | None
    _inside: bool

    def __getattr__(self, name: str) -> Any:
        if name == "weight" and not self.__dict__["_inside"]:
            self.__dict__["weight_was_read"] = True
        return super().__getattr__(name)

    def forward(self, input: Tensor) -> Tensor:
        self.rows = max(self.rows or 0, input.numel() // self.in_features)
        self._inside = True
        try:
            return super().forward(input)
        finally:
            self._inside = False


@dataclass(frozen=True)
class _Use:
    """How the example used a Linear."""

    rows: int | None
    weight_was_read: bool


def _uses(model: nn.Module, positional: tuple[Any, ...], keywords: dict[str, Any]) -> tuple[Any, dict[int, _Use]]:
    """What the model gives, and how it used each plain Linear on the way; they are as before afterwards."""
    linear = [module for module in model.modules() if type(module) is nn.Linear]
    try:
        for module in linear:
            module.__dict__ |= {"weight_was_read": False, "rows": None, "_inside": False}
            module.__class__ = _Watched
        with uncompiled(model):
            out = model(*positional, **keywords)
        return out, {id(module): _Use(vars(module)["rows"], vars(module)["weight_was_read"]) for module in linear}
    finally:
        for module in linear:
            module.__class__ = nn.Linear
            for name in ("weight_was_read", "rows", "_inside"):
                module.__dict__.pop(name, None)


def _reason_against(module: nn.Linear, parents: list[nn.Module], shared: set[int], use: _Use | None) -> str:
    """Why a Linear must stay as it is; empty when it may be measured."""
    for parent in parents:
        if is_wrapper(parent):
            return f"left: {type(parent).__name__} wraps it"
        if isinstance(parent, READS_WEIGHTS):
            return f"left: {type(parent).__name__} reads its weight directly"
    if type(module) is not nn.Linear:
        return f"left: {type(module).__name__} is not a plain Linear"
    if module.weight.dtype not in DTYPES or module.weight.device.type != "cpu":
        return f"left: no sparse kernel is used for {module.weight.dtype} on {module.weight.device.type}"
    if id(module.weight) in shared:
        return "left: its weight is shared with another layer"
    if module._forward_hooks or module._forward_pre_hooks or "weight" not in module._parameters:
        return "left: it has hooks or a computed weight"
    if use is None or use.rows is None:
        return "left: the example input does not reach it"
    if use.weight_was_read:
        return "left: other code reads its weight, which a sparse layer does not hold"
    return ""


def _judge(
    model: nn.Module, uses: dict[int, _Use], min_gain: float, budget: float
) -> tuple[list[LinearRow], dict[int, CsrLinear]]:
    """A row for each layer, and the sparse layers that pay, by the identity of the dense one."""
    holders = Counter(id(parameter) for module in model.modules() for parameter in module.parameters(recurse=False))
    shared = {key for key, modules in holders.items() if modules > 1}
    rows = [
        LinearRow(
            name.removesuffix(".weight"), type(module).__name__, tuple(weight.shape), _sparsity(weight.dequantize()),
            None, None, replaced=False, verdict=f"left: {PACKED}",
        )
        for name, weight, module in packed_weights(model)
    ]  # fmt: skip
    sparse: dict[int, CsrLinear] = {}
    for name, module in own_modules(model):
        if isinstance(module, CONVOLUTIONS):
            weight = module.weight.detach()
            rows.append(
                LinearRow(
                    name, type(module).__name__, tuple(weight.shape), _sparsity(weight), None, None, replaced=False,
                    verdict=f"left: {NO_SPARSE_CONVOLUTION}",
                )
            )  # fmt: skip
        if not isinstance(module, nn.Linear):
            continue
        weight = module.weight.detach()
        batch, ratio = None, None
        use = uses.get(id(module))
        parents = [parent for parent in model.modules() if any(child is module for child in parent.children())]
        verdict = _reason_against(module, parents, shared, use)
        if not verdict:
            assert use is not None
            assert use.rows is not None
            candidate, batch = CsrLinear(module), use.rows
            ratio = compare_linear(module, candidate, batch, budget).ratio
            if ratio > min_gain:
                sparse[id(module)] = candidate
                verdict = f"replaced: {ratio:.2f} times the speed of dense at {batch} rows"
            else:
                verdict = f"left: sparse would run at {ratio:.2f} times the speed of dense at {batch} rows"
        rows.append(
            LinearRow(
                name,
                type(module).__name__,
                tuple(weight.shape),
                _sparsity(weight),
                batch,
                ratio,
                id(module) in sparse,
                verdict,
            )
        )
    return rows, sparse


def _replace(model: nn.Module, sparse: dict[int, CsrLinear]) -> nn.Module:
    """The model with the layers put in, under every name they have."""
    if id(model) in sparse:
        return sparse[id(model)]
    for parent in list(model.modules()):
        for label, child in list(parent._modules.items()):
            if id(child) in sparse:
                setattr(parent, label, sparse[id(child)])
    return model


def _replaced_copy(model: nn.Module, sparse: dict[int, CsrLinear]) -> nn.Module:
    twin = copy.deepcopy(model)
    pairs = zip(model.modules(), twin.modules(), strict=True)
    return _replace(twin, {id(other): sparse[id(one)] for one, other in pairs if id(one) in sparse})


def _agree(before: Any, after: Any) -> bool:
    pairs = zip(tree_leaves(before), tree_leaves(after), strict=True)
    for one, other in pairs:
        if isinstance(one, Tensor):
            scale = float(one.abs().max()) if one.numel() and one.is_floating_point() else 0.0
            if not torch.allclose(one, other, rtol=1e-3, atol=1e-4 * scale + 1e-6, equal_nan=True):
                return False
    return True


def to_sparse_linear(
    model: nn.Module, example_input: Any, *, min_gain: float = 1.0, inplace: bool = False, budget: float = 0.2
) -> tuple[nn.Module, SparseLinearReport]:
    """Put a `CsrLinear` where it is faster than the dense Linear, measured on this machine for each layer.

    The example input tells how many rows each layer gets; both forms are then timed in turn with the layer's own
    weights. Convolutions are left: PyTorch has no sparse kernel for them on a CPU. Layers whose weight other code reads
    (attention, transformer layers, any `layer.weight` outside the layer while the example runs), that share a weight,
    carry hooks or have no float32 / float64 weights on the CPU are left too, each with its reason. The result is for
    inference.

    Args:
        model: any module, pruned; the network inside wrappers is taken.
        example_input: a tensor, a tuple of arguments or a mapping of named ones, with the batch size that matters to you.
        min_gain: a layer is replaced when dense time / sparse time is above it. Default 1.
        inplace: change `model` itself instead of a copy. A model that is itself one Linear is returned anew.
        budget: seconds to spend on each measurement.

    Returns:
        The model in evaluation mode, and a report with a row for each layer.

    Raises:
        ValueError: `min_gain` is not positive, or a parameter is lazy or on the meta device.
        RuntimeError: the model with sparse layers does not agree with the dense one; `model` is then unchanged.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(1, 1, 1), nn.Flatten(), nn.Linear(512, 512))
        >>> with torch.no_grad():
        ...     _ = net[2].weight.masked_fill_(torch.rand(512, 512) < 0.999, 0.0)
        >>> fast, report = to_sparse_linear(net, torch.randn(64, 1, 16, 32), budget=0.02)
        >>> [(row.name, row.kind, row.replaced) for row in report.rows if row.kind == "Conv2d"]
        [('0', 'Conv2d', False)]
        >>> report.rows[1].replaced == (report.rows[1].ratio > 1)
        True
    """
    positive("min_gain", min_gain)
    model = unwrapped(model)
    check_ready(model)
    positional, keywords = arguments(example_input)
    with untouched(model), torch.no_grad():
        expected, uses = _uses(model, positional, keywords)
        rows, sparse = _judge(model, uses, min_gain, budget)
        if not sparse:
            return (model if inplace else copy.deepcopy(model)).eval(), SparseLinearReport(tuple(rows), None)
        trial = _replaced_copy(model, sparse).eval()
        if not _agree(expected, trial(*positional, **keywords)):
            raise RuntimeError("the model with sparse layers does not agree with the dense one on the example input")
        whole = compare_twice(lambda: model(*positional, **keywords), lambda: trial(*positional, **keywords), budget)
    result = _replace(model, sparse).eval() if inplace else trial
    return result, SparseLinearReport(tuple(rows), whole)
