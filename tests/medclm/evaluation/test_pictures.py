"""Questions without their pictures, and what follows from the answers."""

from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from trimtab.medclm.evaluation.evaluate import evaluate
from trimtab.medclm.evaluation.generation import picture_of
from trimtab.medclm.evaluation.looking import verdict
from trimtab.medclm.evaluation.pictures import with_pictures
from trimtab.medclm.evaluation.questions import YES_NO, Question
from trimtab.medclm.records import Box


def ask(answer, cluster, draw=False):
    return Question(
        f"{cluster}:{answer}", Path(f"{cluster}.png"), "Is it there?", answer, cluster, stage="hard", choices=YES_NO,
        draw=draw, box=Box(x0=0.2, y0=0.2, x1=0.8, y1=0.8),
    )  # fmt: skip


def test_other_shows_the_picture_of_another_patient_and_no_box():
    questions = [ask("yes", name, draw=True) for name in "aabbc"]
    for question, other in zip(questions, with_pictures(questions, "other"), strict=True):
        assert other.image.stem != question.cluster
        assert not other.draw
        assert (other.question, other.answer, other.name) == (question.question, question.answer, question.name)
    with pytest.raises(ValueError, match="of one patient"):
        with_pictures(questions[:2], "other")
    assert with_pictures(questions, "own") == questions
    with pytest.raises(ValueError, match=r"own.*other.*blank"):
        with_pictures(questions, "grey")


def test_a_blank_picture_is_even_and_of_the_same_size(tmp_path):
    Image.effect_noise((20, 10), 90).save(tmp_path / "a.png")
    own = replace(ask("yes", "a", draw=True), image=tmp_path / "a.png")
    assert len(picture_of(own).getcolors()) > 2
    (blank,) = with_pictures([own], "blank")
    assert picture_of(blank).size == (20, 10)
    assert picture_of(blank).getcolors() == [(200, (128, 128, 128))]


@pytest.mark.parametrize(("sees", "looks"), [(True, True), (False, False)])
def test_a_model_that_sees_is_told_from_one_that_does_not(monkeypatch, sees, looks):
    """Twenty patients, half of them yes: the picture's name says the answer to one who looks."""
    questions = [ask("yes" if number % 2 else "no", str(number)) for number in range(20)]
    truth = {question.image: question.answer for question in questions}

    def replies(model, processor, asked, **_):
        return [f"Answer: {truth[one.image] if sees and not one.blank else 'yes'}" for one in asked]

    monkeypatch.setattr("trimtab.medclm.evaluation.evaluate.replies", replies)
    summary = evaluate(None, None, questions, questions, blank=True).summary
    assert list(summary["systems"]) == ["model", "text only", "blank", "majority"]
    assert summary["systems"]["blank"]["rows"][0]["value"] == 0.5
    gain = summary["looking"]["text only"][0]
    values = [summary["systems"][name]["rows"][0]["value"] for name in ("model", "text only")]
    assert gain["value"] == pytest.approx(values[0] - values[1])
    assert gain["n"] == 20
    assert ("looks:" in verdict(summary)) is looks
    assert f"{100 * values[0]:.1f} % of 20 closed questions right" in verdict(summary)


def test_without_closed_questions_nothing_is_said_of_looking(monkeypatch):
    monkeypatch.setattr(
        "trimtab.medclm.evaluation.evaluate.replies", lambda model, processor, asked, **_: ["x"] * len(asked)
    )
    questions = [replace(ask("lung", name), choices=()) for name in "ab"]
    summary = evaluate(None, None, questions, []).summary
    assert "blank" not in summary["systems"]
    assert "not known" in verdict(summary)
