import json

import pytest
from PIL import Image

from trimtab.report.medclm.evaluation import examples_section
from trimtab.report.medclm.run import render_medclm_run

DECISIONS = [
    {"epoch": epoch, "domain": "<b>x</b> x CT", "shares": {"easy": 1.0 - epoch, "medium": float(epoch)},
     "losses": {"easy": 2.0, "medium": None}, "reason": "begins with easy" if not epoch else "to medium: near"}
    for epoch in range(2)
]  # fmt: skip


@pytest.fixture
def run(tmp_path):
    options = {"model": "tiny-llava", "schedule": "adaptive", "steps": 4, "batch": 2, "seed": 1}
    (tmp_path / "run.json").write_text(json.dumps({"options": options, "data": "set", "rows": 9}))
    (tmp_path / "stages.jsonl").write_text("\n".join(map(json.dumps, DECISIONS)))
    Image.new("RGB", (8, 4)).save(tmp_path / "a.png")
    predictions = [
        {"image": str(tmp_path / "a.png"), "question": f"<script>{number}?", "answer": "yes", "stage": "easy",
         "kind": "present", "box": [0.1, 0.1, 0.5, 0.5], "replies": {"model": "Reasoning: at [0.2, 0.2, 0.6, 0.6]. Answer: no"},
         "scores": {"model": {"closed.1": float(number % 5 == 0)}}}
        for number in range(40)
    ]  # fmt: skip
    (tmp_path / "predictions.jsonl").write_text("\n".join(map(json.dumps, predictions)))
    row = {"group": "all", "name": "all", "rule": "closed.1", "n": 40, "value": 0.2, "low": 0.1, "high": 0.3}
    summary = {"n": 40, "split": "test", "rules": {"closed.1": "a rule"}, "systems": {
        "model": {"what": "m", "rows": [row]}, "majority": {"what": "g", "rows": [{**row, "value": 0.6}]}}}  # fmt: skip
    (tmp_path / "evaluation.json").write_text(json.dumps(summary))
    return tmp_path


def test_the_page_shows_curriculum_evaluation_and_examples_and_escapes_texts(run):
    page = render_medclm_run(run).read_text()
    assert "Closed questions right: 20 % (majority 60 %)." in page
    assert "20.0 (10 to 30)" in page
    assert "to medium: near" in page
    assert "&lt;script&gt;0?" in page
    assert "<script>0?" not in page
    assert "<b>x</b>" not in page


def test_examples_are_right_and_wrong_and_show_both_boxes(run):
    predictions = [json.loads(line) for line in (run / "predictions.jsonl").read_text().splitlines()]
    section = examples_section(predictions)
    titles = [figure.title for figure in section.figures]
    assert len(titles) == 12
    assert sum("right" in title for title in titles) == 6
    names = [trace["name"] for trace in section.figures[0].states[""] if "name" in trace]
    assert names == ["gold box", "quoted by the model"]


def test_a_run_that_was_not_evaluated_says_so(run):
    (run / "evaluation.json").unlink()
    assert "Not evaluated: trimtab medclm evaluate RUN" in render_medclm_run(run).read_text()
    (run / "run.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"has no run\.json"):
        render_medclm_run(run)
