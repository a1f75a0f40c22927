"""The study's main table for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.table import Table
from rich.text import Text

from trimtab.report.parts import significant
from trimtab.runs.metric import Metric
from trimtab.studies.curvature.records import CurvatureRow
from trimtab.studies.statistics import (
    Entry,
    fine_tuned_rows,
    main_rows,
    sparsity_label,
    table,
)
from trimtab.studies.summary import Summary


def _cell(entry: Entry | None, metric: Metric, *, best: bool, stacked: bool) -> Text:
    if entry is None:
        return Text("-", style="dim")
    text = Text(metric.number(entry.mean), style="bold" if best else "")
    if entry.half is not None:
        text.append(f"{chr(10) if stacked else ''}±{metric.number(entry.half)}", style="dim not bold")
    return text


def terminal_tables(summary: Summary) -> list[Table]:
    """The table of each state that was measured: as pruned, recalibrated, fine-tuned."""
    states = sorted({row.recalibrated for row in main_rows(summary.rows)})
    found = [terminal_table(summary, recalibrated=recalibrated) for recalibrated in states]
    return [*found, *([terminal_table(summary, finetuned=True)] if fine_tuned_rows(summary.rows) else [])]


def terminal_table(summary: Summary, *, recalibrated: bool = False, finetuned: bool = False, width: int = 80) -> Table:
    """Methods by sparsities: mean and half the 95 % t interval over seeds as the metric is written; the best of a column bold.

    Args:
        summary: the study.
        recalibrated: the networks with BatchNorm statistics re-estimated, instead of as pruned.
        finetuned: the networks that were trained on after pruning.
        width: columns that the table may take; where the table would be wider the interval goes below the mean.

    Raises:
        ValueError: the summary has no row in that state.
    """
    rows = fine_tuned_rows(summary.rows) if finetuned else main_rows(summary.rows)
    metric = summary.measure
    entries = [entry for entry in table(rows, field=metric.column) if entry.recalibrated == recalibrated]
    if not entries:
        state = "recalibrated" if recalibrated else "not recalibrated"
        raise ValueError(f"the summary {summary.name!r} has no rows that are {state}")
    methods = list(dict.fromkeys(entry.method for entry in entries))
    sparsities = sorted({entry.sparsity for entry in entries})
    by_place = {(entry.method, entry.sparsity): entry for entry in entries}
    best = {s: metric.best(e.mean for e in entries if e.sparsity == s) for s in sparsities}
    columns = [
        max(len(_cell(by_place.get((m, s)), metric, best=False, stacked=False).plain) for m in methods)
        for s in sparsities
    ]
    labels = [sparsity_label(sparsity) for sparsity in sparsities]
    needed = sum(1 + max(column, len(label)) for column, label in zip(columns, labels, strict=True))
    stacked = max(6, *map(len, methods)) + 2 + needed > width
    narrow = sum(1 + max(len(label), 6) for label in labels) if stacked else needed
    epochs = ", ".join(str(number) for number in sorted({entry.finetuned for entry in entries}))
    state = f"fine-tuned, {epochs} epochs" if finetuned else "recalibrated" if recalibrated else "as pruned"
    counts = sorted({entry.n for entry in entries})
    if counts == [1]:
        seeds = "one seed: no interval"
    else:
        seeds = f"mean ± 95 % t interval, {' or '.join(map(str, counts))} seeds"
    best_is = f"best ({metric.better}) of column" if metric.lower else "best of column"
    found = Table(
        title=f"{metric.heading} by sparsity, {state}",
        caption=f"{seeds}; bold: {best_is}; chance {metric.scale * summary.chance:.3g}{metric.sign}",
        box=box.SIMPLE_HEAD,
        padding=(0, 0),
        pad_edge=False,
    )
    found.add_column("method", overflow="fold", max_width=max(12, width - narrow - 2))
    for label in labels:
        found.add_column(label, justify="right", no_wrap=True)
    for method in methods:
        cells = []
        for sparsity in sparsities:
            entry = by_place.get((method, sparsity))
            cells.append(_cell(entry, metric, best=entry is not None and entry.mean == best[sparsity], stacked=stacked))
        found.add_row(Text(method), *cells)
    return found


def curvature_table(rows: Sequence[CurvatureRow], sparsity: float) -> Table:
    """One line per network of one sparsity: each measure with its own error, where it has one.

    Args:
        rows: measured networks.
        sparsity: whose lines to show.
    """
    found = Table(
        title=f"curvature of the training loss, {sparsity_label(sparsity)}", box=box.SIMPLE_HEAD, padding=(0, 1),
        pad_edge=False, caption="top: largest eigenvalue ± residual (? not converged); trace ± standard error; SAM, adaptive: "
        "rise of the loss within the ball; top w2: largest eigenvalue x ||w||\u00b2; acc: accuracy, %",
    )  # fmt: skip
    found.add_column("network", overflow="fold", min_width=10)
    for name in ("top", "trace", "SAM", "adaptive", "top w2", "acc"):
        found.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        if row.sparsity == sparsity:
            mark = "" if row.converged else "?"
            top = f"{significant(row.eigenvalues[0])}±{significant(row.residuals[0], 1)}{mark}"
            trace = f"{significant(row.trace)}±{significant(row.trace_error, 1)}"
            found.add_row(
                Text(f"{row.method}, {row.seed}"), top, trace, f"{row.sharpness:.3g}", f"{row.adaptive_sharpness:.3g}",
                significant(row.normalized_eigenvalue), f"{100 * row.accuracy:.1f}",
            )  # fmt: skip
    return found
