"""The tables to copy: results over seeds, and the training runs."""

from __future__ import annotations

from trimtab.experiments.statistics import Entry, Field, main_rows, sparsity_label, table
from trimtab.report.parts import STATES, Cell, Section, Table, bytes_text, percent, spread, state_of
from trimtab.report.study import Study


def _optional(value: float | None, text: str) -> Cell:
    return Cell("", None) if value is None else Cell(text, round(value, 6))


def results_section(study: Study) -> Section:
    """Every operating point over its seeds, controls too."""
    extra: list[Field] = [f for f in ("top5", "iou") if any(getattr(row, f) is not None for row in study.rows)]  # type: ignore[misc]
    more = {field: {_key(entry): entry for entry in table(study.rows, field=field)} for field in extra}
    filed = {
        (row.method, round(row.sparsity, 6)): row for row in main_rows(study.summary.rows) if row.file_bytes is not None
    }
    kept = {(row.score, row.scope) for row in filed.values()}
    rows = []
    for entry in study.entries:
        row = filed.get((entry.method, entry.sparsity)) if (entry.score, entry.scope) in kept else None
        dense = entry.to_dense if entry.sparsity > 0 else None
        cells = [
            Cell(entry.method), Cell(f"{entry.score}, {entry.scope}"), Cell(STATES[state_of(entry.recalibrated)]),
            Cell(sparsity_label(entry.sparsity), entry.sparsity), Cell(str(entry.n), entry.n),
            Cell(percent(entry.mean, 2), round(100 * entry.mean, 6)),
            _optional(entry.std, percent(entry.std or 0, 2)) if entry.std is None else Cell(percent(entry.std, 2), round(100 * entry.std, 6)),
            Cell("", None) if entry.low is None else Cell(percent(entry.low, 2), round(100 * entry.low, 6)),
            Cell("", None) if entry.high is None else Cell(percent(entry.high, 2), round(100 * entry.high, 6)),
            Cell("", None) if dense is None else Cell(spread(dense, signed=True, digits=2), round(100 * dense.mean, 6)),
        ]  # fmt: skip
        for field in extra:
            other = more[field].get(_key(entry))
            cells.append(Cell("", None) if other is None else Cell(percent(other.mean, 2), round(100 * other.mean, 6)))
        if filed:
            cells.append(Cell("", None) if row is None else Cell(bytes_text(row.file_bytes or 0), row.file_bytes))
            ratio = None if row is None else row.multiply_adds_ratio
            cells.append(_optional(ratio, f"{ratio or 0:.2f}x"))
        rows.append(cells)
    head = ["method", "pruned by", "state", "sparsity", "seeds", "mean, %", "std", "low", "high", "to dense, points"]
    head += [{"top5": "top-5, %", "iou": "IoU, %"}[field] for field in extra]
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


def _key(entry: Entry) -> tuple[str, float, str, str, bool]:
    return entry.method, entry.sparsity, entry.score, entry.scope, entry.recalibrated


def runs_section(study: Study) -> Section:
    """One line per training run."""
    title = "Training runs"
    if not study.summary.runs:
        return Section("runs", title, missing="The summary names no training runs.")
    rows = [
        [
            Cell(run.method), Cell(str(run.seed), run.seed), Cell(str(run.epochs), run.epochs), Cell(f"{run.steps:,}", run.steps),
            Cell(f"{run.train_seconds:.1f}", round(run.train_seconds, 3)),
            Cell(f"{1000 * run.step_seconds:.2f}", round(1000 * run.step_seconds, 4)),
            Cell(f"{run.train_loss:.4f}", round(run.train_loss, 6)),
            Cell("", None)
            if run.validation_accuracy is None
            else Cell(percent(run.validation_accuracy, 2), round(100 * run.validation_accuracy, 6)),
            Cell(run.folder),
        ]
        for run in study.summary.runs
    ]  # fmt: skip
    head = [
        "method", "seed", "epochs", "steps", "training, s", "median step, ms", "training loss", "validation, %", "folder",
    ]  # fmt: skip
    return Section("runs", title, tables=[Table("runs", "Training runs", head, rows, folded=True)])
