"""The figures of docs/evidence/curvature.md, from what the page's two commands leave.

python evidence/curvature_evidence.py MEASURED [FOLDER ...]    # their --out folders -> JSON files beside the page, its tables

Further folders hold other networks, which join those of the first, or the same on other images (--seed), which are compared.
"""

from __future__ import annotations

import itertools
import math
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from evidence_page import fill, table
from scipy.stats import spearmanr

from trimtab.report.parts import significant
from trimtab.studies.curvature.conclusions import (
    MEASURES,
    SCALE_FREE,
    RankCorrelation,
    ratio_to,
    robustness,
)
from trimtab.studies.curvature.records import CurvatureRow, CurvatureSummary, PrunedAccuracy
from trimtab.studies.statistics import Estimate, estimate, sparsity_label

FOLDER = Path(__file__).parent.parent / "docs" / "evidence"
PAGE = FOLDER / "curvature.md"
FIGURES = {
    name: FOLDER / f"curvature-cifar10-resnet8{end}.json" for name, end in (("main", ""), ("other", "-other-images"))
}
PAIRS = (
    ("var", "sgd"),
    ("sam", "sgd"),
    ("cram+", "sgd"),
    ("l1", "sgd"),
    ("hoyer", "sgd"),
    ("var+sam", "sam"),
    ("var+cram+", "cram+"),
)
SPARSITY_PENALTIES = ("l1", "hoyer")
SHORT = {"eigenvalue": "eigenvalue", "trace": "trace", "sharpness": "SAM sharpness", "adaptive_sharpness": "adaptive sharpness",
         "normalized_eigenvalue": "eigenvalue · norm²", "normalized_trace": "trace · norm² / n"}  # fmt: skip


def slim(folder: Path) -> CurvatureSummary:
    """What a command found, without the places of its machine."""
    found = CurvatureSummary.model_validate_json((folder / "curvature.json").read_bytes())
    recipe = found.recipe | {"data": found.recipe["data"] | {"root": None}}
    return found.model_copy(update={"recipe": recipe, "densities": [], "landscapes": []})


def over_seeds(values: Sequence[float]) -> str:
    found = estimate(values)
    return significant(found.mean) + ("" if found.half is None else f" ± {significant(found.half, 2)}")


def measured(rows: Sequence[CurvatureRow], sparsity: float) -> str:
    own = [row for row in rows if row.sparsity == sparsity]
    if not own:
        return "Not measured."
    lines = []
    for method in dict.fromkeys(row.method for row in own):
        seeds = [row for row in own if row.method == method]
        lines.append(
            [method, f"{100 * np.mean([row.accuracy for row in seeds]):.1f}", over_seeds([row.loss for row in seeds]),
             *(over_seeds([value(row) for row in seeds]) for _, value in MEASURES.values()),
             over_seeds([row.weight_norm for row in seeds]), str(len(seeds))]
        )  # fmt: skip
    return table(["method", "accuracy, %", "loss", *SHORT.values(), "norm", "seeds"], lines)


def ratio(found: Estimate | None) -> str:
    if found is None:
        return ""
    text = f"{math.exp(found.mean):.2f}"
    if found.low is None or found.high is None:
        return text
    text += f" ({math.exp(found.low):.2f} to {math.exp(found.high):.2f})"
    return f"**{text}**" if found.excludes_zero else text


def ratios(rows: Sequence[CurvatureRow]) -> str:
    lines = []
    for sparsity in sorted({row.sparsity for row in rows}):
        for method, baseline in PAIRS:
            cells = [ratio(ratio_to(rows, method, baseline, name, sparsity)) for name in MEASURES]
            if any(cells):
                lines.append([sparsity_label(sparsity), f"{method} / {baseline}", *cells])
    return table(["", "ratio", *SHORT.values()], lines)


def correlation(found: RankCorrelation) -> str:
    text = f"{found.value:+.2f}"
    if found.low is not None and found.high is not None:
        text += f" ({found.low:+.2f} to {found.high:+.2f})"
    return f"**{text}**" if found.excludes_zero else text


def correlations(rows: Sequence[CurvatureRow], pruned: Sequence[PrunedAccuracy]) -> str:
    found = robustness(rows, pruned)
    sparsities = sorted({one.sparsity for one in found})
    cells = {(one.measure, one.sparsity): correlation(one.kept) for one in found}
    lines = [
        [SHORT[name], "relative" if name in SCALE_FREE else "raw", *(cells[name, sparsity] for sparsity in sparsities)]
        for name in MEASURES
    ]
    return table(["dense network's", "scale", *map(sparsity_label, sparsities)], lines)


def agreement(main: Sequence[CurvatureRow], other: Sequence[CurvatureRow]) -> str:
    """How far two measurements of the same networks on different images agree."""
    second = {(row.method, row.seed): row for row in other if row.sparsity == 0}
    pairs = [
        (row, second[row.method, row.seed]) for row in main if row.sparsity == 0 and (row.method, row.seed) in second
    ]
    lines = []
    for name, (_, value) in MEASURES.items():
        logs = np.log([[value(one), value(two)] for one, two in pairs])
        differences = logs[:, 1] - logs[:, 0]
        lines.append(
            [SHORT[name], f"{spearmanr(logs[:, 0], logs[:, 1]).statistic:+.2f}", f"{math.exp(differences.mean()):.2f}",
             f"{100 * (math.exp(differences.std(ddof=1)) - 1):.0f} %"]
        )  # fmt: skip
    head = ["measure", "rank correlation", "other images / these", "spread of that ratio over networks"]
    return f"{len(pairs)} dense networks.\n\n" + table(head, lines)


def side(low: float | None, high: float | None, below: str, above: str) -> str:
    if low is None or high is None:
        return "no interval"
    return below if high < 0 else above if low > 0 else "not told apart from none"


def verdicts(rows: Sequence[CurvatureRow], pruned: Sequence[PrunedAccuracy]) -> str:
    lines = []
    for method, baseline in (("var", "sgd"), ("var+sam", "sam"), ("var+cram+", "cram+"), ("sam", "sgd")):
        for sparsity, name in itertools.product(sorted({row.sparsity for row in rows}), MEASURES):
            found = ratio_to(rows, method, baseline, name, sparsity)
            if found is not None:
                told = side(found.low, found.high, "**flatter**", "**sharper**")
                claim = f"{method} is flatter than {baseline}, {sparsity_label(sparsity)}"
                lines.append([claim, SHORT[name], told, ratio(found)])
    few = [row for row in rows if row.method not in SPARSITY_PENALTIES]
    for group, own in (("all methods", rows), ("without L1 and Hoyer-Square", few)):
        for one in robustness(own, [item for item in pruned if item.method in {row.method for row in own}]):
            if one.sparsity == 0.9:
                told = side(one.kept.low, one.kept.high, "**holds**", "**the reverse**")
                lines.append(
                    [f"flatter goes with losing less at 90 %, {group}", SHORT[one.measure], told, correlation(one.kept)]
                )
    return table(["claim", "measured by", "verdict here", "ratio, or rank correlation, with its 95 % interval"], lines)


def main() -> None:
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    found = [slim(Path(folder)) for folder in sys.argv[1:]]
    same = [one for one in found if one.settings.seed == found[0].settings.seed]
    others = [one for one in found if one.settings.seed != found[0].settings.seed]
    places = {(row.method, row.seed, row.sparsity): row for one in same for row in one.rows}
    rows, pruned = [places[place] for place in sorted(places)], found[0].pruned
    found[0].model_copy(update={"rows": rows, "command": "; ".join(one.command for one in same)}).write(FIGURES["main"])
    for other in others:
        other.write(FIGURES["other"])
    few = [row for row in rows if row.method not in SPARSITY_PENALTIES]
    products = sorted(row.products for row in rows)
    errors = sorted(row.trace_error / row.trace for row in rows)
    residuals = sorted(row.residuals[0] / row.eigenvalues[0] for row in rows)
    fill(
        PAGE,
        {
            "how sure": f"{len(rows)} networks measured with {products[0]} to {products[-1]} products each. Residual of the "
            f"eigenvalue: at most {100 * residuals[-1]:.1f} % of it; converged: {sum(row.converged for row in rows)} of "
            f"{len(rows)}. Standard error of the trace: median {100 * statistics.median(errors):.0f} %, at most "
            f"{100 * errors[-1]:.0f} % of it.",
            "verdicts": verdicts(rows, pruned),
            "dense": measured(rows, 0.0),
            "pruned": measured(rows, 0.9),
            "ratios": ratios(rows),
            "robustness": correlations(rows, pruned),
            "robustness without": correlations(few, [one for one in pruned if one.method not in SPARSITY_PENALTIES]),
            "agreement": agreement(rows, others[0].rows) if others else "Not measured.",
        },
    )


if __name__ == "__main__":
    main()
