"""What measured networks come to: which is flattest, and what pruning leaves of it."""

from __future__ import annotations

from collections.abc import Mapping

from trimtab.report.palette import Look
from trimtab.report.parts import Tile, Verdict, significant
from trimtab.studies.curvature.conclusions import curvature_headline
from trimtab.studies.curvature.records import CurvatureSummary
from trimtab.studies.statistics import baseline_of, estimate, sparsity_label


def _flatness(summary: CurvatureSummary) -> dict[str, float]:
    """Adaptive sharpness of the least sparse networks by method, the flattest first."""
    least = min(row.sparsity for row in summary.rows)
    own = [row for row in summary.rows if row.sparsity == least]
    found = {
        method: estimate(row.adaptive_sharpness for row in own if row.method == method).mean
        for method in dict.fromkeys(row.method for row in own)
    }
    return dict(sorted(found.items(), key=lambda item: item[1]))


def shown_methods(summary: CurvatureSummary, most: int = 3) -> list[str]:
    """The three flattest by adaptive sharpness, and the baseline."""
    found = _flatness(summary)
    baseline = baseline_of([row.method for row in summary.rows])
    return list(dict.fromkeys([baseline, *list(found)[:most]]))


def curvature_verdict(summary: CurvatureSummary, looks: Mapping[str, Look]) -> Verdict:
    """The sentence on the dense networks; adaptive sharpness and what pruning leaves, side by side."""
    flat, most = _flatness(summary), max(row.sparsity for row in summary.rows)
    baseline = baseline_of(list(looks))
    shown = shown_methods(summary)
    tiles = []
    for method in sorted(shown, key=lambda name: flat.get(name, 0.0)):
        if method not in flat:
            continue
        left = [row.accuracy for row in summary.rows if (row.method, row.sparsity) == (method, most)]
        kept = f"{100 * estimate(left).mean:.1f} % {summary.metric}, {sparsity_label(most)}" if left else ""
        note = "; ".join(part for part in ("baseline" if method == baseline else "", kept) if part)
        tiles.append(
            Tile(method, significant(flat[method]), f"adaptive sharpness; {note}" if note else "", look=looks[method])
        )
    return Verdict(curvature_headline(summary.rows, summary.pruned), tiles if len(flat) > 1 else [])
