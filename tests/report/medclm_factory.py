"""A small run folder of MedCLM, as `trimtab medclm train` and `evaluate` leave one."""

from __future__ import annotations

import json
from pathlib import Path

from PIL import Image

from trimtab.medclm.audit import AuditOptions
from trimtab.medclm.audit.run import FILE, measured_audit
from trimtab.medclm.evaluation.evaluate import write
from trimtab.medclm.evaluation.questions import Question
from trimtab.medclm.records import Box
from trimtab.medclm.texts.replies import Reply

DECISIONS = [
    {"epoch": epoch, "domain": "<b>x</b> x CT", "shares": {"easy": 1.0 - epoch, "medium": float(epoch)},
     "losses": {"easy": 2.0, "medium": None}, "reason": "begins with easy" if not epoch else "to medium: near"}
    for epoch in range(2)
]  # fmt: skip


def write_run(folder: Path) -> Path:
    """RUN with run.json, stages.jsonl, evaluation.json and predictions.jsonl of 40 questions."""
    options = {"model": "tiny-llava", "schedule": "adaptive", "steps": 4, "batch": 2, "seed": 1}
    (folder / "run.json").write_text(json.dumps({"options": options, "data": "set", "rows": 9}))
    (folder / "stages.jsonl").write_text("\n".join(map(json.dumps, DECISIONS)))
    Image.new("RGB", (8, 4)).save(folder / "a.png")
    predictions = [
        {"image": str(folder / "a.png"), "question": f"<script>{number}?", "answer": "yes", "stage": "easy",
         "kind": "present", "box": [0.1, 0.1, 0.5, 0.5], "replies": {"model": "Reasoning: at [0.2, 0.2, 0.6, 0.6]. Answer: no"},
         "scores": {"model": {"closed.1": float(number % 5 == 0)}}}
        for number in range(40)
    ]  # fmt: skip
    (folder / "predictions.jsonl").write_text("\n".join(map(json.dumps, predictions)))
    row = {"group": "all", "name": "all", "rule": "closed.1", "n": 40, "value": 0.2, "low": 0.1, "high": 0.3}
    summary = {"n": 40, "split": "test", "rules": {"closed.1": "a rule"}, "systems": {
        "model": {"what": "m", "rows": [row]}, "majority": {"what": "g", "rows": [{**row, "value": 0.6}]}}}  # fmt: skip
    (folder / "evaluation.json").write_text(json.dumps(summary))
    return folder


def write_audit(folder: Path) -> Path:
    """`audit.json` and `predictions.jsonl` of 24 questions to a model that looks at every other picture."""
    questions, said = [], {}
    for number in range(24):
        image = folder / f"{number % 2}.png"
        Image.new("RGB", (16, 12), (90 * (number % 2),) * 3).save(image)
        questions.append(
            Question(
                f"q{number}", image, f"<b>Is</b> there a finding in picture {number}, left?", "yes left", f"p{number % 2}",
                stage="medium", domain="mass x CT", kind="present", reason=True, box=Box(x0=0.1, y0=0.1, x1=0.5, y1=0.5),
            )
        )  # fmt: skip
    asked = [AuditOptions().question(one) for one in questions]
    for name, ending in (("real", "left"), ("shuffled", "right"), ("blank", "left")):
        said[name] = [
            Reply(text=f"It is seen at [0.2, 0.2, 0.6, 0.6]. So yes {side}. Answer: yes {side}")
            for number in range(24)
            for side in [ending if number % 2 else "left"]
        ]
    spoken = {name: [one.text for one in ones] for name, ones in said.items()}
    found = measured_audit(asked, said, spoken, questions, {"q99": "the server answered 400: too big"})
    about = {
        "model": "some/model", "server": None, "data": "/data/set", "questions": "medclm", "split": "test", "form": "explained",
        "ask": "set", "boxes": "unit", "claimed": 0.9,
    }  # fmt: skip
    write(found, folder, about, FILE)
    return folder
