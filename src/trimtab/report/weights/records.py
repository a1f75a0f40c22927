"""The tables to copy: results over seeds, and the training runs."""

from __future__ import annotations

from trimtab.report.parts import STATES, Cell, Section, Table, state_of
from trimtab.report.weights.study import Study
from trimtab.studies.sizes import bytes_text
from trimtab.studies.statistics import (
    Entry,
    Field,
    fine_tuned_rows,
    main_rows,
    sparsity_label,
    table,
)

EXTRA: dict[Field, tuple[str, float]] = {
    "top5": ("top-5, %", 100.0),
    "iou": ("IoU, %", 100.0),
    "accuracy": ("bytes right, %", 100.0),
    "perplexity": ("perplexity", 1.0),
}
"""More of a network than its metric, where it was measured: its heading, and what it is multiplied with."""
EMPTY = Cell("", None)


def _scaled(value: float | None, scale: float = 100.0, digits: int = 2) -> Cell:
    return EMPTY if value is None else Cell(f"{scale * value:.{digits}f}", round(scale * value, 6))


def results_section(study: Study) -> Section:
    """Every operating point over its seeds, controls too."""
    metric = study.metric
    extra: list[Field] = [
        field
        for field in EXTRA
        if (field != "accuracy" or metric.column != "accuracy")
        and any(getattr(row, field) is not None for row in study.rows)
    ]
    every = [*study.rows, *fine_tuned_rows(study.summary.rows)]
    more = {field: {_key(entry): entry for entry in table(every, field=field)} for field in extra}
    filed = {
        (row.method, round(row.sparsity, 6)): row for row in main_rows(study.summary.rows) if row.file_bytes is not None
    }
    kept = {(row.score, row.scope) for row in filed.values()}
    rows = []
    for entry in [*study.entries, *study.tuned]:
        row = filed.get((entry.method, entry.sparsity)) if (entry.score, entry.scope) in kept else None
        dense = entry.to_dense if entry.sparsity > 0 else None
        cells = [
            Cell(entry.method), Cell(f"{entry.score}, {entry.scope}"), Cell(_state(entry)),
            Cell(sparsity_label(entry.sparsity), entry.sparsity), Cell(str(entry.n), entry.n),
            *(
                _scaled(value, metric.scale, metric.decimals + 1)
                for value in (entry.mean, entry.std, entry.low, entry.high)
            ),
            EMPTY
            if dense is None
            else Cell(study.spread(dense, signed=True, more=1), round(metric.scale * dense.mean, 6)),
        ]  # fmt: skip
        for field in extra:
            other = more[field].get(_key(entry))
            cells.append(_scaled(None if other is None else other.mean, EXTRA[field][1]))
        if filed:
            cells.append(EMPTY if row is None else Cell(bytes_text(row.file_bytes or 0), row.file_bytes))
            ratio = None if row is None else row.multiply_adds_ratio
            cells.append(EMPTY if ratio is None else Cell(f"{ratio:.2f}x", round(ratio, 4)))
        rows.append(cells)
    head = [
        "method",
        "pruned by",
        "state",
        "sparsity",
        "seeds",
        f"mean, {metric.short}",
        "std",
        "low",
        "high",
        f"to dense, {metric.unit}",
    ]
    head += [EXTRA[field][0] for field in extra]
    head += ["file", "fewer multiply-adds"] if filed else []
    sentences = [
        "Mean, sample standard deviation and the ends of the 95 % t interval over seeds. Fewer multiply-adds is the "
        "theoretical speed-up, not a measured one."
        if filed
        else "Mean, sample standard deviation and the ends of the 95 % t interval over seeds."
    ]
    return Section(
        "results", "All results", sentences, tables=[Table("results", "Results over seeds", head, rows, folded=True)]
    )


def _key(entry: Entry) -> tuple[str, float, str, str, bool, int]:
    return entry.method, entry.sparsity, entry.score, entry.scope, entry.recalibrated, entry.finetuned


def _state(entry: Entry) -> str:
    """In which state the network was measured."""
    return (
        f"fine-tuned, {entry.finetuned} epochs"
        if entry.finetuned
        else STATES[state_of(recalibrated=entry.recalibrated)]
    )


def runs_section(study: Study) -> Section:
    """One line per training run."""
    title = "Training runs"
    if not study.summary.runs:
        return Section("runs", title, missing="The summary names no training runs.")
    rows = [
        [
            Cell(run.method), Cell(str(run.seed), run.seed), Cell(str(run.epochs), run.epochs),
            Cell(f"{run.steps:,}", run.steps),
            Cell(f"{run.train_seconds:.1f}", round(run.train_seconds, 3)),
            Cell(f"{1000 * run.step_seconds:.2f}", round(1000 * run.step_seconds, 4)),
            Cell(f"{run.train_loss:.4f}", round(run.train_loss, 6)),
            _scaled(getattr(run, f"validation_{study.metric.column}"), study.metric.scale, study.metric.decimals + 1),
            Cell(run.folder),
        ]
        for run in study.summary.runs
    ]  # fmt: skip
    head = [
        "method", "seed", "epochs", "steps", "training, s", "median step, ms", "training loss",
        f"validation, {study.metric.short}", "folder",
    ]  # fmt: skip
    return Section("runs", title, tables=[Table("runs", "Training runs", head, rows, folded=True)])
