"""A summary with what every section of the page needs: entries, looks, the baseline."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from trimtab.report.palette import Look, looks
from trimtab.report.parts import spread
from trimtab.runs.metric import Metric
from trimtab.studies.statistics import Entry, Estimate, baseline_of, fine_tuned_rows, main_rows, table
from trimtab.studies.summary import Row, Summary
from trimtab.studies.weights.verdict import Held, best_and_baseline, held


@dataclass(frozen=True)
class Study:
    """One summary, looked at."""

    summary: Summary

    @property
    def metric(self) -> Metric:
        """What quality is here."""
        return self.summary.measure

    @property
    def quality(self) -> str:
        """The metric's name at the start of a sentence."""
        return self.metric.title

    def spread(self, estimate: Estimate, *, signed: bool = False, more: int = 0) -> str:
        """Mean and half the interval as the metric is written; `more` decimals."""
        metric = self.metric
        return spread(estimate, signed=signed, digits=metric.decimals + more, scale=metric.scale)

    def plotted(self, name: str = "y", *, signed: bool = False) -> str:
        """How plotly writes a quality in a hover text."""
        kind = "%" if self.metric.sign else "f"
        return f"%{{{name}:{'+' if signed else ''}.{self.metric.decimals}{kind}}}"

    def half(self, estimate: Estimate) -> str:
        """In a hover text: half the interval, or that there is none."""
        if estimate.half is None:
            return "one seed"
        return f"± {self.metric.number(estimate.half)}{self.metric.sign.strip()}, {estimate.n} seeds"

    @property
    def ticks(self) -> str:
        """How plotly writes a quality on an axis."""
        return ".0%" if self.metric.sign else ".2f"

    @cached_property
    def methods(self) -> list[str]:
        """Labels in order of first appearance."""
        labels = [row.method for row in self.summary.rows] + [run.method for run in self.summary.runs]
        return list(dict.fromkeys([*labels, *(run.method for run in self.summary.dynamics)]))

    @property
    def baseline(self) -> str:
        """What the others are compared with: "sgd" where there is one, else the first method."""
        return baseline_of(self.methods)

    @cached_property
    def looks(self) -> dict[str, Look]:
        """A look for each method, the baseline first."""
        return looks(self.methods, self.baseline)

    @property
    def state(self) -> bool:
        """Whether the networks that the page opens with are the recalibrated ones."""
        return self.states[-1]

    @cached_property
    def held(self) -> list[Held]:
        """How far each method holds the dense baseline, in the state that the page opens with."""
        entries = [entry for entry in self.main if entry.recalibrated == self.state]
        steps = {cost.method: cost.ratio for cost in self.summary.costs}
        return held(entries, self.baseline, steps, metric=self.metric)

    @property
    def shown(self) -> list[str]:
        """Methods that are drawn in full: the three that reach farthest and the baseline."""
        return [one.method for one in best_and_baseline(self.held, self.baseline)] or self.methods

    @cached_property
    def rows(self) -> list[Row]:
        """Rows of one split, test where there is any, without those of fine-tuned networks."""
        split = "test" if any(row.split == "test" for row in self.summary.rows) else "validation"
        return [row for row in self.summary.rows if row.split == split and not row.finetuned]

    @cached_property
    def tuned(self) -> list[Entry]:
        """Networks that were trained on after pruning, over seeds."""
        return table(fine_tuned_rows(self.summary.rows), field=self.metric.column)

    @cached_property
    def entries(self) -> list[Entry]:
        """All rows over seeds, controls too."""
        return table(self.rows, field=self.metric.column)

    @cached_property
    def main(self) -> list[Entry]:
        """The study's own way of pruning, over seeds."""
        return table(main_rows(self.summary.rows), field=self.metric.column)

    @cached_property
    def states(self) -> list[bool]:
        """Whether networks were measured as pruned, recalibrated, or both."""
        return sorted({entry.recalibrated for entry in self.main})
