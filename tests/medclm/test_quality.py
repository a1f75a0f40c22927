"""Each fault that quality control knows, made on purpose in a row that passes."""

from __future__ import annotations

import pytest

from tests.medclm.samples import LABELS, record, two_classes
from trimtab.medclm.quality import QualityControl, conclusion, says
from trimtab.medclm.texts import TemplateGenerator, asks
from trimtab.medclm.texts.generator import target_of


def _row(kind, stage="easy", which=0, answer=None):
    image = two_classes()
    one = image.lesions[which]
    ask = next(a for a in asks(image, one, stage, LABELS) if a.kind == kind and answer in (None, a.answer))
    return TemplateGenerator().generate(image, one, stage, 0, ask), image


def _changed(row, **texts):
    full = {name: texts.get(name, getattr(row, name)) for name in ("question", "reasoning", "answer")}
    target, reasoning, answer = target_of(full["reasoning"], full["answer"])
    return row.model_copy(update={**full, "target": target, "spans": {"reasoning": reasoning, "answer": answer}})


def _reasons(row, image):
    return {fault.reason for fault in QualityControl().faults(row, image)}


def _swap(text, old, new):
    assert old in text
    return text.replace(old, new)


BOX = "[0.1000, 0.2000, 0.2000, 0.3000]"
SECOND = "[0.1000, 0.5000, 0.3000, 0.7000]"
NOT_LISTED = "reasoning counts boxes that it does not quote"
RUSSIAN = (f"Что показывает снимок в области {BOX}?", f"Видно уплотнение {BOX}: nodule.")
GERMAN = f"Die Stelle {BOX} ist auf der Lunge, das ist ein nodule."
OTHER_BOX = "reasoning quotes a box that is not the lesion's"
NO_BOX = "reasoning does not quote the lesion's box"
UNMARKED = "question does not quote the lesion's box"
NOT_CONCLUDED = "answer does not follow from the reasoning's conclusion"


@pytest.mark.parametrize(
    ("kind", "damage", "reason"),
    [
        ("what", lambda r: {"answer": "mass"}, "answer names another class than the record"),
        ("what", lambda r: {"answer": "nodule or mass"}, "answer names another class than the record"),
        ("organ", lambda r: {"answer": "left lung"}, "answer names another organ than the record"),
        ("organ", lambda r: {"answer": "right lung or left lung"}, "text contradicts the record's side"),
        ("side", lambda r: {"answer": "left"}, "answer names another side than the record"),
        ("count", lambda r: {"answer": "3"}, "number disagrees with the record"),
        ("present", lambda r: {"answer": "no"}, "yes or no disagrees with the record"),
        ("present", lambda r: {"answer": "yes and no"}, "yes or no disagrees with the record"),
        ("what", lambda r: {"reasoning": _swap(r.reasoning, "[0.1000", "[0.1500")}, OTHER_BOX),
        ("what", lambda r: {"reasoning": _swap(r.reasoning, BOX, "the box")}, NO_BOX),
        ("count", lambda r: {"reasoning": _swap(r.reasoning, SECOND, "[0.1000, 0.5000, 0.3000, 0.8000]")}, OTHER_BOX),
        ("count", lambda r: {"reasoning": _swap(r.reasoning, f" and {SECOND}", "")}, NOT_LISTED),
        ("what", lambda r: {"question": "What is the finding in the marked region?"}, UNMARKED),
        ("what", lambda r: {"question": r.question + " Is it a nodule?"}, "question gives the answer away"),
        ("what", lambda r: {"reasoning": r.reasoning + " So this is unclear to me."}, NOT_CONCLUDED),
        ("what", lambda r: {"reasoning": _swap(r.reasoning, "'s right", "'s left")}, "text contradicts the record's side"),
        ("what", lambda r: {"reasoning": "Nodule."}, "reasoning is too short"),
        ("what", lambda r: {"reasoning": r.reasoning * 20}, "reasoning is too long"),
        ("what", lambda r: {"reasoning": GERMAN}, "reasoning is not English"),
        ("what", lambda r: {"question": RUSSIAN[0], "reasoning": RUSSIAN[1]}, "question is not English"),
    ],
)  # fmt: skip
def test_each_fault_is_found(kind, damage, reason):
    row, image = _row(kind, answer="yes" if kind == "present" else None)
    assert _reasons(row, image) == set()
    assert reason in _reasons(_changed(row, **damage(row)), image)


def test_medium_questions_quote_no_box():
    row, image = _row("count", "medium", which=1)
    damaged = _changed(row, question=row.question + " [0.1000, 0.5000, 0.3000, 0.7000]")
    assert "question about the whole image quotes a box" in _reasons(damaged, image)


def test_hard_rows_have_no_reasoning():
    row, image = _row("count", "hard", which=1)
    assert "Hard row has a reasoning" in _reasons(_changed(row, reasoning="There are two nodules."), image)


def test_spans_that_cut_elsewhere_are_found():
    row, image = _row("what")
    shifted = row.model_copy(update={"spans": {**row.spans, "answer": (0, 5)}})
    assert "span does not cut out its text" in _reasons(shifted, image)


def test_a_row_of_another_image_is_found():
    row, image = _row("what")
    other = image.model_copy(update={"patient": "someone else"})
    assert "row disagrees with its image on patient or split" in _reasons(row, other)
    assert "row names a lesion its image does not have" in _reasons(row, record())


def test_duplicates_are_found_within_an_image_and_forgotten_after_it():
    row, image = _row("count", "medium", which=1)
    quality = QualityControl()
    assert quality.faults(row, image) == []
    again = row.model_copy(update={"row_id": "another"})
    assert [fault.reason for fault in quality.faults(again, image)] == ["same question about the same image"]
    quality.seen("elsewhere", "medium", "?", "x")
    assert quality.faults(again, image) == []


def test_no_is_not_in_nodule_and_sentences_end_at_full_stops_only():
    assert not says("a nodule", "no")
    assert conclusion("It covers 1.5 % of it. So no.") == "So no."
