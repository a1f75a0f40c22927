"""The study of operands in few bits: runs it, and writes its tables (plan: README.md beside this file).

python evidence/precision/operands.py run text|images|late OUT [flags of trimtab precision]
python evidence/precision/operands.py tables OUT...
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from evidence_page import spread, table

from trimtab.cli import main as trimtab
from trimtab.runs.run_folder import RunFolder
from trimtab.runs.tracked import tracked
from trimtab.studies.contrasts import holm, paired_p
from trimtab.studies.precision.conclusions import last_loss, paired, quality
from trimtab.studies.precision.prediction import agreement, parts_of, predictions
from trimtab.studies.precision.records import FormatRun, PrecisionStudy, run_columns
from trimtab.studies.precision.variants import BASELINE
from trimtab.studies.statistics import estimate

RECIPES = (
    "bf16-operands", "mxfp8", "fp8-deepseek", "fp8-tensor", "mxfp4", "mxfp4-unbiased", "nvfp4", "nvfp4-no-hadamard",
    "nvfp4-nearest", "nvfp4-all-layers",
)  # fmt: skip
CONTRASTS = (
    ("nvfp4", "bf16-operands"), ("nvfp4-no-hadamard", "nvfp4"), ("nvfp4-nearest", "nvfp4"), ("nvfp4-all-layers", "nvfp4"),
    ("mxfp4-unbiased", "mxfp4"), ("mxfp8", "bf16-operands"), ("fp8-deepseek", "bf16-operands"),
)  # fmt: skip
COMMON = ["--seeds", "0", "1", "2", "--no-logistic", "--precision.meter-every", "20", "--precision.oscillation", "20"]
STUDIES = {
    "text": ["tinyshakespeare", "--formats", ",".join(RECIPES), *COMMON],
    "images": ["cifar10-fast", "--formats", ",".join(RECIPES), *COMMON],
    "late": ["tinyshakespeare", "--formats", "mxfp4,nvfp4", "--precision.matmul-until", "0.9", *COMMON],
}
Pick = Callable[[FormatRun], float | None]


def gaps(study: PrecisionStudy) -> str:
    """Each label over its seeds, against full precision."""
    rows = []
    for label in study.labels:
        found = quality(study, label)
        ours: list[str] = []
        picks: tuple[Pick, ...] = (last_loss, lambda run: run.test_loss)
        for pick in picks:
            ours.append(
                "" if label == BASELINE else spread(paired(study, label, BASELINE, pick), digits=4, signed=True)
            )
        whole = f"{found.finished} of {len(study.of(label))}"
        rows.append([label, whole, spread(found.train_loss, digits=4), ours[0], spread(found.loss, digits=4), ours[1]])
    return table(["recipe", "finished", "training loss", "against full", "test loss", "against full"], rows)


def contrasts(study: PrecisionStudy) -> str:
    """The planned differences of the training loss, adjusted together."""
    found = []
    for one, other in CONTRASTS:
        losses = [
            {run.seed: loss for run in study.of(label) if (loss := last_loss(run)) is not None}
            for label in (one, other)
        ]
        differences = [losses[0][seed] - losses[1][seed] for seed in sorted(losses[0].keys() & losses[1].keys())]
        if len(differences) > 1:
            found.append((f"{one} - {other}", differences))
    adjusted = holm([paired_p(differences) for _, differences in found], len(CONTRASTS))
    rows = [
        [name, spread(estimate(differences), digits=4, signed=True), f"{p:.2g}"]
        for (name, differences), p in zip(found, adjusted, strict=True)
    ]
    return table(["contrast", "training loss", "p, Holm"], rows)


def prediction(study: PrecisionStudy) -> str:
    """Errors early on, their parts, and the gap at the end."""
    rows = []
    for one in predictions(study):
        for kind, (q, *parts) in parts_of(study.of(one.label)).items():
            shares = ["" if each is None else f"{100 * each:.3g}" for each in parts]
            ends = [spread(one.gap, digits=5, signed=True), spread(one.measured, digits=4, signed=True)]
            rows.append(
                [one.label, kind, "" if q is None else f"{q:.4f}", *shares, *(ends if kind == "fprop" else ["", ""])]
            )
    head = ["recipe", "product", "q", "scale bias, %", "dead zone, %", "grid noise, %", "predicted", "measured"]
    found = predictions(study)
    ranks = {
        "predicted rise": agreement(found, lambda one: one.gap),
        "squared error": agreement(found, lambda one: one.error),
    }
    said = "; ".join(f"{name} {'none' if value is None else f'{value:+.2f}'}" for name, value in ranks.items())
    return f"{table(head, rows)}\n\nRank correlation with the measured gap: {said}."


def layers(study: PrecisionStudy, label: str = "nvfp4-all-layers") -> str:
    """By how much each layer's forward rounding raises the loss: seeds' mean of medians over the metered steps."""
    found: dict[str, list[float]] = {}
    for run in study.of(label):
        for one in run.errors:
            if one.kind == "fprop" and one.loss_gap is not None:
                found.setdefault(one.layer, []).append(one.loss_gap)
    rows = [[layer, f"{sum(values) / len(values):+.3g}"] for layer, values in found.items()]
    return table(["layer", f"rise of the loss, {label}"], rows)


def oscillation(study: PrecisionStudy, folder: Path) -> str:
    """Share of the weights that go back and forth, all layers together, in the first and last tenth of the metered steps."""
    rows = []
    for label in study.labels:
        ends: list[tuple[float, float]] = []
        for run in study.of(label):
            columns = run_columns(RunFolder(folder / run.folder))
            own = tracked(columns, "fprop weight", ("oscillating",)) if columns else None
            if own is not None:
                values = own.together["oscillating"]
                tenth = max(len(values) // 10, 1)
                ends.append((float(values[:tenth].mean()), float(values[-tenth:].mean())))
        if ends:
            rows.append([label, *(spread(estimate(values), 100, 2) for values in zip(*ends, strict=True))])
    return table(["recipe", "oscillating at first, %", "at last, %"], rows)


def main(arguments: Sequence[str]) -> int:
    """Run a study, or print its tables."""
    match arguments:
        case ["run", name, out, *flags] if name in STUDIES:
            return trimtab(["precision", *STUDIES[name], "--out", out, *flags])
        case ["tables", *folders] if folders:
            for folder in folders:
                study = PrecisionStudy.model_validate_json((Path(folder) / "precision.json").read_bytes())
                print(f"## {study.name}\n")
                blocks = (
                    gaps(study),
                    contrasts(study),
                    prediction(study),
                    layers(study),
                    oscillation(study, Path(folder)),
                )
                for block in blocks:
                    print(f"{block}\n")
            return 0
    raise SystemExit(__doc__)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
