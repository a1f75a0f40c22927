"""The contrasts that a study named beforehand, with what came of them."""

from __future__ import annotations

from trimtab.report.parts import MINUS, Cell, Section, Table, spread
from trimtab.report.weights.study import Study
from trimtab.studies.contrasts import LEVEL, Judged
from trimtab.studies.statistics import Estimate, sparsity_label

HEAD = ["contrast", "at", "state", "seeds", "difference", "interval", "p", "corrected p", "verdict"]

SMALL = 1e-4
"""p values below this are written as such: how far below says little with five seeds."""


def _row(one: Judged) -> list[Cell]:
    start = [
        Cell(f"{one.own} {MINUS} {one.other}"),
        Cell(sparsity_label(one.sparsity), one.sparsity),
        Cell("recalibrated" if one.recalibrated else "as pruned"),
        Cell(str(one.seeds), one.seeds),
    ]
    if one.difference is None or one.low is None or one.high is None:
        return [*start, *[Cell("", None)] * 4, Cell("not judged: too few seeds in common")]
    metric = one.measure
    mean = spread(
        Estimate(one.seeds, one.difference, None, None, None), signed=True, digits=metric.decimals, scale=metric.scale
    )
    ends = f"{metric.number(one.low)} to {metric.number(one.high)}".replace("-", MINUS)
    mark = ("gain" if metric.gain(one.difference) > 0 else "harm") if one.shown else ""
    difference = Cell(mean, metric.scale * one.difference, best=one.shown, mark=mark)
    return [
        *start,
        difference,
        Cell(ends),
        _p(one.p),
        _p(one.corrected),
        Cell(mark or "not told from zero"),
    ]


def _p(value: float | None) -> Cell:
    """A p value with two digits, each row with its own; small ones as a bound."""
    if value is None:
        return Cell("", None)
    return Cell(f"{value:.2g}" if value >= SMALL else f"< {SMALL:.4f}", value)


def contrasts_section(study: Study) -> Section | None:
    """A table of the contrasts; None where the study named none."""
    judged = study.summary.contrasts
    if not judged:
        return None
    rest = "" if len(judged) == 1 else f", corrected for {len(judged)} contrasts by Holm's procedure"
    sentence = (
        "These questions were written into the study before its runs; every other comparison on this page was not, and with "
        f"many of them some exclude zero by chance. Paired by seed, two-sided t test{rest}: bold where the corrected p lies "
        f"below {LEVEL:g}. The intervals are those of each contrast alone."
    )
    caption = f"{study.quality} in {study.metric.unit}, own method minus the other, on the {study.rows[0].split} split"
    table = Table("contrasts", caption, HEAD, [_row(one) for one in judged])
    return Section("contrasts", "The contrasts named beforehand", [sentence], [], [table])
