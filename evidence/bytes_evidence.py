"""The tables and figures of docs/evidence/bytes.md from its data: python evidence/bytes_evidence.py"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from evidence_page import fill, spread, table
from matplotlib.figure import Figure

from trimtab.runs.metric import METRICS, Metric
from trimtab.studies.contrasts import judge
from trimtab.studies.records import RunRecord
from trimtab.studies.sizes import bytes_text
from trimtab.studies.statistics import Estimate, estimate, sparsity_label
from trimtab.studies.study_file import StudyFile, read_study
from trimtab.studies.summary import BearingTrack

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs" / "evidence"
RECORDS = ROOT / "evidence" / "records"
STUDIES = ROOT / "evidence" / "bytes"
PACKERS = {
    "code over entropy": ("code", "entropy"),
    "code over zstd -19": ("code", "zstd"),
    "code over gzip -9": ("code", "gzip"),
    "file over zstd -19": ("bytes", "zstd"),
    "file over zstd -19 of all": ("bytes", "container"),
    "code over NNCodec's": ("code", "nncodec"),
}
Rows = Sequence[dict[str, Any]]


def words(form: dict[str, Any]) -> str:
    """A form in a few words."""
    if form["form"] != "compact":
        return {"fp32": "float32", "bf16": "bfloat16"}[form["form"]]
    if form.get("budget"):
        return f"searched for {bytes_text(form['budget'])}"
    zeros = f"{sparsity_label(form['sparsity'])} zeros, " if form["sparsity"] else ""
    first = f", the first weight {form['first']}" if form.get("first") else ""
    return f"{zeros}{form['bits']} bits{first}"


def over_seeds(rows: Rows, value: Callable[[dict[str, Any]], float]) -> dict[tuple[str, str], Estimate]:
    """By method and form, in their order: `value` of the form over the seeds."""
    found: dict[tuple[str, str], list[float]] = {}
    for row in rows:
        for form in row["forms"]:
            found.setdefault((row["method"], words(form)), []).append(value(form))
    return {key: estimate(values) for key, values in found.items()}


def quality_table(rows: Rows, column: str, head: str, scale: float, digits: int) -> str:
    """Bytes and quality of every method in every form."""
    sizes = over_seeds(rows, lambda form: form["bytes"])
    qualities = over_seeds(rows, lambda form: form[column])
    dense = {method: size.mean for (method, form), size in sizes.items() if form == "float32"}
    return table(
        ["method", "form", "bytes", "times smaller", head, "seeds"],
        [
            [
                key[0], key[1], bytes_text(sizes[key].mean), f"{dense[key[0]] / sizes[key].mean:.1f}",
                spread(qualities[key], scale, digits), str(qualities[key].n),
            ]
            for key in sorted(sizes, key=lambda one: list(dense).index(one[0]))
        ],
    )  # fmt: skip


def packed_table(rows: Rows) -> str:
    """The compact file beside what others make of the same numbers."""

    def ratio(own: str, other: str) -> dict[tuple[str, str], Estimate]:
        held = [row | {"forms": [form for form in row["forms"] if other in form]} for row in rows]
        return over_seeds(held, lambda form: form[own] / form[other])

    ratios = {name: found for name, pair in PACKERS.items() if (found := ratio(*pair))}
    keys = sorted(ratios["code over entropy"], key=lambda one: [row["method"] for row in rows].index(one[0]))
    return table(
        ["method", "form", *ratios], [[*key, *(spread(found[key]) for found in ratios.values())] for key in keys]
    )


def records_of(study: StudyFile, folder: Path) -> list[RunRecord]:
    """Those of the study's rows that are there."""
    found = []
    for row in study.rows:
        files = [folder / (row.label or row.method) / f"seed{seed}.json" for seed in row.seeds or ()]
        found += [RunRecord.read(file) for file in files if file.is_file()]
    return found


def judged_table(study: StudyFile, records: Sequence[RunRecord], metric: Metric) -> str:
    """The contrasts named beforehand, on test."""
    rows = [row for record in records for row in record.measured["test"].rows]
    lines = []
    for one in judge(rows, study.contrasts, metric):
        cells = ["not judged", "", str(one.seeds), "", ""]
        if None not in (one.difference, one.low, one.high, one.p, one.corrected):
            low, high = metric.number(one.low, signed=True), metric.number(one.high, signed=True)
            cells = [
                metric.change(one.difference),
                f"{low} to {high}",
                str(one.seeds),
                f"{one.p:.2g}",
                f"{one.corrected:.2g}",
            ]
        lines.append([str(one), *cells])
    return table(["contrast", "difference", "95 % interval", "seeds", "p", "corrected (Holm)"], lines)


def pruned_table(records: Sequence[RunRecord], column: str, scale: float, digits: int) -> str:
    """Quality on test over the sparsities, as pruned, in float32."""
    found: dict[str, dict[float, list[float]]] = {}
    for record in records:
        own = found.setdefault(record.label, {})
        for row in record.measured["test"].rows:
            if not row.recalibrated:
                own.setdefault(round(row.sparsity, 2), []).append(float(getattr(row, column)))
    sparsities = sorted({one for own in found.values() for one in own})
    head = ["method", *("dense" if one == 0 else f"{sparsity_label(one)} zeros" for one in sparsities), "seeds"]
    lines = [
        [label, *(spread(estimate(own[one]), scale, digits) for one in sparsities), str(len(own[0.0]))]
        for label, own in found.items()
    ]
    return table(head, lines)


def lost(track: BearingTrack, state: str, point: int) -> float:
    """Points of validation accuracy that a state loses against dense."""
    values = track.sparsities.get(state) or track.bits[state]
    return 100 * (track.dense[point] - values[point])


def bearing_tracks(folder: Path) -> dict[str, dict[int, BearingTrack]]:
    """By schedule and seed."""
    found: dict[str, dict[int, BearingTrack]] = {}
    for file in sorted(folder.rglob("seed*.json")):
        track = RunRecord.model_validate_json(file.read_text(encoding="utf-8")).bearing
        found.setdefault(file.parent.name, {})[track.seed] = track
    return found


def budget_table(rows: Rows) -> str:
    """The file that the command finds for the bytes of one of the same bits in all weights, beside that."""
    lines = []
    for method in dict.fromkeys(row["method"] for row in rows):
        own = [row for row in rows if row["method"] == method]
        values = [[row["searched"]["test_before"], row["uniform"]["test"], row["searched"]["test"]] for row in own]
        qualities = [spread(estimate(column), 1, 1) for column in zip(*values, strict=True)]
        size = estimate(float(row["searched"]["bytes"]) for row in own).mean
        change = spread(estimate(after - before for _, before, after in values), 1, 1, signed=True)
        lines.append([method, bytes_text(size), *qualities, change, str(len(own))])
    head = ["method", "bytes", "dense, %", "4 bits, 90 % zeros, %", "searched, %", "searched - 4 bits", "seeds"]
    return table(head, lines)


def search_table(rows: Rows) -> str:
    """The file that the command finds for a drop beside the smallest one of the same bits in all weights."""
    lines = []
    for method in dict.fromkeys(row["method"] for row in rows):
        own = [row for row in rows if row["method"] == method]
        both = [row for row in own if row["uniform"] is not None]

        def over(way: str, what: str, taken: Rows = own) -> Estimate:
            return estimate(float(row[way][what]) for row in taken)

        cells = [method, f"{over('searched', 'test_before').mean:.1f}"]
        for way, taken in (("uniform", both), ("searched", own)):
            cells += [bytes_text(over(way, "bytes", taken).mean) if taken else "none", ""]
            if taken:
                drops = estimate(row[way]["test"] - row["searched"]["test_before"] for row in taken)
                cells[-1] = spread(drops, 1, 1, signed=True)
        kept = estimate(row["searched"]["test"] / row["searched"]["test_before"] for row in own)
        ratio = estimate(row["searched"]["bytes"] / row["uniform"]["bytes"] for row in both) if both else None
        lines.append([*cells, spread(kept, 100, 1), spread(ratio, 1, 2), str(len(own))])
    head = [
        "method", "dense, %", "same bits in all weights", "change on test", "searched", "change on test",
        "kept, % of dense", "searched over uniform", "seeds",
    ]  # fmt: skip
    return table(head, lines)


STATES = {"80 % zeros": "0.8", "90 % zeros": "0.9", "4 bits": "4", "3 bits": "3"}


def bearing_table(tracks: dict[str, dict[int, BearingTrack]]) -> str:
    """What each state loses at the end with the decay and without, and the difference by seed."""
    rows = []
    for name, state in STATES.items():
        cosine, constant = ([lost(one, state, -1) for one in tracks[way].values()] for way in ("cosine", "constant"))
        half = [lost(one, state, (len(one.epochs) - 1) // 2) for one in tracks["cosine"].values()]
        change = estimate(late - early for early, late in zip(half, cosine, strict=True))
        apart = estimate(own - other for own, other in zip(cosine, constant, strict=True))
        cells = [spread(estimate(values), 1, 1) for values in (half, cosine, constant)]
        rows.append([name, *cells, spread(change, 1, 1, signed=True), spread(apart, 1, 1, signed=True)])
    head = [
        "state",
        "cosine, half-way",
        "cosine, end",
        "constant, end",
        "cosine: end - half-way",
        "end: cosine - constant",
    ]
    return table(head, rows)


def figure(tracks: dict[str, dict[int, BearingTrack]], file: Path, every: int) -> None:
    """Loss at 80 and 90 % zeros over the epochs, each seed and the mean; ticks at every so many epochs."""
    mpl.rcParams["svg.hashsalt"] = "bearing"
    drawing = Figure(figsize=(7.2, 3.0), layout="constrained")
    axes = drawing.subplots(1, 2, sharey=True)
    for axis, state in zip(axes, ("0.8", "0.9"), strict=True):
        for way, color in (("cosine", "#0b6e6e"), ("constant", "#c2571a")):
            curves = [[lost(one, state, at) for at in range(len(one.epochs))] for one in tracks[way].values()]
            epochs = next(iter(tracks[way].values())).epochs
            for curve in curves:
                axis.plot(epochs, curve, color=color, alpha=0.25, linewidth=0.8)
            mean = [sum(values) / len(values) for values in zip(*curves, strict=True)]
            axis.plot(epochs, mean, color=color, linewidth=2, label=f"{way} learning rate")
        axis.set_title(f"{100 * float(state):g} % zeros, recalibrated", fontsize=9)
        axis.set_xticks(epochs[::every], labels=[str(epoch) for epoch in epochs[::every]])
        axis.set_xlabel("epoch")
    axes[0].set_ylabel("points of accuracy lost")
    axes[1].legend(frameon=False, fontsize=8)
    drawing.savefig(file, metadata={"Date": None})


def main() -> None:
    """Fill the page."""
    data = json.loads((DOCS / "bytes.json").read_text(encoding="utf-8"))
    tracks = bearing_tracks(RECORDS / "bytes-bearing")
    larger = bearing_tracks(RECORDS / "bytes-bearing-cifar10")
    figure(tracks, DOCS / "bearing.svg", 2)
    figure(larger, DOCS / "bearing-cifar10.svg", 1)
    images, text = (read_study(STUDIES / f"{name}.yaml") for name in ("cifar10", "text"))
    texts = records_of(text, RECORDS / "bytes-text")
    searches = {"budget": budget_table, "search": search_table}
    fill(
        DOCS / "bytes.md",
        {
            "images": quality_table(data["cifar10-fast"], "accuracy", "accuracy on test, %", 100, 1),
            "images judged": judged_table(images, records_of(images, RECORDS / "weights-study"), METRICS["accuracy"]),
            "images packed": packed_table(data["cifar10-fast"]),
            "text": quality_table(data["tinyshakespeare"], "bits_per_byte", "bits per byte on test", 1, 3),
            "text pruned": pruned_table(texts, "bits_per_byte", 1, 3),
            "text judged": judged_table(text, texts, METRICS["bits_per_byte"]),
            "text packed": packed_table(data["tinyshakespeare"]),
            **{name: made(data[name]) for name, made in searches.items() if name in data},
            "bearing": bearing_table(tracks),
            "bearing cifar10": bearing_table(larger),
        },
    )


if __name__ == "__main__":
    main()
