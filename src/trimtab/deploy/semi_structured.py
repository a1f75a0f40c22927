"""2:4 weights for sparse tensor cores: the layout checked anywhere, the kernels on an NVIDIA GPU."""

from __future__ import annotations

import copy
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from trimtab.deploy.timing import Comparison, compare_twice
from trimtab.frames import Tabular
from trimtab.observe.untouched import untouched
from trimtab.parameters import entries
from trimtab.parameters.arguments import arguments
from trimtab.parameters.kinds import check_ready
from trimtab.parameters.wrappers import own_modules, unwrapped

DTYPES = (torch.float16, torch.bfloat16)
ROWS, COLUMNS = 32, 64
"""A weight's sides must be multiples of these: what both of PyTorch's kernels take of halves."""
CAPABILITY = (8, 0)
"""Least compute capability with sparse tensor cores (Ampere)."""


@dataclass(frozen=True)
class SemiStructuredRow:
    """One linear layer: name, shape, whether its weight fits, or why not (empty where it does)."""

    name: str
    shape: tuple[int, ...]
    fits: bool
    reason: str


@dataclass(frozen=True)
class SemiStructuredReport(Tabular):
    """What was converted.

    Attributes:
        rows: one for each linear layer.
        model: the whole model before and after on the example input; None where none was given.
    """

    rows: tuple[SemiStructuredRow, ...]
    model: Comparison | None = None

    @property
    def converted(self) -> int:
        """How many layers have the sparse form."""
        return sum(row.fits for row in self.rows)

    def records(self) -> list[dict[str, Any]]:
        """One for each layer."""
        return [asdict(row) for row in self.rows]

    def _title(self) -> str:
        return f"{self.converted} of {len(self.rows)} layers in 2:4"


def layout_reason(weight: Tensor) -> str:
    """Why a weight (outputs, inputs) is not of the 2:4 layout, empty where it is: at most two non-zeros of every four inputs.

    Example:
        >>> layout_reason(torch.tensor([[1.0, 0.0, 2.0, 0.0]])), layout_reason(torch.tensor([[1.0, 3.0, 2.0, 0.0]]))
        ('', '1 of 1 groups of four inputs hold more than two non-zeros')
    """
    if weight.ndim != 2 or weight.shape[1] % 4:
        return f"shape {tuple(weight.shape)}: a matrix with a multiple of four inputs is needed"
    groups = (weight.detach() != 0).reshape(-1, 4).sum(1)
    wrong = int((groups > 2).sum())
    return f"{wrong:,} of {len(groups):,} groups of four inputs hold more than two non-zeros" if wrong else ""


def _reason(module: nn.Linear, shared: set[int]) -> str:
    weight = module.weight
    if type(module) is not nn.Linear:
        return f"{type(module).__name__} has a forward of its own"
    if id(weight) in shared:
        return "its weight is shared with another module"
    if reason := layout_reason(weight):
        return reason
    if weight.dtype not in DTYPES:
        return f"dtype {weight.dtype}: the kernels take float16 and bfloat16"
    if weight.shape[0] % ROWS or weight.shape[1] % COLUMNS:
        return f"shape {tuple(weight.shape)}: the kernels take multiples of ({ROWS}, {COLUMNS})"
    return ""


def check_semi_structured(model: nn.Module) -> SemiStructuredReport:
    """Say of each linear layer whether its weight can go to PyTorch's 2:4 kernels; on any device, nothing is changed.

    Example:
        >>> from trimtab.pruning import one_shot
        >>> net = nn.Sequential(nn.Linear(64, 32), nn.Linear(32, 32)).bfloat16()
        >>> _ = one_shot(net[0], pattern="2:4")
        >>> [(row.name, row.fits, row.reason) for row in check_semi_structured(net).rows]
        [('0', True, ''), ('1', False, '256 of 256 groups of four inputs hold more than two non-zeros')]
    """
    inner = unwrapped(model)
    check_ready(inner)
    shared = {id(entry.parameter) for entry in entries(inner) if entry.aliases or len(entry.owners) > 1}
    rows = [
        SemiStructuredRow(name, tuple(module.weight.shape), not (reason := _reason(module, shared)), reason)
        for name, module in own_modules(inner)
        if isinstance(module, nn.Linear)
    ]
    return SemiStructuredReport(tuple(rows))


def to_semi_structured(
    model: nn.Module, example_input: Any = None, *, inplace: bool = False, budget: float = 0.2
) -> tuple[nn.Module, SemiStructuredReport]:
    """Put `torch.sparse.to_sparse_semi_structured` weights where a linear layer's weight is 2:4, for inference on a GPU.

    Args:
        model: pruned with `pattern="2:4"`, in float16 or bfloat16, on an NVIDIA GPU of compute capability 8.0 or newer.
        example_input: a tensor, a tuple of arguments or a mapping of named ones: the converted model is held against the
            dense one on it, and both are timed.
        inplace: change `model` itself instead of a copy.
        budget: seconds for timing.

    Returns:
        The model in evaluation mode, and a row for each linear layer: converted, or why it was left dense.

    Raises:
        ValueError: not on such a GPU, or no layer fits (the first reasons are named). Nothing is changed.
        RuntimeError: the converted model does not agree with the dense one.

    Reference:
        torch.sparse.to_sparse_semi_structured.
    """
    inner = unwrapped(model)
    report = check_semi_structured(inner)
    if not report.converted:
        reasons = "; ".join(f"{row.name}: {row.reason}" for row in report.rows[:5]) or "no linear layer"
        raise ValueError(
            f"{type(inner).__name__} has no layer for the 2:4 kernels ({reasons}); prune with pattern='2:4'"
        )
    device = next(inner.parameters()).device
    if device.type != "cuda" or torch.version.hip or torch.cuda.get_device_capability(device) < CAPABILITY:
        raise ValueError(
            f"PyTorch's 2:4 kernels run on NVIDIA GPUs of compute capability {CAPABILITY[0]}.{CAPABILITY[1]} or newer "
            f"alone, and the model is on {device}: on this machine 2:4 saves bytes and no time"
        )
    twin = copy.deepcopy(inner).eval()
    _convert(twin, report)
    whole: Comparison | None = None
    if example_input is not None:
        positional, keywords = arguments(example_input)
        with untouched(inner), torch.no_grad():
            _check_agreement(inner(*positional, **keywords), twin(*positional, **keywords))

            def timed(network: nn.Module) -> None:
                network(*positional, **keywords)
                torch.cuda.synchronize(device)

            whole = compare_twice(lambda: timed(inner), lambda: timed(twin), budget)
    if inplace:
        _convert(inner.eval(), report)
    return (inner if inplace else twin), SemiStructuredReport(report.rows, whole)


def _convert(model: nn.Module, report: SemiStructuredReport) -> None:
    modules = dict(own_modules(model))
    for row in report.rows:
        if row.fits:
            module = modules[row.name]
            assert isinstance(module, nn.Linear)
            sparse = torch.sparse.to_sparse_semi_structured(module.weight.detach().contiguous())
            module.weight = nn.Parameter(sparse, requires_grad=False)


def _check_agreement(expected: Any, found: Any) -> None:
    """Equal up to the rounding of halves: sums run in another order."""
    for one, other in zip(tree_leaves(expected), tree_leaves(found), strict=True):
        if isinstance(one, Tensor) and one.is_floating_point():
            scale = float(one.abs().max()) if one.numel() else 0.0
            gap = float((one.float() - other.float()).abs().max()) if one.numel() else 0.0
            if not gap <= 2e-2 * scale + 1e-3:
                raise RuntimeError(
                    f"the 2:4 kernels and the dense model differ by {gap:.3g} of {scale:.3g} on the example input"
                )
