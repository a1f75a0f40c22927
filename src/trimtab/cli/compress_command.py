"""`trimtab compress`: a finished run as a file of few bytes."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import safetensors
import safetensors.torch
import tyro
from rich.table import Table

from trimtab import deploy
from trimtab.checks import below_one, non_negative, whole
from trimtab.cli.arguments import Output, parse
from trimtab.cli.console import console, errors, print_json
from trimtab.cli.dry_run import Part, show_parts, timed
from trimtab.cli.measured_run import MeasuredRun
from trimtab.deploy import compact_search
from trimtab.deploy.compact_job import job_of
from trimtab.deploy.compact_quantise import KEPT_BITS
from trimtab.deploy.store_format import COMPACT_KEY, METADATA_KEY
from trimtab.runs.metric import METRICS, Metric
from trimtab.runs.run_folder import RunFolder
from trimtab.studies.variants import safe_name

UNITS = {"": 1, "b": 1, "kb": 1000, "mb": 1000**2, "gb": 1000**3, "kib": 1024, "mib": 1024**2, "gib": 1024**3}


@dataclass(frozen=True)
class CompressArguments:
    """Prunes, quantises and entropy-codes a copy of a finished run's network into one small file; zeros and bits of
    each weight are chosen by what they cost the loss.

    Examples:
        trimtab compress runs/digits/sgd/seed0 --budget 10kB
        trimtab compress runs/digits/sgd/seed0 --max-drop 0.5
        trimtab compress network.safetensors --bits 4 --sparsity 0.8
    """

    source: tyro.conf.Positional[Path]
    """A finished run folder, or a safetensors file of weights (plain or sparse; no data to measure on, then)."""
    budget: str | None = None
    """Largest size of the file: bytes, or with kB, MB, KiB, MiB."""
    max_drop: float | None = None
    """Most that the accuracy may fall, in percentage points, or the bits per byte of a text may rise; default 1 point or
    0.02 bits where nothing else is asked."""
    bits: tuple[int, ...] = ()
    """Bits that a weight may get, 1 to 16; default 2 to 8. One: for all weights."""
    sparsity: tuple[float, ...] = ()
    """Sparsities that a weight may get; default 0 to 0.98. One: for all weights."""
    kept_bits: int = KEPT_BITS
    """Significant bits of biases, norms and BatchNorm's statistics; 24 keeps float32 as it is."""
    recalibrate: bool = True
    """Re-estimate BatchNorm statistics on training images."""
    out: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = None
    """The file; default RUN/export/NAME-compact.safetensors, and NAME-compact.safetensors beside a file."""
    root: str | None = None
    """Where the data lie, if not where the recipe says."""
    dry_run: bool = False
    """Say what would be measured and what it would cost here, and stop."""
    output: Annotated[Output, tyro.conf.arg(name="")] = Output()


def byte_count(text: str) -> int:
    """Bytes of a size such as 100kB.

    Raises:
        ValueError: no such size.

    Example:
        >>> byte_count("100kB"), byte_count("1.5 MiB"), byte_count("4096")
        (100000, 1572864, 4096)
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-z]*)", text.strip().lower())
    if found is None or found[2] not in UNITS or float(found[1]) * UNITS[found[2]] < 1:
        raise ValueError(f"--budget must be a size such as 100kB, 1.5MB or 4096 (bytes), got {text!r}")
    return int(float(found[1]) * UNITS[found[2]])


def _state_of(file: Path) -> dict[str, Any]:
    """The tensors of a plain or sparse safetensors file."""
    try:
        with safetensors.safe_open(file, framework="pt") as opened:
            keys = opened.metadata() or {}
    except safetensors.SafetensorError as error:
        raise ValueError(f"{file} is no run folder and no safetensors file ({error})") from error
    if COMPACT_KEY in keys:
        raise ValueError(f"{file} is a compact file already; compress the network that it was made from")
    return deploy.load_sparse(file) if METADATA_KEY in keys else safetensors.torch.load_file(file)


def _settings(given: CompressArguments, metric: Metric = METRICS["accuracy"]) -> dict[str, Any]:
    """What is asked of `save_compact`."""
    budget = None if given.budget is None else byte_count(given.budget)
    drop, fixed = given.max_drop, bool(given.bits) and len(given.bits) == 1 and len(given.sparsity) <= 1
    fixed = fixed or (len(given.sparsity) == 1 and not given.bits)
    if budget is None and drop is None and not fixed:
        drop = metric.scale * metric.costly
    searched = budget is not None or drop is not None
    bits: Any = (given.bits if searched else given.bits[0]) if given.bits else None
    sparsity: Any = (given.sparsity if searched else given.sparsity[0]) if given.sparsity else None
    return {
        "budget_bytes": budget, "max_drop": drop, "bits": bits, "sparsity": sparsity, "kept_bits": given.kept_bits,
    }  # fmt: skip


def _check_numbers(given: CompressArguments) -> None:
    """What can be refused before any data is read.

    Raises:
        ValueError: bits, sparsities, a drop or a budget out of range.
    """
    for bits in given.bits:
        whole("--bits", bits, 1, 16)
    for sparsity in given.sparsity:
        below_one("--sparsity", sparsity)
    if given.max_drop is not None:
        non_negative("--max-drop", given.max_drop)
    if given.budget is not None:
        byte_count(given.budget)


def _out(given: CompressArguments) -> Path:
    """Where the file goes.

    Raises:
        ValueError: onto the network itself, or where a folder is.
    """
    out = _place(given)
    if out.is_dir():
        raise ValueError(f"--out {out} is a folder; name a file in it")
    taken = given.source if given.source.is_file() else RunFolder(given.source).model_file
    if out.resolve() == taken.resolve():
        raise ValueError(
            f"--out {out} is the network itself, which a compact file does not replace; choose another name"
        )
    return out


def _place(given: CompressArguments) -> Path:
    """As asked for, or the default."""
    if given.out is not None:
        return given.out
    if given.source.is_file():
        return given.source.with_name(f"{given.source.stem}-compact.safetensors")
    recipe = RunFolder(given.source).recipe
    return given.source / "export" / f"{recipe.name}-{safe_name(recipe.method)}-compact.safetensors"


def _compressed_file(given: CompressArguments) -> tuple[deploy.CompactReport, dict[str, Any]]:
    """Of a file: without data."""
    file, settings = given.source, _settings(given)
    if given.max_drop is not None:
        raise ValueError(f"--max-drop needs a run folder, whose data say what drops; {file} is a file: give --budget")
    if settings["max_drop"] is not None:
        raise ValueError(
            f"{file} is a file, so nothing can be measured: give --budget, or one of --bits and --sparsity"
        )
    out, state = _out(given), _state_of(file)
    return deploy.save_compact(state, out, **settings), {}


def _compressed_run(given: CompressArguments) -> tuple[deploy.CompactReport, dict[str, Any]]:
    """Of a run, and its quality on the test split as it is written before and after."""
    out, measured = _out(given), MeasuredRun(RunFolder(given.source), given.root)
    settings = _settings(given, measured.metric)
    recipe = measured.recipe
    searched = settings["budget_bytes"] is not None or settings["max_drop"] is not None
    if searched and not given.output.silent:
        errors.print(f"  the loss of {measured.recipe.name} at several bits and sparsities of each weight")
    before = measured.test(measured.model)
    report = deploy.save_compact(
        measured.model,
        out,
        **settings,
        loss=measured.loss,
        quality=measured.quality,
        prepare=measured.recalibrate if given.recalibrate else None,
        metadata={"recipe": recipe.name, "method": recipe.method},
    )
    deploy.load_compact(report.path, measured.model)
    return report, {"metric": measured.metric.name, "before": before, "after": measured.test(measured.model)}


def _in_words(test: dict[str, Any], report: deploy.CompactReport) -> str:
    """What the file keeps of the quality on the test split."""
    metric, before, after = METRICS[test["metric"]], test["before"], test["after"]
    sizes = f"{report.compact_bytes:,} bytes of {report.dense_bytes:,}"
    told = " -> ".join(f"{value:.{metric.decimals + 1}f}{metric.sign}" for value in (before, after))
    kept = (
        f"{after - before:+.{metric.decimals + 1}f}"
        if metric.lower
        else f"{after / before if before else 1.0:.1%} of it"
    )
    return f"test {metric.word} {told}: {kept} in {sizes}"


def _show_cost(given: CompressArguments) -> int:
    """How often the network is measured, timed once each; quantising and writing are not counted."""
    out = _out(given)
    if given.source.is_file():
        return show_parts([Part("choice by squared error; nothing is measured", 1, 0.0)], out, given.output)
    measured = MeasuredRun(RunFolder(given.source), given.root)
    settings = _settings(given, measured.metric)
    weights = len(job_of(measured.model).axes)
    ready = timed(lambda: measured.recalibrate(measured.model), 1) if given.recalibrate else 0.0
    searched = settings["budget_bytes"] is not None or settings["max_drop"] is not None
    by_drop = settings["max_drop"] is not None
    parts = [
        Part(
            f"{measured.metric.word} on the {measured.split} split",
            2 + (compact_search.looks(by_drop=by_drop, free=not given.sparsity) if searched else 0),
            ready + timed(lambda: measured.quality(measured.model)),
        ),
        Part(f"{measured.metric.word} on the test split", 2, timed(lambda: measured.test(measured.model))),
    ]
    if searched:
        rounds = len(compact_search.HALVINGS) - 1 if by_drop else compact_search.ROUNDS
        what = f"loss on {len(measured.drawn.validation):,} training images, {rounds} for each of {weights} weights"
        times = rounds * (1 + weights) + (not by_drop)
        parts.insert(0, Part(what, times, ready + timed(lambda: measured.loss(measured.model))))
    return show_parts(parts, out, given.output)


def run(arguments: Sequence[str]) -> int:
    """Parse, choose, write."""
    given = parse(CompressArguments, arguments, "compress")
    if not given.source.exists():
        raise ValueError(f"{given.source} is not there: give a finished run folder or a safetensors file")
    _check_numbers(given)
    if given.dry_run:
        return _show_cost(given)
    report, test = (_compressed_file if given.source.is_file() else _compressed_run)(given)
    if given.output.json:
        fields = dataclasses.asdict(report) | {"path": str(report.path), "ratio": report.ratio, "test": test}
        print_json(fields)
        return 0
    table = Table(title=f"{report.compact_bytes:,} bytes of {report.dense_bytes:,}")
    table.add_column("weight", overflow="fold")
    for column in ("bits", "zeros", "bytes", "lost"):
        table.add_column(column, justify="right")
    for row in report.rows:
        size = row.code_bytes + row.scale_bytes
        table.add_row(row.name, str(row.bits), f"{row.sparsity:.1%}", f"{size:,.0f}", f"{row.squared_error:.2%}")
    console.print(table)
    if test:
        console.print(_in_words(test, report), soft_wrap=True)
    console.print(str(report), soft_wrap=True, markup=False)
    console.print(
        f"kept in {report.path}; read it: trimtab.deploy.load_compact, or trimtab export --to reader", soft_wrap=True
    )
    return 0
