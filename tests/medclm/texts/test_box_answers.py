"""Questions whose answer is boxes: what is asked, what is tied to what, what is refused."""

from collections import Counter

import pytest

from tests.medclm.samples import LABELS, host, lesion, record, source, two_classes
from trimtab.medclm.boxes import FORMATS, ModelBoxes
from trimtab.medclm.building import build
from trimtab.medclm.building.checking import check
from trimtab.medclm.building.dialects import in_dialect
from trimtab.medclm.building.exports import rows_with_records
from trimtab.medclm.planning import Planner
from trimtab.medclm.quality import QualityControl
from trimtab.medclm.records import ImageRecord
from trimtab.medclm.texts import TemplateGenerator, asks
from trimtab.medclm.texts.asking import INCOMPLETE, box_asks
from trimtab.medclm.texts.wording import boxes_in, quoted

KINDS = ("refer", "detect")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("set")
    options = source(root / "source").model_copy(update={"box_answers": True})
    return build(options, root / "out").folder


def rows_of(image, stage="medium"):
    generator = TemplateGenerator()
    for one in (*image.lesions, None):
        for ask in box_asks(image, one, stage, LABELS):
            yield generator.generate(image, one, stage, 0, ask), ask


def test_what_is_asked():
    image = two_classes()
    nodules = [one for one in image.lesions if one.label == "nodule"]
    asked = [ask for one in (*image.lesions, None) for ask in box_asks(image, one, "medium", LABELS)]
    assert {ask.kind for ask in asked} == set(KINDS)
    assert not [ask for one in image.lesions for ask in box_asks(image, one, "easy", LABELS)]
    every = next(ask for ask in asked if ask.variant == "all")
    assert sorted(boxes_in(every.answer)) == sorted(one.box.corners for one in image.lesions)
    found = next(ask for ask in asked if (ask.kind, ask.label) == ("detect", "nodule"))
    assert boxes_in(found.answer) == sorted((one.box.corners for one in nodules), key=lambda box: (box[1], box[0]))
    absent = {ask.label for ask in asked if ask.answer == "none"}
    assert absent == set(LABELS) - {one.label for one in image.lesions}
    twins = record(lesion(1, "nodule", (0.1, 0.1, 0.2, 0.2)), lesion(2, "nodule", (0.5, 0.5, 0.6, 0.6)))
    assert {ask.kind for ask in box_asks(twins, twins.lesions[0], "medium", LABELS)} == {
        "detect"
    }  # neither is the largest
    gap = record(lesion(1, "nodule", (0.1, 0.1, 0.2, 0.2), flags=(INCOMPLETE,)))
    assert [ask.kind for one in (*gap.lesions, None) for ask in box_asks(gap, one, "medium", LABELS)] == ["refer"]
    crowd = record(*(lesion(n, "nodule", (0.01 * n, 0.1, 0.01 * n + 0.005, 0.2)) for n in range(21)))
    assert not box_asks(crowd, crowd.lesions[0], "hard", LABELS)


def test_a_built_set_has_them_and_holds(folder):
    assert not check(folder).reasons
    rows = [(row, one) for row, _, one in rows_with_records(folder) if row.question_type in KINDS]
    assert {(row.question_type, row.stage) for row, _ in rows} == {
        (kind, stage) for kind in KINDS for stage in ("medium", "hard")
    }
    for row, image in rows:
        by_class = [one for one in image.lesions if one.label == row.domain.split(" x ")[0]]
        wanted = {"refer": [row.box.corners] if row.box else []}.get(row.question_type)
        if wanted is None:
            chosen = image.lesions if row.domain.startswith("any finding") else by_class
            wanted = [one.box.corners for one in chosen]
        assert sorted(map(quoted_of, boxes_in(row.answer))) == sorted(map(quoted_of, wanted))
        assert len(row.objects) == len(wanted)
    share = Counter(row.answer == "none" for row, _ in rows if row.question_type == "detect")
    assert share[True] <= share[False]


def test_the_other_rows_are_the_same_with_and_without(folder):
    records = list(folder.records())
    plain, more = Planner(LABELS), Planner(LABELS, box_answers=True)
    with_boxes = [one for image in records for one in more.rows(image)]
    assert [one for image in records for one in plain.rows(image)] == [
        one for one in with_boxes if one.ask.kind not in KINDS
    ]
    assert len(with_boxes) > sum(one.ask.kind not in KINDS for one in with_boxes)


def test_every_step_is_tied_to_its_boxes(folder):
    """Sentences cover the reasoning; one that quotes boxes is tied to these and no others; a count's conclusion to all."""
    counts = 0
    for row, _ in folder.rows():
        assert " ".join(row.target[slice(*one.span)] for one in row.steps) == row.reasoning
        for number, one in enumerate(row.steps):
            said = boxes_in(row.target[slice(*one.span)])
            about = [row.objects[place] for place in one.objects]
            if said:
                assert {quoted(each.box) for each in about} == {quoted_of(box) for box in said}
            elif row.box is not None and row.question_type not in KINDS:
                assert row.lesion_id in [each.lesion_id for each in about]
            if row.question_type == "count" and number == len(row.steps) - 1 and row.answer != "0":
                assert len(about) == int(row.answer)
                counts += 1
    assert counts
    areas = two_classes()
    ask = next(
        one for one in asks(areas, areas.lesions[0], "medium", LABELS) if (one.kind, one.variant) == ("compare", "area")
    )
    row = TemplateGenerator().generate(areas, areas.lesions[0], "medium", 0, ask)
    compared = next(one for one in row.steps if "cover" in row.target[slice(*one.span)])
    assert {row.objects[place].label for place in compared.objects} == {ask.label, ask.other}


def quoted_of(box):
    return "[" + ", ".join(f"{value:.4f}" for value in box) + "]"


@pytest.mark.parametrize("name", FORMATS)
def test_a_row_in_a_models_words_says_the_same_boxes(folder, name):
    boxes = ModelBoxes.named(name)
    for row, _, image in rows_with_records(folder):
        there = in_dialect(row, image, boxes)
        seen = boxes.seen(image.width, image.height)
        error = max(boxes.format.error(seen)) + 2e-4
        assert there.target[slice(*there.spans["answer"])] == there.answer
        assert " ".join(there.target[slice(*one.span)] for one in there.steps) == there.reasoning
        back = boxes.format.in_fractions(there.target, seen)
        wanted = boxes_in(row.target)
        assert len(boxes_in(back)) == len(wanted)
        for one, other in zip(boxes_in(back), wanted, strict=True):
            assert one == pytest.approx(other, abs=error)
        if row.question_type in KINDS:
            found = boxes.format.parse(there.answer, seen)
            assert [one.label for one in found] == [one.label for one in row.objects]


def test_wrong_answers_are_found():
    image = record(
        lesion(1, "nodule", (0.1, 0.2, 0.2, 0.3), host()),
        lesion(2, "mass", (0.5, 0.5, 0.8, 0.8), host("left lung", "left")),
    )
    rows = {(ask.kind, ask.variant, ask.label): row for row, ask in rows_of(image)}
    for row in rows.values():
        assert QualityControl().faults(row, image) == []
    every, absent = rows["detect", "all", "any finding"], rows["detect", "image", "effusion"]
    swapped = every.answer.replace("mass", "?").replace("nodule", "mass").replace("?", "nodule")
    for row, answer, said in (
        (every, swapped, "another class"),
        (every, every.answer.split("; ")[0], "leaves out"),
        (every, "none", "leaves out"),
        (every, f"{every.answer}; mass [0.1000, 0.1000, 0.2000, 0.2000]", "not the lesion's"),
        (absent, "effusion [0.5000, 0.5000, 0.8000, 0.8000]", "not the lesion's"),
        (rows["refer", "only", "nodule"], "mass [0.1000, 0.2000, 0.2000, 0.3000]", "other boxes than the record"),
    ):
        faults = QualityControl().faults(row.model_copy(update={"answer": answer}), image)
        assert any(said in str(fault) for fault in faults), (answer, faults)


def test_none_is_never_too_common():
    """Negatives are asked for boxes only as long as "none" does not become what a guess would say."""
    planner = Planner(LABELS, box_answers=True)
    said = Counter()
    for number in range(60):
        lesions = (lesion(number, "nodule", (0.1, 0.2, 0.2, 0.3), host()),) if number % 4 == 0 else ()
        image: ImageRecord = record(*lesions, image=f"i{number}")
        said.update(one.ask.like for one in planner.rows(image) if one.ask.kind == "detect")
    assert said["none"] <= 0.8 * said.total()
