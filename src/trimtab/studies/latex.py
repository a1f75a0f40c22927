"""Tables of a study for a paper: LaTeX with booktabs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from trimtab.runs.metric import Metric
from trimtab.studies.statistics import Entry, Estimate, estimate, paired_difference, sparsity_label

SPECIAL = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
}  # fmt: skip


def escaped(text: str) -> str:
    """A text in which LaTeX reads no command.

    Example:
        >>> print(escaped("var[a_b=5%]"))
        var[a\\_b=5\\%]
    """
    return "".join(SPECIAL.get(letter, letter) for letter in text)


Values = Sequence[tuple[int, float]]
"""Seeds and what each gave."""


def best_of(column: Mapping[str, Values]) -> set[str]:
    """Of one column: the row of the highest mean, and those whose paired difference to it does not exclude zero.

    A row that shares fewer than two seeds with the best has no interval and stands back unless its mean is as high.
    """
    means = {name: estimate(value for _, value in values).mean for name, values in column.items()}
    top = max(means, key=lambda name: means[name])
    found = set()
    for name, values in column.items():
        difference = paired_difference(values, column[top])
        told = difference is None or difference.low is None or difference.excludes_zero
        if means[name] == means[top] or not told:
            found.add(name)
    return found


def cell(found: Estimate | None, digits: str = ".1f", *, bold: bool = False) -> str:
    """Mean and half the 95 % interval.

    Example:
        >>> print(cell(estimate([1.0, 2.0])), cell(estimate([0.5])), cell(None))
        $1.5 \\pm 6.4$ $0.5$ --
    """
    if found is None:
        return "--"
    text = format(found.mean, digits) + (
        "" if found.half is None else rf" \pm {format(found.half, digits.lstrip('+'))}"
    )
    return rf"$\mathbf{{{text}}}$" if bold else f"${text}$"


def spread(counts: Iterable[int]) -> str:
    """What a cell shows, for the caption."""
    seeds = sorted(set(counts))
    return (
        "one seed"
        if seeds == [1]
        else f"mean $\\pm$ half the 95\\,\\% $t$ interval, {' or '.join(map(str, seeds))} seeds"
    )


def framed(heads: Sequence[str], rows: Sequence[Sequence[str]], caption: str, label: str) -> str:
    """A table with booktabs; heads, rows and caption as LaTeX."""
    return "\n".join([
        r"\begin{table}", r"\centering", rf"\caption{{{caption}}}",
        rf"\label{{{label}}}", rf"\begin{{tabular}}{{l{'r' * (len(heads) - 1)}}}", r"\toprule",
        *(" & ".join(row) + r" \\" for row in [heads]), r"\midrule", *(" & ".join(row) + r" \\" for row in rows),
        r"\bottomrule", r"\end{tabular}", r"\end{table}", "",
    ])  # fmt: skip


def main_table(entries: Sequence[Entry], metric: Metric, caption: str, label: str) -> str:
    """Methods by sparsities, mean and half the 95 % interval.

    Args:
        entries: of one state, one score and scope.
        metric: what the numbers are.
        caption: before what the numbers are.
        label: for `\\ref`.

    Raises:
        ValueError: no entry.
    """
    if not entries:
        raise ValueError("a table needs at least one entry, got none")
    methods = list(dict.fromkeys(entry.method for entry in entries))
    sparsities = sorted({entry.sparsity for entry in entries})
    columns: dict[float, dict[str, Values]] = {s: {} for s in sparsities}
    for entry in entries:
        columns[entry.sparsity][entry.method] = entry.values
    best = {
        s: best_of({name: [(seed, metric.gain(value)) for seed, value in own] for name, own in column.items()})
        for s, column in columns.items()
    }
    rows = []
    for method in methods:
        cells = [escaped(method)]
        for s, column in columns.items():
            own = column.get(method)
            found = None if own is None else estimate(metric.scale * value for _, value in own)
            cells.append(cell(found, f".{metric.decimals}f", bold=method in best[s]))
        rows.append(cells)
    bold = "bold: the best, and what a $t$ test paired over seeds does not tell apart from it"
    said = f"{escaped(caption)}{escaped(metric.headed)} by sparsity; "
    said += f"{spread(entry.n for entry in entries)}; {bold}."
    return framed(["method", *map(sparsity_head, sparsities)], rows, said, label)


def sparsity_head(sparsity: float) -> str:
    """A sparsity over a column."""
    return escaped(sparsity_label(sparsity)).replace(" ", r"\,")
