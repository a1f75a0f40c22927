import json
import re

import pytest

from tests.report.medclm_factory import write_run
from trimtab.report.medclm.examples import examples_section
from trimtab.report.medclm.run import render_medclm_run


@pytest.fixture
def run(tmp_path):
    return write_run(tmp_path)


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
    section = examples_section(predictions, {"model": "model's answer"})
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


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        ("run.json", '"options"', '"option"', r"run\.json is damaged .*missing 'options'"),
        (
            "stages.jsonl",
            '"medium": 0.0',
            '"medium": 1e308',
            r"stages\.jsonl .*medium must be a number from 0 to 1, got 1e\+308",
        ),
        ("evaluation.json", '"value": 0.2', '"value": NaN', r"evaluation\.json is damaged"),
        ("evaluation.json", '"systems"', '"system"', r"evaluation\.json is damaged .*missing 'systems'"),
        ("predictions.jsonl", "a.png", "b.png", r"predictions\.jsonl speaks of a picture that is not there: .*b\.png"),
    ],
)
def test_a_damaged_file_is_named(run, name, old, new, message):
    text = (run / name).read_text()
    assert old in text
    (run / name).write_text(text.replace(old, new))
    with pytest.raises(ValueError, match=message):
        render_medclm_run(run)


def test_a_loss_that_diverged_is_a_gap_in_its_curve(run):
    file = run / "stages.jsonl"
    file.write_text(file.read_text().replace('"easy": 2.0', '"easy": NaN', 1))
    data = re.search(r'"decisions": ?(\[.*?\])', render_medclm_run(run).read_text(), re.DOTALL)
    assert data is not None
    assert "NaN" not in data.group(1)
    assert '"easy": null' in data.group(1)
