"""Every format written and read back, and what broken replies become."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab.medclm.boxes import FORMATS, Stretched, boxes_of, format_named
from trimtab.medclm.boxes.models import ModelBoxes
from trimtab.medclm.records import Box
from trimtab.medclm.texts.wording import boxes_in

LABELS = st.sampled_from(["nodule", "pleural effusion", "mass"])
SIZES = st.tuples(st.integers(28, 1800), st.integers(28, 1800))


@st.composite
def boxes(draw, least=1e-3):
    def pair():
        low = draw(st.floats(0, 1 - least))
        return low, draw(st.floats(min(low + least, 1.0), 1))

    (x0, x1), (y0, y1) = pair(), pair()
    return Box(x0=x0, y0=y0, x1=x1, y1=y1)


def near(corners, box, error):
    return all(
        abs(a - b) <= error[place % 2] + 1e-9 for place, (a, b) in enumerate(zip(corners, box.corners, strict=True))
    )


def moved(form, box, seen):
    """The error allowed: a box thinner than a step is widened to one."""
    wide, high = form.grid(seen)
    across, down = form.error(seen)
    return (across if box.x1 - box.x0 > 1 / wide else 1 / wide), (down if box.y1 - box.y0 > 1 / high else 1 / high)


@pytest.mark.parametrize("name", FORMATS)
@given(objects=st.lists(st.tuples(LABELS, boxes()), min_size=1, max_size=5), seen=SIZES)
def test_answers_come_back_within_half_a_step(name, objects, seen):
    form = format_named(name)
    found = form.parse(form.answer(objects, seen), seen)
    wanted = (
        sorted(objects, key=lambda one: [label for label, _ in objects].index(one[0]))
        if name == "internvl"
        else objects
    )
    assert [one.label for one in found] == [label for label, _ in wanted]
    for one, (_, box) in zip(found, wanted, strict=True):
        assert near(one.corners, box, moved(form, box, seen))


@pytest.mark.parametrize("name", FORMATS)
@given(box=boxes(), seen=SIZES)
def test_sentences_with_boxes_become_sentences_with_fractions(name, box, seen):
    form = format_named(name)
    text = f"I look at the region {form.inline(box, seen)}. It lies on the left (2 of 3)."
    (found,) = boxes_in(form.in_fractions(text, seen))
    across, down = moved(form, box, seen)
    assert near(found, box, (across + 1e-4, down + 1e-4))
    assert form.in_fractions(text, seen).endswith(". It lies on the left (2 of 3).")


@pytest.mark.parametrize("name", FORMATS)
@given(objects=st.lists(st.tuples(LABELS, boxes()), min_size=1, max_size=4), seen=SIZES)
def test_whole_replies_keep_all_their_boxes_in_order(name, objects, seen):
    form = format_named(name)
    ordered = sorted(objects, key=lambda one: [label for label, _ in objects].index(one[0]))
    text = f"Reasoning: seen at {form.inline(ordered[0][1], seen)}. Answer: {form.answer(ordered, seen)}"
    found = boxes_in(form.in_fractions(text, seen))
    assert len(found) == len(objects) + 1
    for corners, (_, box) in zip(found[1:], ordered, strict=True):
        across, down = moved(form, box, seen)
        assert near(corners, box, (across + 1e-4, down + 1e-4))


@pytest.mark.parametrize("name", FORMATS)
def test_no_boxes_have_their_own_answer(name):
    form = format_named(name)
    said = form.answer([], (100, 100))
    assert form.parse(said, (100, 100)) == []
    assert form.in_fractions(said, (100, 100)) == "none"


def test_exact_texts():
    """Each convention as its authors write it: order, bins, spaces."""
    objects = [("nodule", Box(x0=0.25, y0=0.5, x1=0.5, y1=1.0)), ("mass", Box(x0=0.0, y0=0.1, x1=0.3, y1=0.2))]
    seen = (756, 504)
    said = {name: form.answer(objects, seen) for name, form in FORMATS.items()}
    assert said["unit"] == "nodule [0.2500, 0.5000, 0.5000, 1.0000]; mass [0.0000, 0.1000, 0.3000, 0.2000]"
    assert json.loads(said["qwen2.5"].strip("`").removeprefix("json")) == [
        {"bbox_2d": [189, 252, 378, 504], "label": "nodule"},
        {"bbox_2d": [0, 50, 227, 101], "label": "mass"},
    ]
    assert json.loads(said["qwen3"].strip("`").removeprefix("json"))[1] == {
        "bbox_2d": [0, 100, 300, 200],
        "label": "mass",
    }
    assert json.loads(said["gemma"].strip("`").removeprefix("json"))[0] == {
        "box_2d": [500, 250, 1000, 500],
        "label": "nodule",
    }
    assert said["paligemma"] == (
        "<loc0512><loc0256><loc1023><loc0512> nodule ; <loc0102><loc0000><loc0205><loc0307> mass"
    )
    assert said["florence2"] == "nodule<loc_250><loc_500><loc_500><loc_999>mass<loc_0><loc_100><loc_300><loc_200>"
    assert said["internvl"] == (
        "<ref>nodule</ref><box>[[250, 500, 500, 1000]]</box>\n<ref>mass</ref><box>[[0, 100, 300, 200]]</box>"
    )


def test_the_page_shows_each_format_as_it_is_written():
    """docs/methods/medclm-boxes.md: name, models, and the box of its example."""
    page = (Path(__file__).parents[3] / "docs/methods/medclm-boxes.md").read_text(encoding="utf-8")
    rows = {line.split("`")[1]: line for line in page.splitlines() if line.startswith("| `")}
    objects = [("nodule", Box(x0=0.25, y0=0.5, x1=0.5, y1=1.0))]
    for name, form in FORMATS.items():
        assert all(model in rows[name] for model in form.models)
        said = form.answer(objects, (756, 504)).removeprefix("```json\n[\n\t").removesuffix("\n]\n```")
        assert said in rows[name]


def test_boxes_of_one_label_share_it():
    florence = format_named("florence2").parse("nodule<loc_1><loc_2><loc_3><loc_4><loc_5><loc_6><loc_7><loc_8>", (1, 1))
    assert [one.label for one in florence] == ["nodule", "nodule"]
    assert florence[0].corners == (0.0015, 0.0025, 0.0035, 0.0045)
    objects = [("nodule", Box(x0=0.1, y0=0.1, x1=0.2, y1=0.2)), ("nodule", Box(x0=0.3, y0=0.1, x1=0.4, y1=0.2))]
    assert format_named("internvl").answer(objects, (1, 1)) == (
        "<ref>nodule</ref><box>[[100, 100, 200, 200], [300, 100, 400, 200]]</box>"
    )


@pytest.mark.parametrize(
    ("name", "text", "number"),
    [
        ("qwen2.5", '```json\n[{"bbox_2d": [10, 10, 50, 50], "label": "a"}, {"bbox_2d": [10, 20, 30, 4', 1),
        ("qwen2.5", '[{"bbox_2d": [10, 10, 50, 50], "label": "a"}, {"bbox_2d": [10, 20, 30, 44], "lab', 2),
        ("qwen2.5", '{"label": "a", "bbox_2d": [10.5, 10, 50, 50]}', 1),
        ("qwen2.5", "The box is [10, 10, 50, 50].", 1),
        ("qwen2.5", '{"bbox_2d": [50, 10, 10, 50]}', 0),
        ("qwen2.5", '{"bbox": [10, 10, 50]} {"bbox_2d": "none"}', 0),
        ("gemma", '[{"box_2d": [10, 20, -3, 40], "label": "a"}]', 0),
        ("paligemma", "<loc0010><loc0020><loc0300>", 0),
        ("internvl", "<ref>a</ref><box>[[1, 2, 300, 400], [5, 6", 1),
        ("internvl", "blob[[1, 2, 300, 400], [5, 6, 70, 80]]", 2),
        ("internvl", "seen [[1, 2]] and [[", 0),
        ("unit", "", 0),
        ("unit", "[0.1, 0.2, 0.3, 0.4], [1, 2, 3, 4], [0.5, 0.5, 2.0, 2.0]", 2),
    ],
)
def test_broken_replies_keep_what_is_whole(name, text, number):
    form = format_named(name)
    found = form.parse(text, (100, 100))
    assert len(found) == number
    assert all(
        0 <= low < high <= 1 for one in found for low, high in zip(one.corners[:2], one.corners[2:], strict=True)
    )
    form.in_fractions(text, (100, 100))


@given(text=st.text(alphabet='{}[]"bbox_2d: 0123,<loc>`\n.', max_size=80))
def test_no_reply_breaks_the_reading(text):
    for form in FORMATS.values():
        form.parse(text, (100, 50))
        form.in_fractions(text, (100, 50))


def test_wrong_names_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"qwen2\.5"):
        format_named("qwen2")
    with pytest.raises(ValueError, match="family 'kosmos-2' writes boxes is not known; known are qwen2_5_vl"):
        boxes_of("kosmos-2", object())
    with pytest.raises(ValueError, match="needs its processor"):
        boxes_of("qwen2_5_vl")
    with pytest.raises(FileNotFoundError, match=r"no config\.json"):
        boxes_of(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "paligemma"}')
    with pytest.raises(FileNotFoundError, match="names its image processor"):
        boxes_of(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text('{"image_processor_type": "SiglipImageProcessor"}')
    with pytest.raises(ValueError, match="size must say height and width"):
        boxes_of(tmp_path)
    settings = {"image_processor_type": "SiglipImageProcessorFast", "size": {"height": 224, "width": 448}}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    assert boxes_of(tmp_path) == ModelBoxes(format_named("paligemma"), Stretched(448, 224))
