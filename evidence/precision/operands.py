"""The study of operands in few bits: runs it, and writes its tables (plan: README.md beside this file).

python evidence/precision/operands.py run text|images|late OUT [flags of trimtab precision]; text-small, ...: a core's half hour
python evidence/precision/operands.py tables OUT...     what stands in each of the folders, to standard output
python evidence/precision/operands.py keep OUT NAME      what the tables need, as docs/evidence/precision-NAME.json
python evidence/precision/operands.py page               the tables of the page, from those files
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from claims import tables as claims_tables
from evidence_page import fill, spread, table

from trimtab.cli import main as trimtab
from trimtab.files import write_text
from trimtab.runs.run_folder import RunFolder
from trimtab.runs.tracked import tracked
from trimtab.studies.contrasts import holm, paired_p
from trimtab.studies.precision.conclusions import last_loss, paired, quality
from trimtab.studies.precision.prediction import agreement, parts_of, predictions
from trimtab.studies.precision.records import FormatRun, PrecisionStudy, run_columns
from trimtab.studies.precision.variants import BASELINE
from trimtab.studies.statistics import estimate
from trimtab.tables.rows import GLOBAL

RECIPES = (
    "bf16-operands", "mxfp8", "fp8-deepseek", "fp8-tensor", "mxfp4", "mxfp4-unbiased", "nvfp4", "nvfp4-no-hadamard",
    "nvfp4-nearest", "nvfp4-all-layers",
)  # fmt: skip
CONTRASTS = (
    ("nvfp4", "bf16-operands"), ("nvfp4-no-hadamard", "nvfp4"), ("nvfp4-nearest", "nvfp4"), ("nvfp4-all-layers", "nvfp4"),
    ("mxfp4-unbiased", "mxfp4"), ("mxfp8", "bf16-operands"), ("fp8-deepseek", "bf16-operands"),
)  # fmt: skip
COMMON = ["--seeds", "0", "1", "2", "--no-logistic", "--precision.meter-every", "20", "--precision.oscillation", "20"]
SMALL_TEXT, SMALL_IMAGES = (str(Path(__file__).parent / name) for name in ("small-gpt.yaml", "small-images.yaml"))
IN_SMALL_IMAGES = ("bf16-operands", "mxfp8", "fp8-deepseek", "mxfp4", "mxfp4-unbiased", "nvfp4", "nvfp4-all-layers")
STUDIES = {
    "text": ["tinyshakespeare", "--formats", ",".join(RECIPES), *COMMON],
    "images": ["cifar10-fast", "--formats", ",".join(RECIPES), *COMMON],
    "late": ["tinyshakespeare", "--formats", "mxfp4,nvfp4", "--precision.matmul-until", "0.9", *COMMON],
    "text-small": [SMALL_TEXT, "--formats", ",".join(RECIPES), *COMMON],
    "late-small": [SMALL_TEXT, "--formats", "mxfp4,nvfp4", "--precision.matmul-until", "0.9", *COMMON],
    "images-small": [SMALL_IMAGES, "--formats", ",".join(IN_SMALL_IMAGES), *COMMON],
}
EVIDENCE = Path(__file__).parents[2] / "docs/evidence"
SMALL = EVIDENCE / "precision-small.json"
Pick = Callable[[FormatRun], float | None]


def gaps(study: PrecisionStudy, *, accuracy: bool = False) -> str:
    """Each label over its seeds, against full precision; with `accuracy` that of the test split in percent."""
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
        row = [label, whole, spread(found.train_loss, digits=4), ours[0], spread(found.loss, digits=4), ours[1]]
        if accuracy:
            points = "" if label == BASELINE else spread(found.to_full, 100, 1, signed=True)
            row += [spread(found.accuracy, 100, 1), points]
        rows.append(row)
    head = ["recipe", "finished", "training loss", "against full", "test loss", "against full"]
    return table([*head, "accuracy, %", "against full"] if accuracy else head, rows)


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


def ends_of(study: PrecisionStudy, folder: Path) -> dict[str, list[tuple[float, float]]]:
    """Share of all weights that go back and forth, in the first and last tenth of the metered steps, by run."""
    found: dict[str, list[tuple[float, float]]] = {}
    for run in study.runs:
        columns = run_columns(RunFolder(folder / run.folder))
        own = tracked(columns, "fprop weight", ("oscillating",)) if columns else None
        if own is not None:
            values = own.together["oscillating"]
            tenth = max(len(values) // 10, 1)
            found.setdefault(run.label, []).append((float(values[:tenth].mean()), float(values[-tenth:].mean())))
    return found


def oscillation(ends: dict[str, list[tuple[float, float]]]) -> str:
    """How many weights go back and forth, over seeds."""
    rows = [
        [label, *(spread(estimate(values), 100, 2) for values in zip(*own, strict=True))] for label, own in ends.items()
    ]
    return table(["recipe", "oscillating at first, %", "at last, %"], rows)


def blocks_of(
    study: PrecisionStudy, ends: dict[str, list[tuple[float, float]]], *, accuracy: bool = False
) -> dict[str, str]:
    """The tables, by name."""
    return {
        "gaps": gaps(study, accuracy=accuracy),
        "contrasts": contrasts(study), "prediction": prediction(study), "layers": layers(study),
        "oscillation": oscillation(ends),
    }  # fmt: skip


def read(folder: Path) -> PrecisionStudy:
    """What `trimtab precision` left."""
    return PrecisionStudy.model_validate_json((folder / "precision.json").read_bytes())


def keep(folder: Path, name: str) -> None:
    """The study without what no table here shows: layers' gradients, and layers but those of `layers`."""
    study = read(folder)
    runs = []
    for run in study.runs:
        whole = [
            one
            for one in run.errors
            if one.layer == GLOBAL or (one.kind == "fprop" and run.label == "nvfp4-all-layers")
        ]
        runs.append(run.model_copy(update={"errors": whole, "shrinkage": None}))
    slim = study.model_copy(update={"runs": runs}).model_dump(mode="json", by_alias=True)
    text = json.dumps({"study": slim, "oscillation": ends_of(study, folder)})
    write_text(EVIDENCE / f"precision-{name}.json", text + "\n")


def small() -> dict[str, str]:
    """Tables of `state_and_codes.py`."""
    found = json.loads(SMALL.read_text(encoding="utf-8"))

    def of(study: str, label: str, field: str) -> dict[int, float]:
        return {row["seed"]: row[field] for row in found.get(study, []) if row["label"] == label}

    def minus(one: dict[int, float], other: dict[int, float]) -> list[float]:
        return [one[seed] - other[seed] for seed in sorted(one.keys() & other.keys())]

    states, full = dict.fromkeys(row["label"] for row in found.get("state", [])), "32 bits"
    rows = []
    for label in sorted(states, key=lambda each: (each != full, each)):
        cells = [label]
        for field in ("train", "test"):
            own = of("state", label, field)
            cells.append(spread(estimate(list(own.values())), digits=4))
            against = spread(estimate(minus(own, of("state", full, field))), digits=4, signed=True)
            cells.append("" if label == full else against)
        rows.append([*cells, "" if label == full else f"{next(iter(of('state', label, 'bytes').values())):.3f}"])
    state = table(
        ["state", "training loss", "against 32 bits", "test loss", "against 32 bits", "bytes over 32 bits"], rows
    )
    codes = []
    for label in ("int4", "int2"):
        numbers = [of("codes", label, field) for field in ("float", "coded", "mended")]
        gain = spread(estimate(minus(numbers[2], numbers[1])), 100, 1, signed=True)
        lost, left = (sum(minus(numbers[0], numbers[place])) for place in (1, 2))
        told = estimate(minus(numbers[0], numbers[1])).excludes_zero
        shares = f"{100 * (1 - left / lost):.0f}" if told else "nothing was lost"
        codes.append([label, *(spread(estimate(list(own.values())), 100, 1) for own in numbers), gain, shares])
    head = ["codes", "float, %", "coded, %", "after 2,000 steps, %", "gain, points", "of the loss won back, %"]
    return {"state": state, "codes": table(head, codes), **claims_tables(found)}


def main(arguments: Sequence[str]) -> int:
    """Run a study, or print its tables."""
    match arguments:
        case ["run", name, out, *flags] if name in STUDIES:
            return trimtab(["precision", *STUDIES[name], "--out", out, *flags])
        case ["tables", *folders] if folders:
            for folder in map(Path, folders):
                study = read(folder)
                print(f"## {study.name}\n", *blocks_of(study, ends_of(study, folder)).values(), sep="\n\n")
            return 0
        case ["keep", folder, name]:
            keep(Path(folder), name)
            return 0
        case ["page"]:
            blocks = small() if SMALL.is_file() else {}
            for name in ("text", "images", "late"):
                file = EVIDENCE / f"precision-{name}.json"
                if file.is_file():
                    kept = json.loads(file.read_text(encoding="utf-8"))
                    kept_study = PrecisionStudy.model_validate(kept["study"])
                    own = blocks_of(kept_study, kept["oscillation"], accuracy=name == "images")
                    blocks |= {f"{name} {label}": block for label, block in own.items()}
            page = EVIDENCE / "precision.md"
            text = page.read_text(encoding="utf-8")
            fill(page, {label: block for label, block in blocks.items() if f"<!-- {label} begins -->" in text})
            return 0
    raise SystemExit(__doc__)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
