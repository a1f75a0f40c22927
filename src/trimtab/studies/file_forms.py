"""One network as files of several forms: how many bytes each takes, and what the network in it is worth."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from trimtab.deploy import load_compact, save_compact
from trimtab.runs.evaluation import Quality
from trimtab.runs.metric import Metric
from trimtab.studies.documents import finite
from trimtab.studies.sizes import bytes_text
from trimtab.studies.statistics import Estimate, estimate, sparsity_label
from trimtab.studies.summary import FileRow, Form, Summary


@dataclass(frozen=True)
class Measuring:
    """How a network of the run is measured here.

    Attributes:
        quality: of a network on the split.
        prepare: re-estimates its BatchNorm statistics; None where it has none.
        method, seed, split: of the rows.
        scratch: a folder for files.
    """

    quality: Callable[[nn.Module], Quality]
    prepare: Callable[[nn.Module], object] | None
    method: str
    seed: int
    split: Literal["validation", "test"]
    scratch: Path

    def row(self, form: Form, sparsity: float, size: int, quality: Quality, bits: int | None = None) -> FileRow:
        """One file."""
        return FileRow(
            method=self.method, seed=self.seed, split=self.split, form=form, sparsity=sparsity, bits=bits, bytes=size,
            accuracy=quality.accuracy, bits_per_byte=finite(quality.bits_per_byte),
        )  # fmt: skip


def compact_rows(model: nn.Module, sparsity: float, bits: Sequence[int], measuring: Measuring) -> list[FileRow]:
    """The network, which may be pruned, as compact files of so many bits; it is left as it is."""
    rows = []
    for each in bits:
        path = measuring.scratch / "compact.safetensors"
        report = save_compact(model, path, bits=each, prepare=measuring.prepare)
        read = copy.deepcopy(model)
        load_compact(path, read)
        rows.append(measuring.row("compact", sparsity, report.compact_bytes, measuring.quality(read), each))
    return rows


@torch.no_grad()
def dense_rows(model: nn.Module, dense: Quality, dense_bytes: int, measuring: Measuring) -> list[FileRow]:
    """The dense network as it is, and with its weights in bfloat16: half the bytes of them."""
    halved = copy.deepcopy(model)
    saved = 0
    for parameter in halved.parameters():
        if parameter.dtype == torch.float32:
            parameter.copy_(parameter.bfloat16())
            saved += 2 * parameter.numel()
    rows = [measuring.row("fp32", 0.0, dense_bytes, dense)]
    if saved:
        rows.append(measuring.row("bf16", 0.0, dense_bytes - saved, measuring.quality(halved), 16))
    return rows


@dataclass(frozen=True)
class Place:
    """One method in one form, over seeds.

    Attributes:
        method, form, sparsity, bits: as of the rows.
        size: mean bytes.
        quality: in the metric.
    """

    method: str
    form: Form
    sparsity: float
    bits: int | None
    size: float
    quality: Estimate

    @property
    def words(self) -> str:
        """Its form in a few words.

        Example:
            >>> Place("sgd", "compact", 0.9, 4, 100.0, estimate([0.5])).words
            '90 % zeros, 4 bits, entropy-coded'
        """
        if self.form != "compact":
            zeros = f"{sparsity_label(self.sparsity)} zeros, float32"
            return {"fp32": "dense, float32", "bf16": "dense, bfloat16", "sparse": zeros}[self.form]
        pruned = "" if self.sparsity == 0 else f"{sparsity_label(self.sparsity)} zeros, "
        return f"{pruned}{self.bits} bits, entropy-coded"


def places(summary: Summary) -> list[Place]:
    """The files of a study over its seeds, in order of first appearance; on the test split where there is any."""
    split = "test" if any(row.split == "test" for row in summary.files) else "validation"
    groups: dict[tuple[str, Form, float, int | None], list[FileRow]] = {}
    for row in summary.files:
        if row.split == split and getattr(row, summary.measure.column) is not None:
            groups.setdefault((row.method, row.form, round(row.sparsity, 4), row.bits), []).append(row)
    return [
        Place(
            *key, sum(row.bytes for row in rows) / len(rows),
            estimate(getattr(row, summary.measure.column) for row in rows),
        )
        for key, rows in groups.items()
    ]  # fmt: skip


def frontier(found: Sequence[Place], metric: Metric) -> list[Place]:
    """Those that no other of fewer or as many bytes beats, from the smallest."""
    kept: list[Place] = []
    for one in sorted(found, key=lambda one: (one.size, -metric.gain(one.quality.mean))):
        if not kept or metric.gain(one.quality.mean - kept[-1].quality.mean) > 0:
            kept.append(one)
    return kept


def smallest(found: Sequence[Place], baseline: str, metric: Metric) -> tuple[Place, Place] | None:
    """The smallest file of any method whose mean stays within the metric's margin of the baseline's dense network, and that."""
    dense = next((one for one in found if (one.method, one.form) == (baseline, "fp32")), None)
    if dense is None:
        return None
    holding = [one for one in found if metric.gain(one.quality.mean - dense.quality.mean) >= -metric.margin]
    best = min(holding, key=lambda one: one.size)
    return None if best.size >= dense.size else (best, dense)


def files_headline(found: Sequence[Place], baseline: str, metric: Metric) -> str:
    """What the smallest file keeps, in one sentence; empty where no file was measured or none is smaller.

    Args:
        found: as `places` gives them.
        baseline: whose dense network is held.
        metric: what the qualities are.
    """
    pair = smallest(found, baseline, metric)
    if pair is None:
        return ""
    best, dense = pair
    sizes = f"{bytes_text(best.size)} of {bytes_text(dense.size)}"
    if metric.lower:
        rise = metric.change(best.quality.mean - dense.quality.mean)
        kept = f"{metric.phrase(best.quality.mean)} ({rise} to {baseline}'s dense network)"
    else:
        kept = f"{best.quality.mean / dense.quality.mean:.1%} of {baseline}'s dense {metric.word}".replace("%", " %", 1)
    return f"{kept} in {sizes}: {best.method}, {best.words} ({best.quality.n} seed{'s' * (best.quality.n > 1)})"
