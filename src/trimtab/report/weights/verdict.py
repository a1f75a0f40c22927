"""The verdict of a study of weights: how far each method can be pruned, and at what cost."""

from __future__ import annotations

from trimtab.report.parts import MINUS, Tile, Verdict
from trimtab.report.weights.study import Study
from trimtab.studies.statistics import sparsity_label
from trimtab.studies.weights.headline import operating_point
from trimtab.studies.weights.verdict import Held, best_and_baseline, cost_words, place, verdict_words


def _note(study: Study, one: Held) -> str:
    certain = (
        "" if one.certain is None or one.certain == one.sparsity else f"whole interval to {sparsity_label(one.certain)}"
    )
    if one.method == study.baseline:
        return "; ".join(part for part in ("baseline", certain, cost_words(one)) if part)
    dense = ""
    if one.dense is not None and one.dense_cost is None:
        dense = f"dense {study.metric.change(one.dense.mean)}".replace("-", MINUS)
    return "; ".join(part for part in (cost_words(one), dense, certain) if part)


def verdict(study: Study) -> Verdict:
    """One sentence, and the best three with the baseline side by side."""
    metric = study.metric
    found = study.held
    if not found:
        return Verdict(study.summary.headline)
    entries = [entry for entry in study.main if entry.recalibrated == study.state]
    point = operating_point(entries, study.summary.chance, metric)
    lead = verdict_words(found, entries, study.baseline, metric, point)
    tiles = [
        Tile(one.method, place(one), _note(study, one), "bad" if one.sparsity is None else "", study.looks[one.method])
        for one in best_and_baseline(found, study.baseline)
    ]
    return Verdict(lead, tiles)
