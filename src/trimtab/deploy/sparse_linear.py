"""Replace the Linear layers that this machine runs faster as sparse ones, and say why the others are left."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from trimtab.deploy.csr_linear import DTYPES, CsrLinear
from trimtab.deploy.latency import compare_linear
from trimtab.deploy.timing import Comparison, compare_twice
from trimtab.observe.untouched import untouched

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
class SparseLinearReport:
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

    def __str__(self) -> str:
        lines = [f"{row.name} ({row.kind}, {row.sparsity:.0%} zeros): {row.verdict}" for row in self.rows]
        if self.model is None:
            return "\n".join([*lines, "nothing was replaced: nothing will be faster on this machine"])
        return "\n".join([*lines, f"whole model: {self.model.ratio:.2f} times the speed of the dense one"])


def _sparsity(weight: Tensor) -> float:
    return 1 - int(torch.count_nonzero(weight)) / max(weight.numel(), 1)


@contextmanager
def _rows_recorded(model: nn.Module) -> Iterator[dict[str, int]]:
    """Most rows each Linear was called with."""
    seen: dict[str, int] = {}

    def recorder(name: str) -> Callable[..., None]:
        def hook(module: nn.Linear, given: tuple[Tensor, ...], out: object) -> None:
            if given:
                seen[name] = max(seen.get(name, 0), given[0].numel() // module.in_features)

        return hook

    linear = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    handles = [module.register_forward_hook(recorder(name)) for name, module in linear]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _reason_against(name: str, module: nn.Linear, model: nn.Module, shared: set[int], seen: dict[str, int]) -> str:
    """Why a Linear must stay as it is; empty when it may be measured."""
    parent = model.get_submodule(name.rpartition(".")[0]) if name else None
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
    if name not in seen:
        return "left: the example input does not reach it"
    return ""


def _arguments(example: Any) -> tuple[Any, ...]:
    return tuple(example) if isinstance(example, tuple | list) else (example,)


def _judge(
    model: nn.Module, seen: dict[str, int], min_gain: float, budget: float
) -> tuple[list[LinearRow], dict[str, CsrLinear]]:
    """A row for each layer, and the sparse layers that pay."""
    holders = Counter(id(parameter) for module in model.modules() for parameter in module.parameters(recurse=False))
    shared = {key for key, modules in holders.items() if modules > 1}
    rows: list[LinearRow] = []
    sparse: dict[str, CsrLinear] = {}
    for name, module in model.named_modules():
        if isinstance(module, CONVOLUTIONS):
            weight = module.weight.detach()
            rows.append(
                LinearRow(
                    name, type(module).__name__, tuple(weight.shape), _sparsity(weight), None, None, False,
                    f"left: {NO_SPARSE_CONVOLUTION}",
                )
            )  # fmt: skip
        if not isinstance(module, nn.Linear):
            continue
        weight = module.weight.detach()
        batch, ratio = None, None
        verdict = _reason_against(name, module, model, shared, seen)
        if not verdict:
            candidate = CsrLinear(module)
            batch = seen[name]
            ratio = compare_linear(module, candidate, batch, budget).ratio
            if ratio > min_gain:
                sparse[name] = candidate
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
                name in sparse,
                verdict,
            )
        )
    return rows, sparse


def _replace(model: nn.Module, sparse: dict[str, CsrLinear]) -> nn.Module:
    """The model with the layers put in, under every name they have."""
    by_identity = {id(model.get_submodule(name)): layer for name, layer in sparse.items()}
    if id(model) in by_identity:
        return by_identity[id(model)]
    for parent in list(model.modules()):
        for label, child in list(parent._modules.items()):
            if id(child) in by_identity:
                setattr(parent, label, by_identity[id(child)])
    return model


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
    weights. Convolutions are left: PyTorch has no sparse kernel for them on a CPU. Layers that other code reads
    directly (attention, transformer layers), share a weight, carry hooks or have no float32 / float64 weights on the CPU
    are left too, each with its reason. The result is for inference.

    Args:
        model: any module, pruned.
        example_input: a tensor or a tuple of arguments, with the batch size that matters to you.
        min_gain: a layer is replaced when dense time / sparse time is above it. Default 1.
        inplace: change `model` itself instead of a copy. A model that is itself one Linear is returned anew.
        budget: seconds to spend on each measurement.

    Returns:
        The model in evaluation mode, and a report with a row for each layer.

    Raises:
        ValueError: `min_gain` is not positive.
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
    if not min_gain > 0:
        raise ValueError(f"min_gain must be positive, got {min_gain}")
    arguments = _arguments(example_input)
    with untouched(model), torch.no_grad():
        with _rows_recorded(model) as seen:
            expected = model(*arguments)
        rows, sparse = _judge(model, seen, min_gain, budget)
        if not sparse:
            return (model if inplace else copy.deepcopy(model)).eval(), SparseLinearReport(tuple(rows), None)
        trial = _replace(copy.deepcopy(model), sparse).eval()
        if not _agree(expected, trial(*arguments)):
            raise RuntimeError("the model with sparse layers does not agree with the dense one on the example input")
        whole = compare_twice(lambda: model(*arguments), lambda: trial(*arguments), budget)
    result = _replace(model, sparse).eval() if inplace else trial
    return result, SparseLinearReport(tuple(rows), whole)
