"""The figures of docs/evidence/medclm-curriculum.md: five schedules, three seeds, equal optimizer steps, held-out patients.

python FILE shrink SET SMALL                           # a copy of a built set with images of 256 pixels at most
python FILE study SET STUDY [STEPS BATCH QUESTIONS]   # goes on where it stopped
python FILE read STUDY NAME                           # -> docs/evidence/medclm-curriculum.json
python FILE simulate                                   # the schedulers on given losses, no training
python FILE tables                                    # the JSON file's figures into the page
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from evidence_page import fill, spread, table

from trimtab.curricula import create
from trimtab.files import write_text
from trimtab.studies.statistics import Estimate, estimate

FOLDER = Path(__file__).parent.parent / "docs" / "evidence"
PAGE, FIGURES = FOLDER / "medclm-curriculum.md", FOLDER / "medclm-curriculum.json"
SCHEDULES = ("adaptive", "released", "linear", "mixed", "easy_only")
BEFORE = "adaptive_trial_0"
"""`Adaptive(trial=0)`, as it was when the study began."""
MEASURED = (*SCHEDULES, BEFORE)
SEEDS = (0, 1, 2)
RULES = (
    ("closed.1", "all", "all"), ("f1.1", "all", "all"), ("closed.1", "stage", "hard"), ("f1.1", "stage", "hard"),
    ("iou.1", "stage", "easy"), ("iou.1", "stage", "medium"),
    ("box-given.1", "stage", "medium"), ("agrees.1", "stage", "medium"),
)  # fmt: skip


def shrink(data: Path, out: Path, side: int = 256) -> None:
    """Copy a built set, its images no larger than `side`: the model sees 64 x 64 pixels, and reading large ones costs more
    than a step. Boxes are relative to the image, so nothing else changes."""
    import shutil

    from PIL import Image

    shutil.copytree(data, out)
    for file in sorted((out / "images").iterdir()):
        with Image.open(file) as picture:
            small = picture.convert("RGB")
        small.thumbnail((side, side), Image.Resampling.LANCZOS)
        small.save(file)


def study(data: Path, out: Path, steps: int = 600, batch: int = 16, limit: int = 480) -> None:
    """Every run trained, then evaluated on the test split."""
    import torch

    from trimtab.cli.arguments import Output
    from trimtab.cli.medclm.evaluate import EvaluateArguments, measure, questions
    from trimtab.medclm.training.options import TrainOptions
    from trimtab.medclm.training.run import train

    torch.set_num_threads(1)
    for seed in SEEDS:
        for schedule in SCHEDULES:
            run = out / f"{schedule}-{seed}"
            options = TrainOptions(
                schedule=schedule, steps=steps, epochs=30, batch=batch, lr=5e-3, seed=seed, save_every=steps
            )
            found = train(data, run, options)
            if not (run / "evaluation.json").is_file():
                given = EvaluateArguments(run, limit=limit, output=Output(quiet=True))
                measure(given, data, run, *questions(given, data))
            print(f"{schedule} {seed}: trained in {found['seconds']:.0f} s", flush=True)


def read(out: Path, name: str) -> None:
    """Add the runs of a study to the JSON file."""
    rows = []
    for schedule in MEASURED:
        for seed in SEEDS:
            run = out / f"{schedule}-{seed}"
            if not (run / "evaluation.json").is_file():
                continue
            about = json.loads((run / "run.json").read_text(encoding="utf-8"))
            found = json.loads((run / "evaluation.json").read_text(encoding="utf-8"))
            decisions = [json.loads(line) for line in (run / "stages.jsonl").read_text(encoding="utf-8").splitlines()]
            used = [
                one for one in decisions if one["epoch"] < about["options"]["epochs"] and any(one["shares"].values())
            ]
            shares = {
                stage: sum(one["shares"][stage] for one in used) / len(used) for stage in ("easy", "medium", "hard")
            }
            values = {
                f"{system}/{row['rule']}/{row['group']}/{row['name']}": [row["value"], row["n"]]
                for system, one in found["systems"].items()
                for row in one["rows"]
                if (row["rule"], row["group"], row["name"]) in RULES
            }
            kept = {key: about["options"][key] for key in ("steps", "epochs", "batch", "lr")}
            rows.append({"schedule": schedule, "seed": seed, "shares": shares, "values": values, **kept})
    everything: dict[str, Any] = json.loads(FIGURES.read_text(encoding="utf-8")) if FIGURES.is_file() else {}
    write_text(FIGURES, json.dumps({**everything, name: rows}, indent=1) + "\n")
    print(f"{name}: {len(rows)} runs")


def _of(rows: Sequence[dict[str, Any]], schedule: str, key: str) -> dict[int, float]:
    return {row["seed"]: row["values"][key][0] for row in rows if row["schedule"] == schedule and key in row["values"]}


def _estimate(values: Sequence[float]) -> Estimate | None:
    return estimate(values) if values else None


def _results(rows: Sequence[dict[str, Any]]) -> str:
    lines = []
    for system, schedules in (("model", MEASURED), ("text only", MEASURED), ("majority", ("adaptive",))):
        for schedule in schedules:
            cells = []
            for rule, group, name in RULES:
                found = list(_of(rows, schedule, f"{system}/{rule}/{group}/{name}").values())
                alike = system == "majority" and found
                cells.append(f"{100 * found[0]:.1f}" if alike else spread(_estimate(found), 100, 1))
            label = {"model": schedule, "text only": f"*{schedule}, images of others*", "majority": "*majority guess*"}[
                system
            ]
            lines.append([label, *cells])
    counts = next(row["values"] for row in rows)
    head = [f"{rule}, {name} (n {counts[f'model/{rule}/{group}/{name}'][1]})" for rule, group, name in RULES]
    return table(["schedule", *head], lines)


def _paired(rows: Sequence[dict[str, Any]], first: tuple[str, str], second: tuple[str, str]) -> list[str]:
    """(system, schedule) minus another, paired by seed, one cell a rule; bold where the interval excludes zero."""
    cells = []
    for rule, group, name in RULES:
        one, other = (_of(rows, schedule, f"{system}/{rule}/{group}/{name}") for system, schedule in (first, second))
        found = _estimate([one[seed] - other[seed] for seed in one if seed in other])
        told = found is not None and found.half is not None and abs(found.mean) > found.half
        cells.append(f"**{spread(found, 100, 1, signed=True)}**" if told else spread(found, 100, 1, signed=True))
    return cells


def _differences(rows: Sequence[dict[str, Any]]) -> str:
    lines = [
        [f"{one} - mixed", *_paired(rows, ("model", one), ("model", "mixed"))] for one in MEASURED if one != "mixed"
    ]
    lines += [
        [f"{one}: its own images - images of others", *_paired(rows, ("model", one), ("text only", one))]
        for one in MEASURED
    ]
    return table(["difference", *(f"{rule}, {name}" for rule, _, name in RULES)], lines)


def _shares(rows: Sequence[dict[str, Any]]) -> str:
    lines = []
    for schedule in MEASURED:
        found = [row["shares"] for row in rows if row["schedule"] == schedule]
        cells = [spread(_estimate([one[stage] for one in found]), 100, 1) for stage in ("easy", "medium", "hard")]
        lines.append([schedule, str(len(found)), *cells])
    return table(["schedule", "seeds", "easy, %", "medium, %", "hard, %"], lines)


def simulate(epochs: int = 100) -> None:
    """Shares when every stage's loss falls as 0.3 + exp(-epoch / 20), Medium's and Hard's a constant multiple of Easy's."""
    rows = []
    for medium in (0.45, 0.6, 0.8, 1.0, 1.2, 1.5, 2.0):
        for name in ("released", "adaptive"):
            scheduler, factor = create(name), {"easy": 1.0, "medium": medium, "hard": 1.25 * medium}
            scheduler.add_domain("d")
            shares = []
            for epoch in range(epochs):
                shares.append(scheduler.shares("d"))
                shown = {stage for stage, share in shares[-1].items() if share > 1e-4} | set(scheduler.stale("d"))
                for stage in shown:
                    scheduler.observe("d", stage, factor[stage] * (0.3 + math.exp(-epoch / 20)))
                scheduler.end_epoch()
            means = {stage: sum(one[stage] for one in shares) / epochs for stage in scheduler.stages}
            rows.append({"schedule": name, "medium": medium, "shares": means})
    everything = json.loads(FIGURES.read_text(encoding="utf-8")) if FIGURES.is_file() else {}
    write_text(FIGURES, json.dumps({**everything, "simulation": rows}, indent=1) + "\n")


def _simulation(rows: Sequence[dict[str, Any]]) -> str:
    head = ["loss of Medium / loss of Easy", *(f"{name}: easy, medium, hard, %" for name in ("released", "adaptive"))]
    lines = []
    for medium in dict.fromkeys(row["medium"] for row in rows):
        found = [row["shares"] for row in rows if row["medium"] == medium]
        lines.append([f"{medium:g}", *(", ".join(f"{100 * share:.1f}" for share in one.values()) for one in found)])
    return table(head, lines)


def tables() -> None:
    """Fill the page."""
    everything = json.loads(FIGURES.read_text(encoding="utf-8"))
    blocks = {"simulation": _simulation(everything.pop("simulation"))}
    for name, rows in everything.items():
        blocks |= {
            f"{name} results": _results(rows), f"{name} differences": _differences(rows), f"{name} shares": _shares(rows)
        }  # fmt: skip
    fill(PAGE, blocks)


if __name__ == "__main__":
    command, *rest = sys.argv[1:]
    if command == "shrink":
        shrink(Path(rest[0]), Path(rest[1]))
    elif command == "study":
        study(Path(rest[0]), Path(rest[1]), *map(int, rest[2:]))
    elif command == "simulate":
        simulate()
    elif command == "read":
        read(Path(rest[0]), rest[1])
    else:
        tables()
