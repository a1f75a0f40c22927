"""What is asked, and that the record alone gives the answer."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.medclm.samples import LABELS, host, lesion, record, two_classes
from trimtab.medclm.quality import QualityControl
from trimtab.medclm.records import Row
from trimtab.medclm.texts import TemplateGenerator, asks
from trimtab.medclm.texts.asking import MOST_COUNTED, counted
from trimtab.medclm.texts.wording import boxes_in, quoted, seed_text


def _answers(image, one, stage):
    return {(ask.kind, ask.variant, ask.label, ask.other): ask.answer for ask in asks(image, one, stage, LABELS)}


def test_easy_answers_come_from_the_record():
    image = two_classes()
    found = _answers(image, image.lesions[0], "easy")
    assert found[("what", "box", "nodule", "")] == "nodule"
    assert found[("organ", "box", "nodule", "")] == "right lung"
    assert found[("side", "box", "nodule", "")] == "right"
    assert found[("count", "box", "nodule", "")] == "2"
    assert found[("present", "box", "nodule", "")] == "yes"
    assert found[("present", "box", "effusion", "")] == "no"
    assert found[("compare", "biggest", "nodule", "")] == "no"


def test_medium_asks_about_the_largest_only_and_never_ambiguously():
    image = two_classes()
    small, large = (_answers(image, one, "medium") for one in image.lesions[:2])
    assert ("where", "largest", "nodule", "") in large
    assert not any(kind in ("where", "organ") for kind, *_ in small)
    assert ("what", "image", "nodule", "") not in large  # two classes: "what finding" has two answers
    assert large[("what", "organ", "nodule", "")] == "nodule"
    assert large[("compare", "number", "nodule", "mass")] == "nodule"
    assert large[("compare", "area", "nodule", "mass")] == "mass"


def test_lesions_of_nearly_equal_size_are_not_compared():
    image = record(lesion(1, "mass", (0.1, 0.1, 0.3, 0.3), host()), lesion(2, "mass", (0.5, 0.5, 0.7, 0.705), host()))
    assert not any(
        kind == "compare" or variant == "largest" for kind, variant, *_ in _answers(image, image.lesions[1], "easy")
    )
    assert not any(variant == "largest" for _, variant, *_ in _answers(image, image.lesions[1], "medium"))


def test_counts_and_absences_need_a_complete_image():
    whole = record(lesion(1, "mass", (0.1, 0.1, 0.3, 0.3), host()))
    partial = record(lesion(1, "mass", (0.1, 0.1, 0.3, 0.3), host(), flags=("incomplete_image",)))
    assert any(ask.kind == "count" for ask in asks(whole, whole.lesions[0], "medium", LABELS))
    assert not any(ask.kind == "count" for ask in asks(partial, partial.lesions[0], "medium", LABELS))
    assert asks(whole, None, "medium", LABELS)
    assert asks(partial, None, "medium", LABELS) == []


def test_a_class_is_absent_from_a_box_only_where_no_box_of_it_reaches_in_and_none_was_rejected():
    def absent(flags, x0):
        nodule = lesion(1, "nodule", (0.1, 0.1, 0.3, 0.3), host(), flags=flags)
        image = record(nodule, lesion(2, "mass", (x0, 0.1, x0 + 0.2, 0.3), host(), flags=flags))
        found = _answers(image, nodule, "easy")
        return {label for (kind, _, label, _), answer in found.items() if (kind, answer) == ("present", "no")}

    assert absent((), 0.3) == {"effusion", "mass"}
    assert absent((), 0.29) == {"effusion"}, "the mass reaches into the nodule's box"
    assert absent(("incomplete_image",), 0.3) == set()


def test_without_a_known_organ_nothing_is_asked_about_place():
    image = record(lesion(1, "mass", (0.1, 0.1, 0.3, 0.3), host("unknown", None)))
    kinds = {ask.kind for stage in ("easy", "medium") for ask in asks(image, image.lesions[0], stage, LABELS)}
    assert kinds.isdisjoint({"where", "organ", "side"})


def _kinds(image, stage):
    return {(ask.kind, ask.variant) for ask in asks(image, image.lesions[0], stage, LABELS)}


def test_a_state_of_an_organ_is_neither_counted_nor_looked_for_by_its_name():
    image = record(
        lesion(1, "cardiomegaly", (0.3, 0.4, 0.7, 0.8), host("heart", "midline")),
        lesion(2, "nodule", (0.1, 0.1, 0.2, 0.2), host()),
    )
    assert _kinds(image, "easy") == {
        ("what", "box"),
        ("where", "box"),
        ("organ", "box"),
        ("side", "box"),
        ("present", "box"),
    }
    assert _kinds(image, "medium") == {("present", "image")}
    assert not any(
        ask.kind in ("count", "compare") for ask in asks(image, image.lesions[1], "medium", LABELS) if ask.other
    )
    absent = {(ask.kind, ask.label) for ask in asks(image, None, "medium", ["cardiomegaly", "mass", "scoliosis"])}
    assert absent == {("present", "mass"), ("count", "mass"), ("present", "scoliosis")}


def test_a_finding_of_the_pleura_lies_beside_its_host():
    image = record(lesion(1, "pleural effusion", (0.1, 0.6, 0.4, 0.9), host(zone="lower zone")))
    found = {(ask.kind, ask.variant): ask.answer for ask in asks(image, image.lesions[0], "easy", LABELS)}
    assert found["where", "box"] == "pleural space beside the lower zone of the right lung"
    assert ("organ", "box") not in found
    row = TemplateGenerator().generate(
        image,
        image.lesions[0],
        "easy",
        0,
        next(a for a in asks(image, image.lesions[0], "easy", LABELS) if a.kind == "what"),
    )
    assert row.reasoning.endswith(
        "So this is a pleural effusion in the pleural space beside the lower zone of the right lung."
    )
    assert "lies over the right lung (lower zone), beside which is the pleural space" in row.reasoning
    near = record(lesion(1, "pleural effusion", (0.1, 0.6, 0.4, 0.9), host(fallback=True)))
    assert "near the right lung" in seed_text(near, near.lesions[0])


def test_a_class_name_that_holds_a_side_does_not_give_the_side_away():
    image = record(lesion(1, "right nodule", (0.1, 0.1, 0.2, 0.2), host()))
    assert _kinds(image, "medium") == {("what", "image"), ("present", "image"), ("count", "image")}


def test_more_boxes_than_a_reasoning_can_list_are_not_counted_with_one():
    many = [
        lesion(n, "nodule", (0.03 * n, 0.1, 0.03 * n + 0.02 + n / 1e4, 0.2), host()) for n in range(MOST_COUNTED + 1)
    ]
    for number, asked in ((MOST_COUNTED, True), (MOST_COUNTED + 1, False)):
        image = record(*many[:number])
        for stage in ("easy", "medium"):
            assert (("count", "image" if stage == "medium" else "box") in _kinds(image, stage)) is asked
        assert ("count", "image") in _kinds(image, "hard")


def test_a_negative_is_asked_what_it_does_not_show():
    answers = {(ask.kind, ask.answer) for ask in asks(record(), None, "medium", LABELS)}
    assert answers == {("present", "no"), ("count", "0"), ("what", "no finding")}


def test_the_eye_is_asked_for_and_not_the_side_of_the_patient():
    organs = ("optic disc", "retina")
    image = record(lesion(1, "hard_exudates", (0.1, 0.1, 0.3, 0.3), host("retina", "left")), organs=organs)
    row = next(
        TemplateGenerator().generate(image, image.lesions[0], "medium", 0, ask)
        for ask in asks(image, image.lesions[0], "medium", LABELS)
        if ask.kind == "side"
    )
    assert "eye" in row.question
    assert "eye" in row.reasoning
    assert "patient" not in row.reasoning


boxes = st.tuples(st.floats(0, 0.6), st.floats(0, 0.6), st.floats(0.01, 0.4), st.floats(0.01, 0.4)).map(
    lambda b: (b[0], b[1], b[0] + b[2], b[1] + b[3])
)
organs_ = st.sampled_from(
    [host(), host("left lung", "left", zone="upper zone"), host("heart", "midline"), None, host("unknown", None)]
)
lesions_ = st.lists(
    st.tuples(st.sampled_from([*LABELS, "hard_exudates", "cardiomegaly", "left nodule"]), boxes, organs_), max_size=5
)


@settings(deadline=None, max_examples=25)
@given(lesions_, st.integers(0, 2**31))
def test_every_template_row_passes_quality_control_and_validates(drawn, seed):
    image = record(*(lesion(n, label, box, organ) for n, (label, box, organ) in enumerate(drawn)))
    generator = TemplateGenerator()
    for stage in ("easy", "medium", "hard"):
        for one in (None, *image.lesions):
            for ask in asks(image, one, stage, LABELS):
                row = generator.generate(image, one, stage, seed, ask)
                assert QualityControl().faults(row, image) == []
                assert Row.model_validate(row.model_dump()) == row
                assert row == generator.generate(image, one, stage, seed, ask)
                assert row.target[slice(*row.spans["answer"])] == ask.answer
                assert (row.reasoning == "") == (stage == "hard")
                if one is not None and stage != "hard":
                    cited = (one, *counted(image, ask))
                    assert set(boxes_in(row.reasoning)) == {boxes_in(quoted(other.box))[0] for other in cited}
                    assert boxes_in(row.reasoning)[0] == boxes_in(quoted(one.box))[0]


def test_wordings_differ_by_seed():
    image = two_classes()
    generator, ask = TemplateGenerator(), asks(image, image.lesions[0], "easy", LABELS)[0]
    assert len({generator.generate(image, image.lesions[0], "easy", seed, ask).question for seed in range(20)}) > 1


def test_the_seed_sentence_names_class_place_size_and_count():
    image = two_classes()
    assert seed_text(image, image.lesions[0]) == (
        "A nodule in the right lung, its box covering 10.0% of the right lung; 2 of this class in the image."
    )
    fallback = record(lesion(1, "nodule", (0.1, 0.2, 0.2, 0.3), host(fallback=True)))
    assert seed_text(fallback, fallback.lesions[0]).startswith("A nodule near the right lung")
