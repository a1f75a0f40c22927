"""A small run folder of MedCLM, as `trimtab medclm train` and `evaluate` leave one."""

from __future__ import annotations

import json
from pathlib import Path

from PIL import Image

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
