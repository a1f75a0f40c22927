"""What is a question set of MedCLM worth? Counts, host rules, quality control, answer priors, on real and on drawn images.

`python evidence/medclm_evidence.py DATA OUT` (DATA holds annotations_coco.json and images/ of the fundus set) builds the sets
in OUT, where finished ones are kept, writes docs/evidence/medclm-data.json and fills the tables of the page beside it.
"""

from __future__ import annotations

import json
import random
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from evidence_page import fill, table

from trimtab.cli.medclm.demo import real_options
from trimtab.files import write_text
from trimtab.medclm.building import BuildOptions, BuildResult, build
from trimtab.medclm.hosts import assign_hosts
from trimtab.medclm.organs.rle import read_organs
from trimtab.medclm.phantom.files import write_phantom
from trimtab.medclm.quality import QualityControl
from trimtab.medclm.records import Box, ImageRecord, Lesion, Row
from trimtab.medclm.rules import RuleName, host_rules
from trimtab.medclm.texts.generator import target_of
from trimtab.medclm.texts.wording import quoted

PAGE = Path(__file__).parents[1] / "docs" / "evidence" / "medclm-data.md"
RULES: tuple[RuleName, ...] = ("inside_fraction", "mask_iou", "box_iou")
DRAWN = 150


def phantom_options(folder: Path) -> BuildOptions:
    """Drawn chest X-rays, whose annotations carry the lobe each finding was put into."""
    write_phantom(folder, DRAWN, 1, 256)
    return BuildOptions(
        detections=folder / "detections.json",
        format="coco",
        images=folder / "images",
        reader={"modality": "chest X-ray"},
        organs=(("rle", {"folder": folder / "organs"}),),
        preset="chest",
    )


def organ_by(lesion: Lesion) -> str:
    return lesion.host.organ if lesion.host is not None else "none"


def masks_of(built: BuildResult, record: ImageRecord) -> dict[str, Any]:
    return dict(read_organs(built.folder.organs / str(record.organ_file)))


def decided(
    built: BuildResult, preset: str
) -> list[tuple[ImageRecord, Lesion, dict[str, Any], dict[RuleName, Lesion]]]:
    """For each lesion: its image, itself, the masks, and what each rule decides."""
    found = []
    for record in built.folder.records():
        if not record.lesions:
            continue
        masks = masks_of(built, record)
        by_rule = {rule: assign_hosts(record, masks, host_rules(preset, rule)).lesions for rule in RULES}
        for number, lesion in enumerate(record.lesions):
            found.append((record, lesion, masks, {rule: by_rule[rule][number] for rule in RULES}))
    return found


def at_the_middle(lesion: Lesion, masks: dict[str, Any], rules: Any) -> str:
    """The most specific organ at the pixel in the middle of the box; "none" where no mask is."""
    names = []
    for name, mask in masks.items():
        high, wide = mask.shape
        x, y = lesion.box.centre
        if mask[min(int(y * high), high - 1), min(int(x * wide), wide - 1)]:
            names.append(name)
    inner = [name for name in names if not any(name in rules.ancestors(other) for other in names)]
    return min(inner) if inner else "none"


def host_tables(real: BuildResult, drawn: BuildResult, source: Path) -> tuple[dict[str, Any], dict[str, str]]:
    truth = {str(one["id"]): one["host"] for one in json.loads(source.read_text())["annotations"]}
    fundus, chest = decided(real, "retina"), decided(drawn, "chest")
    rules = host_rules("retina")
    middle = {lesion.lesion_id: at_the_middle(lesion, masks, rules) for _, lesion, masks, _ in fundus}
    counted: dict[str, Any] = {}
    rows = []
    for rule in RULES:
        agree = sum(organ_by(by[rule]) == middle[lesion.lesion_id] for _, lesion, _, by in fundus)
        lungs = [
            (organ_by(by[rule]), truth[lesion.lesion_id.split("/")[-1]])
            for _, lesion, _, by in chest
            if by[rule].host is not None
        ]
        exact = sum(host == true for host, true in lungs)
        inside = sum(true in (host, *host_rules("chest").ancestors(host)) for host, true in lungs)
        fallback = [sum(getattr(by[rule].host, "fallback", False) for *_, by in part) for part in (fundus, chest)]
        counted[rule] = {
            "middle": agree,
            "real": len(fundus),
            "drawn right": exact,
            "drawn right or a part of it": inside,
            "drawn": len(lungs),
            "fallback": fallback,
        }
        rows.append(
            [
                rule,
                f"{agree:,} of {len(fundus):,} ({agree / len(fundus):.1%})",
                f"{exact} of {len(lungs)} ({exact / len(lungs):.1%})",
                f"{inside} ({inside / len(lungs):.1%})",
                f"{fallback[0]}, {fallback[1]}",
            ]
        )
    blocks = {
        "rules": table(
            [
                "rule",
                "fundus: organ under the box's middle",
                "drawn: organ it was drawn into",
                "or a part of it",
                "by the nearest organ",
            ],
            rows,
        )
    }
    wrong: Counter[tuple[str, str, str]] = Counter()
    for _, lesion, _, by in chest:
        for rule in RULES:
            host = by[rule].host
            true = truth[lesion.lesion_id.split("/")[-1]]
            if host is not None and host.organ != true:
                wrong[rule, lesion.label, f"{true} -> {host.organ}"] += 1
    common = sorted(wrong.items(), key=lambda item: (RULES.index(item[0][0]), -item[1]))
    kept = [item for rule in RULES for item in [one for one in common if one[0][0] == rule][:4]]
    blocks["confusions"] = table(
        ["rule", "class", "truth -> decided", "times"], [[rule, label, what, str(n)] for (rule, label, what), n in kept]
    )
    examples: list[list[str]] = []
    for _, lesion, _, by in chest:
        hosts = {rule: by[rule].host for rule in RULES}
        names = {host.organ for host in hosts.values() if host is not None}
        if lesion.label == "nodule" and len(names) > 1 and len(examples) < 4:
            cells = [f"{host.organ} ({host.score:.3f})" if host is not None else "-" for host in hosts.values()]
            examples.append([quoted(lesion.box), truth[lesion.lesion_id.split("/")[-1]], *cells])
    blocks["nodules"] = table(["box of a drawn nodule", "truth", *RULES], examples)
    lung, rib = np.zeros((1000, 1000), dtype=bool), np.zeros((1000, 1000), dtype=bool)
    lung[100:900, 100:450], rib[495:525, 150:430] = True, True
    box = Box.of_pixels(250, 480, 310, 540, 1000, 1000)
    lesion = Lesion(lesion_id="1", image_id="a", label="nodule", box=box, source_row="a:1")
    record = ImageRecord(
        image_id="a", file="a.png", width=1000, height=1000, patient="p", modality="m", source="s", lesions=(lesion,)
    )
    one = []
    for rule in RULES:
        found = assign_hosts(record, {"right lung": lung, "rib": rib}, host_rules("general", rule)).lesions[0].host
        assert found is not None
        scores = dict([(found.organ, found.score), *found.runners_up])
        one.append([rule, f"{scores['right lung']:.3f}", f"{scores['rib']:.3f}", found.organ])
    blocks["case"] = table(["rule", "right lung", "rib", "host"], one)
    return counted, blocks


def sabotages() -> dict[str, Callable[[Row, ImageRecord, random.Random], dict[str, Any] | None]]:
    """Ways in which a generator could be wrong; each gives the changed texts, or None where it cannot be done to a row."""

    def other_answer(row: Row, record: ImageRecord, choose: random.Random) -> dict[str, Any] | None:
        swapped = {"yes": "no", "no": "yes"}.get(row.answer)
        if row.question_type == "count":
            swapped = str(int(row.answer) + 1)
        return {"answer": swapped} if swapped else None

    def other_class(row: Row, record: ImageRecord, choose: random.Random) -> dict[str, Any] | None:
        names = {"hard exudates": "hemorrhage", "hemorrhage": "hard exudates"}
        return {"answer": names[row.answer]} if row.question_type == "what" and row.answer in names else None

    def other_organ(row: Row, record: ImageRecord, choose: random.Random) -> dict[str, Any] | None:
        if row.question_type not in ("where", "organ") or "temporal" not in row.answer:
            return None
        return {name: getattr(row, name).replace("temporal", "nasal") for name in ("answer", "reasoning")}

    def other_box(row: Row, record: ImageRecord, choose: random.Random) -> dict[str, Any] | None:
        if row.box is None or not row.reasoning:
            return None
        moved = Box(x0=row.box.x0 * 0.9, y0=row.box.y0 * 0.9, x1=row.box.x1 * 0.9, y1=row.box.y1 * 0.9)
        return {"reasoning": row.reasoning.replace(quoted(row.box), quoted(moved))}

    def no_box(row: Row, record: ImageRecord, choose: random.Random) -> dict[str, Any] | None:
        return {"reasoning": row.reasoning.replace(quoted(row.box), "there")} if row.box and row.reasoning else None

    def other_eye(row: Row, record: ImageRecord, choose: random.Random) -> dict[str, Any] | None:
        for mine, other in (("left eye", "right eye"), ("right eye", "left eye")):
            if mine in row.reasoning:
                return {"reasoning": row.reasoning.replace(mine, other)}
        return None

    def leak(row: Row, record: ImageRecord, choose: random.Random) -> dict[str, Any] | None:
        return (
            {"question": f"{row.question} Is it {row.answer}?"}
            if row.question_type in ("what", "where", "organ")
            else None
        )

    def cut(row: Row, record: ImageRecord, choose: random.Random) -> dict[str, Any] | None:
        return {"reasoning": row.reasoning.rsplit("So ", 1)[0].strip()} if row.reasoning else None

    def german(row: Row, record: ImageRecord, choose: random.Random) -> dict[str, Any] | None:
        return {"question": "Was zeigt die Aufnahme und wo ist der Befund mit der Blutung?"} if not row.box else None

    named = {
        "answer turned round": other_answer,
        "other class": other_class,
        "other organ, text and answer": other_organ,
    }
    named |= {
        "another box in the reasoning": other_box,
        "no box in the reasoning": no_box,
        "other eye in the reasoning": other_eye,
    }
    return {**named, "answer in the question": leak, "reasoning without its conclusion": cut, "German question": german}


def quality_table(real: BuildResult, each: int = 300) -> tuple[dict[str, Any], str]:
    records = {record.image_id: record for record in real.folder.records()}
    rows = [row for row, _ in real.folder.rows()]
    random.Random(0).shuffle(rows)
    counted: dict[str, Any] = {}
    lines = []
    clean = sum(bool(QualityControl().faults(row, records[row.image_id])) for row in rows)
    lines.append(["none: the rows as built", f"{len(rows):,}", f"{clean}", "-"])
    for name, change in sabotages().items():
        tried = caught = 0
        reasons: Counter[str] = Counter()
        for row in rows:
            new = change(row, records[row.image_id], random.Random(row.row_id))
            if new is None or tried == each:
                continue
            texts = {"question": row.question, "reasoning": row.reasoning, "answer": row.answer, **new}
            target, reasoning, answer = target_of(texts["reasoning"], texts["answer"])
            spans = {"reasoning": reasoning, "answer": answer}
            faults = QualityControl().faults(
                row.model_copy(update={**texts, "target": target, "spans": spans}), records[row.image_id]
            )
            tried, caught = tried + 1, caught + bool(faults)
            reasons.update({fault.reason for fault in faults})
        counted[name] = {"rows": tried, "rejected": caught, "reasons": dict(reasons)}
        lines.append(
            [
                name,
                str(tried),
                f"{caught} ({caught / max(tried, 1):.1%})",
                "; ".join(f"{why} ({n})" for why, n in reasons.most_common(3)),
            ]
        )
    return counted, table(["what was done to a row", "rows", "rejected", "reasons"], lines)


def counts_table(statistics: Any) -> str:
    names = (
        "images by split",
        "images with lesions",
        "lesions by class",
        "lesions by organ",
        "lesions by zone",
        "rows by stage",
        "rows by split",
        "rows by domain",
        "rejected by reason",
        "not asked",
    )
    rows = [
        [name, ", ".join(f"{key} {value:,}" for key, value in statistics[name].items()) or "none"] for name in names
    ]
    return table(["", ""], rows)


def balance_tables(balanced: Any, plain: Any) -> dict[str, str]:
    def share(value: float | None) -> str:
        return "-" if value is None else f"{value:.1%}"

    priors = []
    for kind in balanced["priors"]:
        after, before = balanced["priors"][kind], plain["priors"].get(kind)
        shown = [share(one[part]) if one else "-" for part in ("train", "unseen") for one in (before, after)]
        priors.append(
            [kind, f"{before['rows']:,}" if before else "0", f"{after['rows']:,}", str(after["answers"]), *shown]
        )
    stages = []
    for stage in ("easy", "medium", "hard"):
        cells = []
        for found in (plain, balanced):
            yes, no = (found["yes and no by stage"].get(f"{stage} {word}", 0) for word in ("yes", "no"))
            cells.append(f"{yes:,} / {no:,} ({yes / max(yes + no, 1):.0%} yes)")
        stages.append([stage, *cells])
    head = [
        "question type",
        "rows, by turns",
        "rows, balanced",
        "answers",
        "guess on training rows, by turns",
        "balanced",
        "guess on unseen rows, by turns",
        "balanced",
    ]
    return {
        "priors": table(head, priors),
        "yes-no": table(["stage", "yes / no, questions by turns", "yes / no, balanced"], stages),
    }


def in_short(kept: dict[str, Any]) -> str:
    """The answer in short, from what is kept in the json file."""
    real, plain, rules = kept["real"], kept["by turns"], kept["rules"]
    best = {rule: f"{found['drawn right or a part of it'] / found['drawn']:.1%}" for rule, found in rules.items()}
    least = min(kept["quality"].items(), key=lambda item: item[1]["rejected"] / max(item[1]["rows"], 1))
    whole = sum(found["rejected"] == found["rows"] for found in kept["quality"].values())
    before, after = plain["priors"]["all"]["unseen"], real["priors"]["all"]["unseen"]
    worst = max(
        (kind for kind in real["priors"] if kind != "all"), key=lambda kind: real["priors"][kind]["unseen"] or 0.0
    )
    middle = {rule: found["middle"] / found["real"] for rule, found in rules.items()}
    lines = [
        f"{real['images']:,} photographs with {real['lesions']:,} boxes became {real['rows']:,} rows; "
        f"{real['rejected']['all']:,} were rejected; all {real['images with lesions']['no (negatives)']} negatives are kept.",
        "Host organs: "
        + "; ".join(
            f"`{rule}` agrees with the organ under the box's middle on {middle[rule]:.1%} of the fundus boxes and finds the "
            f"drawn organ or a part of it on {best[rule]} of the drawn findings"
            for rule in RULES
        )
        + ".",
        f"Of {len(kept['quality'])} ways of spoiling a row quality control caught {whole} always; least often "
        f'"{least[0]}" ({least[1]["rejected"]} of {least[1]["rows"]}).',
        f"A guess from the text alone is right on {after:.1%} of the unseen rows, {before:.1%} without balancing. It is "
        f"best at {worst} ({real['priors'][worst]['unseen']:.1%} of {real['priors'][worst]['unseen rows']} unseen rows): any "
        "model must be held against these figures, not against zero.",
    ]
    return "\n".join(f"{number}. {line}" for number, line in enumerate(lines, start=1))


def main() -> None:
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    folder = Path(sys.argv[2])
    options = real_options(Path(sys.argv[1]), 0)
    real = build(options, folder / "real", workers=2)
    plain = build(options.model_copy(update={"balance": False, "embed": False}), folder / "plain", workers=2)
    drawn_options = phantom_options(folder / "source")
    drawn = build(drawn_options, folder / "drawn")
    rules, blocks = host_tables(real, drawn, drawn_options.detections)
    quality, blocks["quality"] = quality_table(real)
    blocks["counts"] = counts_table(real.statistics)
    blocks |= balance_tables(real.statistics, plain.statistics)
    kept = {
        "real": dict(real.statistics),
        "by turns": dict(plain.statistics),
        "drawn": dict(drawn.statistics),
        "rules": rules,
        "quality": quality,
    }
    blocks["short"] = in_short(kept)
    write_text(PAGE.with_suffix(".json"), json.dumps(kept, indent=1) + "\n")
    if PAGE.is_file():
        fill(PAGE, blocks)
    for title, block in blocks.items():
        print(f"\n{title}\n{block}")


if __name__ == "__main__":
    main()
