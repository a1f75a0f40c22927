"""The tables to copy: results over seeds, and the training runs."""

from __future__ import annotations

from trimtab.report.parts import STATES, Cell, Section, Table, bytes_text, percent, spread, state_of
from trimtab.report.weights.study import Study
from trimtab.studies.statistics import (
    Entry,
    Field,
    fine_tuned_rows,
    main_rows,
    sparsity_label,
    table,
)

EXTRA: dict[Field, str] = {"top5": "top-5, %", "iou": "IoU, %"}
EMPTY = Cell("", None)


def _percent(value: float | None) -> Cell:
    return EMPTY if value is None else Cell(percent(value, 2), round(100 * value, 6))


def results_section(study: Study) -> Section:
    """Every operating point over its seeds, controls too."""
    extra: list[Field] = [f for f in EXTRA if any(getattr(row, f) is not None for row in study.rows)]
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
            *map(_percent, (entry.mean, entry.std, entry.low, entry.high)),
            EMPTY if dense is None else Cell(spread(dense, signed=True, digits=2), round(100 * dense.mean, 6)),
        ]  # fmt: skip
        for field in extra:
            other = more[field].get(_key(entry))
            cells.append(_percent(None if other is None else other.mean))
        if filed:
            cells.append(EMPTY if row is None else Cell(bytes_text(row.file_bytes or 0), row.file_bytes))
            ratio = None if row is None else row.multiply_adds_ratio
            cells.append(EMPTY if ratio is None else Cell(f"{ratio:.2f}x", round(ratio, 4)))
        rows.append(cells)
    head = ["method", "pruned by", "state", "sparsity", "seeds", "mean, %", "std", "low", "high", "to dense, points"]
    head += [EXTRA[field] for field in extra]
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
            _percent(run.validation_accuracy),
            Cell(run.folder),
        ]
        for run in study.summary.runs
    ]  # fmt: skip
    head = [
        "method", "seed", "epochs", "steps", "training, s", "median step, ms", "training loss", "validation, %", "folder",
    ]  # fmt: skip
    return Section("runs", title, tables=[Table("runs", "Training runs", head, rows, folded=True)])
