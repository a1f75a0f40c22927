"""The main table of a study for a paper: LaTeX with booktabs."""

from __future__ import annotations

from collections.abc import Sequence

from trimtab.runs.metric import METRICS, Metric
from trimtab.studies.statistics import Entry, paired_difference, sparsity_label

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


def best_of(entries: Sequence[Entry], metric: Metric = METRICS["accuracy"]) -> set[str]:
    """Of one column: the method of the best mean, and those whose paired difference to it does not exclude zero.

    A method that shares fewer than two seeds with the best has no interval and stands back unless its mean is as good.
    """
    top = max(entries, key=lambda entry: metric.gain(entry.mean))
    found = set()
    for entry in entries:
        difference = paired_difference(entry.values, top.values)
        told = difference is None or difference.low is None or difference.excludes_zero
        if entry.mean == top.mean or not told:
            found.add(entry.method)
    return found


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
    places = {(entry.method, entry.sparsity): entry for entry in entries}
    best = {s: best_of([entry for entry in entries if entry.sparsity == s], metric) for s in sparsities}
    lines = []
    for method in methods:
        cells = [escaped(method)]
        for sparsity in sparsities:
            entry = places.get((method, sparsity))
            if entry is None:
                cells.append("--")
                continue
            text = metric.number(entry.mean) + ("" if entry.half is None else rf" \pm {metric.number(entry.half)}")
            cells.append(rf"$\mathbf{{{text}}}$" if method in best[sparsity] else f"${text}$")
        lines.append(" & ".join(cells) + r" \\")
    seeds = sorted({entry.n for entry in entries})
    spread = (
        "one seed"
        if seeds == [1]
        else f"mean $\\pm$ half the 95\\,\\% $t$ interval, {' or '.join(map(str, seeds))} seeds"
    )
    head = " & ".join(["method", *(escaped(sparsity_label(s)).replace(" ", r"\,") for s in sparsities)]) + r" \\"
    bold = "bold: the best, and what a $t$ test paired over seeds does not tell apart from it"
    return "\n".join([
        r"\begin{table}", r"\centering",
        rf"\caption{{{escaped(caption)}{escaped(metric.headed)} by sparsity; {spread}; {bold}.}}",
        rf"\label{{{label}}}", rf"\begin{{tabular}}{{l{'r' * len(sparsities)}}}", r"\toprule", head, r"\midrule", *lines,
        r"\bottomrule", r"\end{tabular}", r"\end{table}", "",
    ])  # fmt: skip
