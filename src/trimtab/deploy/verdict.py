"""The plain answer after pruning: what got smaller, what got faster, and what did not."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from trimtab.deploy.sparse_linear import CONVOLUTIONS, NO_SPARSE_CONVOLUTION, SparseLinearReport, to_sparse_linear
from trimtab.deploy.store_report import StoreReport
from trimtab.deploy.timing import interleaved
from trimtab.observe.model_summary import ModelSummary, summary
from trimtab.observe.untouched import untouched
from trimtab.parameters import PRUNABLE, select

MARGIN = 1.05


@dataclass(frozen=True)
class VerdictRow:
    """One quantity before and after pruning.

    Attributes:
        what: the quantity.
        before: with unit.
        after: with unit.
        ratio: before over after; above 1 is a gain.
        verdict: one sentence.
    """

    what: str
    before: str
    after: str
    ratio: float
    verdict: str


def _bytes(count: int) -> str:
    return f"{count / 1e6:.2f} MB" if count >= 1e5 else f"{count / 1e3:.1f} kB"


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:.3g} ms"


def _file_rows(stored: StoreReport) -> list[VerdictRow]:
    ratio = stored.ratio
    gain = f"smaller: {ratio:.1f} times" if ratio > MARGIN else "not smaller: too few zeros"
    rows = [
        VerdictRow(
            "sparse file", _bytes(stored.dense_bytes), _bytes(stored.sparse_bytes), ratio, f"The file is {gain}."
        )
    ]
    if stored.gzip_bytes is not None:
        other = stored.dense_bytes / stored.gzip_bytes
        says = f"gzip of the dense file reaches {other:.1f} times."
        rows.append(VerdictRow("gzip instead", _bytes(stored.dense_bytes), _bytes(stored.gzip_bytes), other, says))
    return rows


def _memory_row(model: nn.Module) -> VerdictRow:
    held = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    says = "Not smaller: once loaded into dense layers, a zero takes as much memory as any weight."
    return VerdictRow("weights in memory", _bytes(held), _bytes(held), 1.0, says)


def _work_row(work: ModelSummary) -> VerdictRow:
    dense, sparse = work.dense_multiply_adds, work.sparse_multiply_adds
    says = f"Fewer on paper only: {work.speed_up:.1f} times is a bound that dense kernels do not come near."
    if sparse == dense:
        says = "Not fewer: no weight that is used is zero."
    return VerdictRow("multiply-adds", f"{dense / 1e6:.2f} M", f"{sparse / 1e6:.2f} M", work.speed_up, says)


def _filled(model: nn.Module) -> nn.Module:
    """A copy in which every zero weight has a value."""
    full = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for entry in select(full, PRUNABLE).chosen:
            weight = entry.parameter
            noise = torch.randn(weight.shape, generator=generator).to(weight) * weight.std(correction=0).clamp_min(1e-3)
            weight.copy_(torch.where(weight == 0, noise, weight))
    return full


def _times(calls: Sequence[Callable[[], object]], budget: float) -> list[float]:
    """Seconds of the filled, the pruned and (where there is one) the sparse network, each one number for all rows.

    A gain of the pruned over the filled one is measured a second time, and the lesser is told.
    """
    first = interleaved(calls, budget)
    if first[0] / first[1] <= MARGIN:
        return first
    return min(first, interleaved(calls, budget), key=lambda times: times[0] / times[1])


def _dense_time_row(full: float, pruned: float, batch: str) -> VerdictRow:
    """The same kernels on the same network with and without its zeros."""
    ratio = full / pruned
    if ratio > 1.1:
        says = f"Measured {ratio:.2f} times, though dense kernels do not skip zeros: measure again on a quiet machine."
    else:
        says = "Not faster: dense kernels, convolutions among them, do not skip zeros."
    return VerdictRow(f"time{batch}, dense layers", _milliseconds(full), _milliseconds(pruned), ratio, says)


def _sparse_time_row(
    model: nn.Module, report: SparseLinearReport, pruned: float, sparse: float | None, batch: str
) -> VerdictRow:
    measured = [row for row in report.rows if row.ratio is not None]
    convolutions = any(isinstance(module, CONVOLUTIONS) for module in model.modules())
    left = f" Convolutions are left: {NO_SPARSE_CONVOLUTION}." if convolutions else ""
    what = f"time{batch}, sparse Linear"
    if sparse is None:
        best = max((row.ratio or 0.0 for row in measured), default=None)
        why = (
            "there is no Linear layer to replace" if best is None else f"the best Linear reaches {best:.2f} times dense"
        )
        return VerdictRow(what, "-", "-", 1.0, f"Nothing gets faster: {why}.{left}")
    ratio = pruned / sparse
    layers = f"{report.replaced} of {len(measured)} Linear layers run faster as sparse"
    gain = f"the whole model at {ratio:.2f} times" if ratio > MARGIN else "the whole model does not gain"
    return VerdictRow(what, _milliseconds(pruned), _milliseconds(sparse), ratio, f"{layers}, {gain}.{left}")


def verdict(
    model: nn.Module,
    example_input: Any,
    *,
    stored: StoreReport | None = None,
    work: ModelSummary | None = None,
    budget: float = 0.5,
) -> list[VerdictRow]:
    """Measure a pruned network on this machine and say what its zeros are good for.

    Rows: size of the sparse file and of gzip (when `stored` has them), memory of the weights, multiply-adds, time with
    dense layers (against the same network with its zeros filled), time with sparse Linear layers where they pay.

    Args:
        model: the pruned network; left as it is.
        example_input: a tensor or a tuple of arguments with the batch size that matters.
        stored: what `save_sparse` returned.
        work: what `summary` returned; counted on the example input when not given.
        budget: seconds for each time measured.

    Example:
        >>> net = nn.Linear(64, 64)
        >>> rows = verdict(net, torch.zeros(1, 64), budget=0.01)
        >>> [row.what for row in rows]
        ['weights in memory', 'multiply-adds', 'time at batch 1, dense layers', 'time at batch 1, sparse Linear']
        >>> rows[1].verdict
        'Not fewer: no weight that is used is zero.'
    """
    arguments = tuple(example_input) if isinstance(example_input, tuple | list) else (example_input,)
    first = arguments[0] if arguments else None
    batch = f" at batch {len(first)}" if isinstance(first, torch.Tensor) and first.ndim else ""
    rows = _file_rows(stored) if stored is not None else []
    rows.append(_memory_row(model))
    rows.append(_work_row(work if work is not None and work.ran else summary(model, arguments)))
    full = _filled(model)
    sparse, report = to_sparse_linear(model, tuple(arguments), budget=budget)
    networks = [full, model] if report.model is None else [full, model, sparse]
    with ExitStack() as kept, torch.no_grad():
        for network in networks:
            kept.enter_context(untouched(network))
        times = _times([lambda network=network: network(*arguments) for network in networks], budget)  # type: ignore[misc]
    rows.append(_dense_time_row(times[0], times[1], batch))
    rows.append(_sparse_time_row(model, report, times[1], times[2] if len(times) == 3 else None, batch))
    return rows
