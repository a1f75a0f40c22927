"""One honest sentence about a study, written from its rows."""

from __future__ import annotations

from collections.abc import Sequence

from trimtab.runs.metric import METRICS, Metric
from trimtab.studies.statistics import (
    Entry,
    Estimate,
    against,
    fine_tuned_rows,
    main_rows,
    sparsity_label,
    table,
)
from trimtab.studies.summary import Row
from trimtab.studies.weights.verdict import ACCURACY, held

KEPT = 0.5


def operating_point(entries: Sequence[Entry], chance: float, metric: Metric = ACCURACY) -> float | None:
    """The sparsity that a headline speaks of: the highest one that some method still bears.

    A method bears a sparsity when its mean keeps at least half of its dense mean's distance from chance [ours]. When
    none does at any sparsity, the highest one at which some method's whole interval (its mean, with one seed) is better
    than chance. None when there is none.

    Args:
        entries: of one state, one score and scope.
        chance: what guessing reaches.
        metric: what the qualities are, and which way is better.
    """

    def above(value: float) -> float:
        """How much better than guessing."""
        return metric.gain(value - chance)

    dense = {entry.method: entry.mean for entry in entries if entry.sparsity == 0}
    pruned = [entry for entry in entries if entry.sparsity > 0]
    borne = [
        entry.sparsity
        for entry in pruned
        if above(entry.mean) > 0
        and above(entry.mean) >= KEPT * above(dense.get(entry.method, metric.best(dense.values()) if dense else 1.0))
    ]
    ends = {entry: entry.mean if entry.low is None else entry.high if metric.lower else entry.low for entry in pruned}
    certain = [entry.sparsity for entry, end in ends.items() if end is not None and above(end) > 0]
    return max(borne or certain, default=None)


def _seeds(n: int) -> str:
    return "one seed: no interval" if n == 1 else f"{n} seeds"


def _spread(difference: Estimate, metric: Metric) -> str:
    if difference.low is None or difference.high is None:
        return _seeds(difference.n)
    low, high = (metric.number(end, signed=True) for end in (difference.low, difference.high))
    return f"95 % interval {low} to {high}, {_seeds(difference.n)}"


def _clause(entries: Sequence[Entry], metric: Metric, chance: float, baseline: str) -> str:
    """What can be said of one state."""
    quality, text, change = metric.word, metric.text, metric.change
    sparsity = operating_point(entries, chance, metric)
    if sparsity is None:
        return f"no method stays {'better than' if metric.lower else 'above'} chance at any sparsity measured"

    def rank(entry: Entry) -> float:
        return metric.gain(entry.mean)

    here = [entry for entry in entries if entry.sparsity == sparsity]
    best = max(here, key=rank)
    place = f"at {sparsity_label(sparsity)} sparsity"
    base = next((entry for entry in here if entry.method == baseline), None)
    if len({entry.method for entry in entries}) == 1:
        spread = "" if best.half is None else f" +- {metric.number(best.half)}"
        return f"{best.method} keeps {text(best.mean)}{spread} {quality} {place} ({_seeds(best.n)})"
    if base is None:
        return (
            f"{best.method} has the {metric.better} mean {quality} {place}, {text(best.mean)} ({_seeds(best.n)}; "
            f"no {baseline} run to compare with)"
        )
    compared = [(entry, difference) for entry, difference in against(here, baseline)]
    if not compared:
        return f"no method shares a seed with {baseline} {place}, so none can be compared with it"
    if all(difference.n == 1 for _, difference in compared):
        leader, difference = max(compared, key=lambda pair: metric.gain(pair[1].mean))
        lead = best if best.method == baseline else leader
        rest = f"{change(difference.mean)} to {baseline}'s {text(base.mean)}"
        versus = f"next is {leader.method} with {rest}" if lead is best and best.method == baseline else rest
        return f"{lead.method} has the {metric.better} {quality} {place}, {text(lead.mean)}, {versus} (one seed: no interval)"
    better = [pair for pair in compared if pair[1].excludes_zero and metric.gain(pair[1].mean) > 0]
    if better:
        leader, difference = max(better, key=lambda pair: rank(pair[0]))
        most = "needs the fewest" if metric.lower else "keeps the most"
        claim = most if leader.method == best.method else f"beats {baseline} in"
        rest = (
            ""
            if leader.method == best.method
            else f"; {best.method}'s mean is {metric.better.removesuffix('est')}er, {text(best.mean)}, but not "
            f"distinguishable from {baseline}"
        )
        return (
            f"{leader.method} {claim} {quality} {place}: {text(leader.mean)} against {text(base.mean)} for "
            f"{baseline}, {change(difference.mean)} ({_spread(difference, metric)}){rest}"
        )
    nearest, difference = max(compared, key=lambda pair: rank(pair[0]))
    worse = all(difference.excludes_zero for _, difference in compared)
    verdict = f"no method is better than {baseline}" if worse else f"no method is distinguishable from {baseline}"
    if not worse and any(difference.excludes_zero for _, difference in compared):
        verdict = f"no method is distinguishably better than {baseline}"
    return (
        f"{verdict} {place} ({baseline} {text(base.mean)}, the best other mean is {nearest.method}'s "
        f"{text(nearest.mean)}: {change(difference.mean)}, {_spread(difference, metric)})"
    )


def headline(rows: list[Row], metric: str, chance: float, baseline: str = "sgd") -> str:
    """One sentence: which method keeps most at the highest sparsity that is still borne, and whether that is certain.

    It speaks of the network as pruned and, where measured, with BatchNorm recalibrated. The difference to the baseline
    is paired over seeds with a 95 % t interval; when no interval lies above zero it says that no method is
    distinguishable. Intervals are per comparison, not adjusted for their number. Controls (other scores and scopes) are
    not looked at. The choice of the sparsity is `operating_point`'s [ours].

    Args:
        rows: of one study.
        metric: "accuracy", "dice" or "bits_per_byte", of which less is better.
        chance: what guessing reaches, in the metric's units.
        baseline: the method that the others are compared with.

    Raises:
        ValueError: there are no rows, a value is not finite or a network occurs twice.

    Example:
        >>> from trimtab.studies.summary import Row
        >>> point = dict(seed=0, sparsity_total=0.9, recalibrated=False, loss=1.0)
        >>> print(headline([Row(method="var", sparsity=0.9, accuracy=0.8, **point)], "accuracy", 0.1))
        Without recalibration, var keeps 80.0 % accuracy at 90 % sparsity (one seed: no interval).
    """
    kept = main_rows(rows)
    if not kept:
        raise ValueError("a headline needs at least one row, got none")
    measure = METRICS[metric]
    entries = table(kept, field=measure.column)
    clauses = []
    for recalibrated in sorted({entry.recalibrated for entry in entries}):
        state = [entry for entry in entries if entry.recalibrated == recalibrated]
        lead = "with recalibration" if recalibrated else "without recalibration"
        clauses.append(f"{lead}, {_clause(state, measure, chance, baseline)}")
    tuned = table(fine_tuned_rows(rows), field=measure.column)
    for epochs in sorted({entry.finetuned for entry in tuned}):
        state = [entry for entry in tuned if entry.finetuned == epochs]
        plural = "s" if epochs > 1 else ""
        clauses.append(f"fine-tuned for {epochs} epoch{plural}, {_clause(state, measure, chance, baseline)}")
    text = "; ".join(clauses)
    return text[0].upper() + text[1:] + "." + _lost_dense(entries, chance, baseline, measure)


def _lost_dense(entries: Sequence[Entry], chance: float, baseline: str, metric: Metric) -> str:
    """What the methods that the sentence names lose before any pruning: a method is not crowned in silence."""
    last = [entry for entry in entries if entry.recalibrated == entries[-1].recalibrated]
    named = set()
    for recalibrated in {entry.recalibrated for entry in entries}:
        state = [entry for entry in entries if entry.recalibrated == recalibrated]
        point = operating_point(state, chance, metric)
        here = [entry for entry in state if entry.sparsity == point]
        named |= {max(here, key=lambda entry: metric.gain(entry.mean)).method} if here else set()
    lossy = [
        one for one in held(last, baseline, {}, metric=metric) if one.method in named and one.dense_cost is not None
    ]
    lost = ", ".join(f"{one.method} {metric.change(one.dense_cost or 0, signed=False)}" for one in lossy)
    return f" Against {baseline}'s dense network, before any pruning, it costs: {lost}." if lost else ""
