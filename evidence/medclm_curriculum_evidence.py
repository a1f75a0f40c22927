"""The figures of docs/evidence/medclm-curriculum.md: seven schedules on a tiny model that sees, equal steps, held-out patients.

python FILE shrink SET SMALL             # a copy of a built set with images of 256 pixels at most
python FILE few SET FEW                  # a copy with the boxes, Easy and Medium rows of a quarter of the training patients
python FILE study SET WORK NAME [SCHEDULE ...]   # goes on where it stopped -> docs/evidence/medclm-curriculum.json
python FILE grounding SET WORK [SEED ...] # a set built with --box-answers: overlap of boxes with the right ones
python FILE simulate                     # the schedulers on given losses, no training
python FILE tables                       # the JSON file's figures into the page
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import sys
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from evidence_page import fill, table
from numpy.typing import NDArray

from trimtab.curricula import create
from trimtab.files import write_text

FOLDER = Path(__file__).parent.parent / "docs" / "evidence"
PAGE, FIGURES = FOLDER / "medclm-curriculum.md", FOLDER / "medclm-curriculum.json"
SCHEDULES = ("mixed", "adaptive", "linear", "reverse", "easy_only", "hard_only", "released")
SEEDS = (0, 1, 2)
BATCH, EPOCHS = 16, 20
STEPS = {"chest": 640, "few": 160, "fundus": 160, "grounding": 640}
"""Optimizer steps: 640 were chosen on drawn pictures of neither split, 160 on the validation split; with `mixed`, seed 0."""
QUESTIONS = {"few": 480, "fundus": 480, "grounding": 300}
"""So many test questions, evenly spread; else all."""
SHOWN = ("own", "other", "blank")
CONTRASTS = {
    "chest": [(name, "mixed") for name in SCHEDULES if name != "mixed"],
    "fundus": [(name, "mixed") for name in ("adaptive", "easy_only", "hard_only")],
    "few": [("adaptive", "mixed"), ("adaptive", "hard_only"), ("mixed", "hard_only")],
}
"""Named before the test split was looked at; on the primary measure."""
PRIMARY = ("medium", "hard")
"""Stages of the primary measure: right answers to questions without a box drawn or quoted."""
DRAWS = 4000


def shrink(data: Path, out: Path, side: int = 256) -> None:
    """Copy a built set, its images no larger than `side`: the model sees 128 x 128 pixels, and reading large ones costs more
    than a step. Boxes are relative to the image, and organ masks are averaged over patches, so nothing else changes."""
    from PIL import Image

    shutil.copytree(data, out)
    for file in sorted((out / "images").iterdir()):
        with Image.open(file) as picture:
            small = picture.convert("RGB")
        small.thumbnail((side, side), Image.Resampling.LANCZOS)
        small.save(file)


def few(data: Path, out: Path, share: float = 0.25) -> None:
    """Copy a built set in which only this share of the training patients, by hash, has boxes: the others keep their Hard rows
    alone, and the tower is pretrained without them."""

    def boxed(row: Mapping[str, Any]) -> bool:
        digest = hashlib.sha256(str(row["patient"]).encode()).digest()
        return row["split"] != "train" or int.from_bytes(digest[:4]) / 2**32 < share

    out.mkdir(parents=True)
    for name in ("images", "organs"):
        (out / name).symlink_to((data / name).resolve())
    shutil.copy(data / "manifest.json", out / "manifest.json")
    for name in ("rows.jsonl", "records.jsonl"):
        lines = (data / name).read_text(encoding="utf-8").splitlines()
        kept = [line for line in lines if boxed(row := json.loads(line)) or row.get("stage") == "hard"]
        write_text(out / name, "\n".join(kept) + "\n")


def study(data: Path, work: Path, name: str, schedules: Sequence[str] = SCHEDULES) -> None:
    """Towers, runs and answers, seed by seed; every finished run is a record of the JSON file at once."""
    import torch

    from trimtab.medclm.building import DataSetFolder
    from trimtab.medclm.evaluation.questions import questions_of
    from trimtab.medclm.training.options import TrainOptions
    from trimtab.medclm.training.pretrain import PretrainOptions, pretrain
    from trimtab.medclm.training.run import train

    torch.set_num_threads(1)
    folder = DataSetFolder(data)
    asked = [replace(one, reason=False) for one in questions_of(folder, ["test"])]
    steps, most = STEPS[name], QUESTIONS.get(name, len(asked))
    if len(asked) > most:
        asked = [asked[place * len(asked) // most] for place in range(most)]
    _keep(name, "questions", _described(asked, questions_of(folder, ["train"])))
    for seed in SEEDS:
        tower = pretrain(data, work / f"tower-{seed}", PretrainOptions(seed=seed))
        _keep(name, f"tower-{seed}", {key: tower[key] for key in ("cpu_seconds", "pictures", "figures")})
        for schedule in schedules:
            if f"{schedule}-{seed}" in _figures().get(name, {}):
                continue
            run, start = work / f"{schedule}-{seed}", time.process_time()
            options = TrainOptions(
                schedule=schedule, steps=steps, epochs=EPOCHS, batch=BATCH, seed=seed, save_every=steps, plain=1.0,
                tower=str(work / f"tower-{seed}"),
            )  # fmt: skip
            train(data, run, options)
            trained = time.process_time() - start
            record = {"cpu_seconds": round(trained, 1), "shares": _shares(run), "right": _right(run, asked)}
            _keep(name, f"{schedule}-{seed}", record)
            shutil.rmtree(run / "checkpoints", ignore_errors=True)
            print(
                f"{name} {schedule} {seed}: {trained:.0f} + {time.process_time() - start - trained:.0f} s", flush=True
            )


def grounding(data: Path, work: Path, seeds: Sequence[int] = SEEDS) -> None:
    """Overlap of the model's boxes with the right ones (boxes.1), of test questions whose answer is one box or more.

    `data` is built with --box-answers. The guess is the middle box of the class among training lesions: the median of each
    corner.
    """
    import torch

    from trimtab.medclm.building import DataSetFolder
    from trimtab.medclm.evaluation.metrics import scores
    from trimtab.medclm.evaluation.parsing import parse_reply
    from trimtab.medclm.evaluation.questions import questions_of
    from trimtab.medclm.training.options import TrainOptions
    from trimtab.medclm.training.pretrain import PretrainOptions, pretrain
    from trimtab.medclm.training.run import train

    torch.set_num_threads(1)
    folder = DataSetFolder(data)
    asked = [replace(one, reason=False) for one in questions_of(folder, ["test"]) if one.answer_boxes]
    most = QUESTIONS["grounding"]
    asked = [asked[place * len(asked) // most] for place in range(most)]
    middle = _middle_boxes(folder)
    guesses = [f"Answer: [{', '.join(f'{side:.4f}' for side in middle[one.domain])}]" for one in asked]
    _keep("grounding", "questions", {
        "patient": [one.cluster for one in asked], "class": [one.domain.rsplit(" x ", 1)[0] for one in asked],
        "guess": [_overlap(scores(one, parse_reply(guess))) for one, guess in zip(asked, guesses, strict=True)],
    })  # fmt: skip
    for seed in seeds:
        if f"mixed-{seed}" in _figures()["grounding"]:
            continue
        pretrain(data, work / f"tower-{seed}", PretrainOptions(seed=seed))
        run, start, steps = work / f"mixed-{seed}", time.process_time(), STEPS["grounding"]
        options = TrainOptions(
            schedule="mixed", steps=steps, epochs=EPOCHS, batch=BATCH, seed=seed, save_every=steps, plain=1.0,
            tower=str(work / f"tower-{seed}"),
        )  # fmt: skip
        train(data, run, options)
        trained = time.process_time() - start
        found = {
            shown: [_overlap(scores(one, parse_reply(reply))) for one, reply in zip(asked, said, strict=True)]
            for shown, said in _said(run, asked, SHOWN[:2], most=400).items()
        }
        _keep("grounding", f"mixed-{seed}", {"cpu_seconds": round(trained, 1), "overlap": found})
        print(f"grounding {seed}: {trained:.0f} s", flush=True)


def _overlap(found: Mapping[str, float]) -> float:
    return round(found["boxes.1"], 3)


def _middle_boxes(folder: Any) -> dict[str, list[float]]:
    boxes: dict[str, list[Any]] = {}
    for record in folder.records():
        for lesion in record.lesions if record.split == "train" else ():
            boxes.setdefault(f"{lesion.label} x {record.modality}", []).append(lesion.box.corners)
    middle = {domain: np.median(some, axis=0).tolist() for domain, some in boxes.items()}
    everything = np.median([one for some in boxes.values() for one in some], axis=0).tolist()
    return defaultdict(lambda: everything, middle)


def _described(asked: Sequence[Any], training: Sequence[Any]) -> dict[str, Any]:
    from trimtab.medclm.evaluation.majority import Majority, WithBoxNumbers

    majority = Majority(training)
    nearest = WithBoxNumbers(training, majority)
    return {
        "patient": [one.cluster for one in asked], "stage": [one.stage for one in asked],
        "class": [one.domain.rsplit(" x ", 1)[0] for one in asked], "closed": [int(bool(one.choices)) for one in asked],
        "majority": "".join(str(_is_right(one, majority.answer(one))) for one in asked),
        "numbers": "".join(str(_is_right(one, nearest.answer(one))) for one in asked),
    }  # fmt: skip


def _is_right(question: Any, answer: str) -> int:
    from trimtab.medclm.evaluation.metrics import scores
    from trimtab.medclm.evaluation.parsing import parse_reply

    found = scores(question, parse_reply(f"Answer: {answer}" if "Answer:" not in answer else answer))
    return int(found.get("closed.1", found.get("named.1", found.get("exact.1", 0))))


def _right(run: Path, asked: Sequence[Any]) -> dict[str, str]:
    """Which questions are answered right, as digits, with each kind of picture."""
    return {
        shown: "".join(str(_is_right(one, reply)) for one, reply in zip(asked, said, strict=True))
        for shown, said in _said(run, asked, SHOWN).items()
    }


def _said(run: Path, asked: Sequence[Any], shown: Sequence[str], most: int = 192) -> dict[str, list[str]]:
    """The replies of a finished run with each kind of picture."""
    from trimtab.medclm.evaluation.generation import replies
    from trimtab.medclm.evaluation.pictures import with_pictures
    from trimtab.medclm.training.models import load_finished

    model, processor = load_finished(run)
    return {one: replies(model, processor, with_pictures(asked, one), batch=64, most=most) for one in shown}


def _shares(run: Path) -> dict[str, float]:
    lines = (run / "stages.jsonl").read_text(encoding="utf-8").splitlines()
    used = [one for one in map(json.loads, lines) if one["epoch"] < EPOCHS and any(one["shares"].values())]
    return {
        stage: round(sum(one["shares"][stage] for one in used) / len(used), 4) for stage in ("easy", "medium", "hard")
    }


def _figures() -> dict[str, Any]:
    return json.loads(FIGURES.read_text(encoding="utf-8")) if FIGURES.is_file() else {}


def _keep(name: str, key: str, record: Any) -> None:
    everything = _figures()
    everything.setdefault(name, {})[key] = record
    lines = [
        f"{json.dumps(part)}: {{\n" + ",\n".join(f" {json.dumps(k)}: {json.dumps(v)}" for k, v in one.items()) + "\n}"
        for part, one in everything.items()
    ]
    write_text(FIGURES, "{\n" + ",\n".join(lines) + "\n}\n")


Marks = NDArray[np.float64]


def _marks(part: Mapping[str, Any], schedule: str, shown: str = "own") -> Marks:
    """(seeds, questions), 1 where right, of the seeds that are there."""
    rows = [part[key]["right"][shown] for seed in SEEDS if (key := f"{schedule}-{seed}") in part]
    return np.array([[int(mark) for mark in row] for row in rows], dtype=float).reshape(
        len(rows), len(part["questions"]["stage"])
    )


def _draws(part: Mapping[str, Any], marks: Marks, chosen: NDArray[np.bool_]) -> Marks:
    """Means of the chosen questions when seeds, and within them whole patients, are drawn with replacement."""
    names, which = np.unique(np.array(part["questions"]["patient"])[chosen], return_inverse=True)
    sums = np.stack([np.bincount(which, row[chosen], len(names)) for row in marks])
    counts = np.bincount(which, minlength=len(names))
    found = np.zeros(DRAWS)
    for weights, seeds in _resampled(len(names), len(marks)):
        found += np.einsum("dp,dp->d", weights, sums[seeds]) / (weights @ counts) / len(marks)
    return found


@lru_cache(maxsize=12)
def _resampled(patients: int, seeds: int) -> list[tuple[Any, Any]]:
    """(how often each patient is drawn, which seed), once for each seed drawn."""
    generator = np.random.default_rng(0)
    return [
        (
            generator.multinomial(patients, np.full(patients, 1 / patients), size=DRAWS),
            generator.integers(seeds, size=DRAWS),
        )
        for _ in range(seeds)
    ]


def _of(
    part: Mapping[str, Any], stages: Sequence[str] = (), label: str = "", *, closed: bool | None = None
) -> NDArray[np.bool_]:
    about = part["questions"]
    chosen = np.ones(len(about["stage"]), dtype=bool)
    if stages:
        chosen &= np.isin(about["stage"], stages)
    if label:
        chosen &= np.array(about["class"]) == label
    return chosen if closed is None else chosen & (np.array(about["closed"]) == int(closed))


def _percent(
    part: Mapping[str, Any], marks: Marks, chosen: NDArray[np.bool_], level: float = 0.95, *, signed: bool = False
) -> str:
    low, high = 100 * np.quantile(_draws(part, marks, chosen), [(1 - level) / 2, (1 + level) / 2])
    sign = "+" if signed else ""
    return f"{100 * marks[:, chosen].mean():{sign}.1f} ({low:{sign}.1f} to {high:{sign}.1f})"


def _there(part: Mapping[str, Any]) -> list[str]:
    return [name for name in SCHEDULES if len(_marks(part, name))]


def _baseline(part: Mapping[str, Any], which: str) -> Marks:
    return np.array([[int(mark) for mark in part["questions"][which]]], dtype=float)


def _results(part: Mapping[str, Any]) -> str:
    groups = {
        "medium and hard": _of(part, PRIMARY), "closed, all": _of(part, closed=True),
        **{stage: _of(part, [stage]) for stage in ("easy", "medium", "hard")},
    }  # fmt: skip
    head = ["schedule (seeds)", *(f"{name} (n {int(chosen.sum())})" for name, chosen in groups.items())]
    lines = [
        [
            f"{name} ({len(_marks(part, name))})",
            *(_percent(part, _marks(part, name), chosen) for chosen in groups.values()),
        ]
        for name in _there(part)
    ]
    for which, label in (("majority", "*majority guess*"), ("numbers", "*text with box numbers*")):
        marks = _baseline(part, which)
        lines.append([label, *(f"{100 * marks[:, chosen].mean():.1f}" for chosen in groups.values())])
    return table(head, lines)


def _looking(part: Mapping[str, Any]) -> str:
    closed = _of(part, closed=True)
    lines = []
    for name in _there(part):
        own, other, blank = (_marks(part, name, shown) for shown in SHOWN)
        lines.append([
            name, *(f"{100 * marks[:, closed].mean():.1f}" for marks in (own, other, blank)),
            _percent(part, own - other, closed, signed=True), _percent(part, own - blank, closed, signed=True),
        ])  # fmt: skip
    return table(["schedule", "own pictures", "others' pictures", "blank", "own - others'", "own - blank"], lines)


def _classes(part: Mapping[str, Any]) -> str:
    labels = sorted(set(part["questions"]["class"]))
    head = ["schedule", *(f"{label} (n {int(_of(part, label=label).sum())})" for label in labels)]
    lines = [
        [name, *(f"{100 * _marks(part, name)[:, _of(part, label=label)].mean():.1f}" for label in labels)]
        for name in _there(part)
    ]
    best = _there(part)[0]
    others = [f"{100 * _marks(part, best, 'other')[:, _of(part, label=label)].mean():.1f}" for label in labels]
    guesses = [f"{100 * _baseline(part, 'majority')[:, _of(part, label=label)].mean():.1f}" for label in labels]
    return table(head, [*lines, [f"*{best}, others' pictures*", *others], ["*majority guess*", *guesses]])


def _chance(part: Mapping[str, Any]) -> str:
    """Closed questions of one class: with the own pictures minus with others', and minus the majority guess."""
    labels = [label for label in sorted(set(part["questions"]["class"])) if label != "no finding"]
    lines = []
    for name in ("mixed", "adaptive"):
        own, other = (_marks(part, name, shown) for shown in ("own", "other"))
        for label in labels:
            chosen, guess = _of(part, label=label, closed=True), _baseline(part, "majority")
            lines.append([
                name, f"{label} (n {int(chosen.sum())})",
                *(f"{100 * marks[:, chosen].mean():.1f}" for marks in (own, other, guess)),
                _percent(part, own - other, chosen, signed=True), _percent(part, own - guess, chosen, signed=True),
            ])  # fmt: skip
    head = ["schedule", "class, closed questions", "own pictures", "others' pictures", "majority guess"]
    return table([*head, "own - others'", "own - guess"], lines)


def _grounding(part: Mapping[str, Any]) -> str:
    """Mean overlap by class, own pictures beside others' and the guess."""
    labels = np.array(part["questions"]["class"])
    seeds = [part[key]["overlap"] for seed in SEEDS if (key := f"mixed-{seed}") in part]
    own, other = (np.array([one[shown] for one in seeds]) for shown in ("own", "other"))
    guess = np.array([part["questions"]["guess"]])
    lines = []
    for label in ("", *sorted(set(labels))):
        chosen = (labels == label) | (not label)
        lines.append([
            f"{label or 'all'} (n {int(chosen.sum())})", *(f"{marks[:, chosen].mean():.3f}" for marks in (own, other, guess)),
            *(f"{100 * (marks[:, chosen] >= 0.5).mean():.1f}" for marks in (own, guess)),
            *(
                f"{marks[:, chosen].mean():+.3f} ({low:+.3f} to {high:+.3f})"
                for marks in (own - other, own - guess)
                for low, high in [np.quantile(_draws(part, marks, chosen), [0.025, 0.975])]
            ),
        ])  # fmt: skip
    head = [
        "class",
        "IoU, own pictures",
        "others'",
        "guess",
        "0.5 or more, %",
        "guess, %",
        "own - others'",
        "own - guess",
    ]
    return table(head, lines)


def _contrasts(name: str, part: Mapping[str, Any]) -> str:
    """Every contrast with its simultaneous interval (Bonferroni) and Holm's p."""
    pairs = [pair for pair in CONTRASTS[name] if set(pair) <= set(_there(part))]
    seeds = [min(len(_marks(part, one)) for one in pair) for pair in pairs]
    chosen = _of(part, PRIMARY)
    differences = [
        _marks(part, one)[:count] - _marks(part, other)[:count]
        for (one, other), count in zip(pairs, seeds, strict=True)
    ]
    drawn = [_draws(part, difference, chosen) for difference in differences]
    raw = [min(1.0, 2 * max(min((d <= 0).mean(), (d >= 0).mean()), 1 / DRAWS)) for d in drawn]
    order, reached, held = sorted(range(len(pairs)), key=lambda place: raw[place]), 0.0, {}
    for rank, place in enumerate(order):
        reached = max(reached, min(1.0, (len(CONTRASTS[name]) - rank) * raw[place]))
        held[place] = reached
    level = 1 - 0.05 / len(CONTRASTS[name])
    lines = []
    for place, (one, other) in enumerate(pairs):
        told = "told apart" if held[place] < 0.05 else "not told apart"
        lines.append([
            f"{one} - {other}", str(seeds[place]), _percent(part, differences[place], chosen, level, signed=True),
            f"{held[place]:.3f}", told if seeds[place] == len(SEEDS) else "unfinished",
        ])  # fmt: skip
    head = ["contrast, medium and hard", "seeds", f"points ({100 * level:.1f} % interval)", "p (Holm)", "verdict"]
    return table(head, lines)


def _mixes(part: Mapping[str, Any]) -> str:
    lines = []
    for name in _there(part):
        found = [part[key]["shares"] for seed in SEEDS if (key := f"{name}-{seed}") in part]
        lines.append(
            [name, *(f"{100 * np.mean([one[stage] for one in found]):.1f}" for stage in ("easy", "medium", "hard"))]
        )
    return table(["schedule", "easy, %", "medium, %", "hard, %"], lines)


def _towers(part: Mapping[str, Any]) -> str:
    found = [part[key] for seed in SEEDS if (key := f"tower-{seed}") in part]
    labels = list(found[0]["figures"]["classes"])
    lines = [
        [
            kind,
            *(", ".join(f"{one['figures']['classes'][label][f'auc_{kind}']:.2f}" for one in found) for label in labels),
        ]
        for kind in ("pictures", "patches")
    ]
    seconds = ", ".join(f"{one['cpu_seconds']:.0f}" for one in found)
    return table([f"area under the curve over (CPU seconds {seconds})", *labels], lines)


def simulate(epochs: int = 100) -> None:
    """Shares when every stage's loss falls as 0.3 + exp(-epoch / 20), Medium's and Hard's a constant multiple of Easy's."""
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
            _keep("simulation", f"{name}-{medium:g}", means)


def _simulation(part: Mapping[str, Any]) -> str:
    names = ("released", "adaptive")
    head = ["loss of Medium / loss of Easy", *(f"{name}: easy, medium, hard, %" for name in names)]
    factors = dict.fromkeys(key.rpartition("-")[2] for key in part)
    lines = [
        [factor, *(", ".join(f"{100 * share:.1f}" for share in part[f"{name}-{factor}"].values()) for name in names)]
        for factor in factors
    ]
    return table(head, lines)


def tables() -> None:
    """Fill the page."""
    everything = _figures()
    blocks = {"simulation": _simulation(everything.pop("simulation"))}
    for name, part in everything.items():
        if name == "grounding":
            blocks |= {"grounding results": _grounding(part)}
            continue
        if name == "chest":
            blocks |= {"chest chance": _chance(part)}
        blocks |= {
            f"{name} contrasts": _contrasts(name, part), f"{name} results": _results(part),
            f"{name} looking": _looking(part), f"{name} classes": _classes(part), f"{name} shares": _mixes(part),
            f"{name} towers": _towers(part),
        }  # fmt: skip
    fill(PAGE, blocks)


if __name__ == "__main__":
    command, *rest = sys.argv[1:]
    if command in ("shrink", "few"):
        {"shrink": shrink, "few": few}[command](Path(rest[0]), Path(rest[1]))
    elif command == "grounding":
        grounding(Path(rest[0]), Path(rest[1]), [int(seed) for seed in rest[2:]] or SEEDS)
    elif command == "study":
        study(Path(rest[0]), Path(rest[1]), rest[2], rest[3:] or SCHEDULES)
    else:
        {"simulate": simulate, "tables": tables}[command]()
