from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from trimtab.medclm.records import Box, Row, inside

SIZES = st.integers(1, 4000)


@st.composite
def pixel_boxes(draw: st.DrawFn) -> tuple[tuple[int, int, int, int], int, int]:
    width, height = draw(SIZES), draw(SIZES)
    x0, y0 = draw(st.integers(0, width - 1)), draw(st.integers(0, height - 1))
    x1, y1 = draw(st.integers(x0 + 1, width)), draw(st.integers(y0 + 1, height))
    return (x0, y0, x1, y1), width, height


@given(pixel_boxes())
def test_whole_pixels_survive_the_way_to_fractions_and_back(
    given_box: tuple[tuple[int, int, int, int], int, int],
) -> None:
    corners, width, height = given_box
    box = Box.of_pixels(*corners, width=width, height=height)
    assert box.pixels(width, height) == corners
    pixels = (corners[2] - corners[0]) * (corners[3] - corners[1])
    assert box.area == pytest.approx(pixels / (width * height))


@given(st.tuples(*[st.floats(0, 1)] * 4), SIZES, SIZES)
def test_pixels_are_never_empty_and_never_outside(corners: tuple[float, ...], width: int, height: int) -> None:
    x0, x1 = sorted(corners[:2])
    y0, y1 = sorted(corners[2:])
    if x0 == x1 or y0 == y1:
        return
    left, top, right, bottom = Box(x0=x0, y0=y0, x1=x1, y1=y1).pixels(width, height)
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height


@pytest.mark.parametrize(
    "corners",
    [(-0.1, 0, 1, 1), (0, 0, 1.1, 1), (0.5, 0, 0.5, 1), (0.6, 0, 0.5, 1), (0, 0.9, 1, 0.1), (math.nan, 0, 1, 1)],
)
def test_a_box_must_lie_inside_with_corners_in_order(corners: tuple[float, ...]) -> None:
    with pytest.raises(ValidationError):
        Box(x0=corners[0], y0=corners[1], x1=corners[2], y1=corners[3])


@pytest.mark.parametrize(
    "name", ["/etc/passwd", "../a.png", "a/../../b.png", "", ".", "C:\\a.png", "a\\..\\..\\b", "a\0b"]
)
def test_a_file_name_may_not_leave_its_folder(name: str) -> None:
    with pytest.raises(ValueError, match="must be a relative path that stays inside its folder"):
        inside(name)


def _row(**changes: object) -> Row:
    fields: dict[str, object] = {
        "row_id": "r1",
        "image_id": "1",
        "patient": "p",
        "split": "train",
        "stage": "easy",
        "domain": "nodule x X-ray",
        "question_type": "what",
        "question": "What is shown?",
        "reasoning": "Round.",
        "answer": "A nodule.",
        "target": "Reasoning: Round. Answer: A nodule.",
        "spans": {"reasoning": (11, 17), "answer": (26, 35)},
        "generator": "template",
        "prompt_id": "1",
        "seed": 0,
    }
    return Row.model_validate({**fields, **changes})


def test_spans_cut_the_texts_out_of_the_target() -> None:
    row = _row()
    assert row.target[slice(*row.spans["answer"])] == row.answer
    assert Row.model_validate_json(row.model_dump_json()) == row


@pytest.mark.parametrize(
    ("spans", "message"),
    [
        ({"reasoning": (11, 17)}, "must hold 'answer'"),
        ({"reasoning": (11, 17), "answer": (26, 99)}, "lies outside a target of 35"),
        ({"reasoning": (11, 17), "answer": (25, 35)}, "cuts ' A nodule.'"),
    ],
)
def test_wrong_spans_are_refused(spans: dict[str, tuple[int, int]], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        _row(spans=spans)


def test_records_of_checked_values_are_records_as_any_other():
    import pickle

    plain = Box(x0=0.1, y0=0.2, x1=0.3, y1=0.4)
    quick = Box.of_checked(x0=0.1, y0=0.2, x1=0.3, y1=0.4)
    assert quick == plain
    assert hash(quick) == hash(plain)
    assert quick.model_dump_json() == plain.model_dump_json()
    assert pickle.loads(pickle.dumps(quick)).model_copy(update={"x0": 0.0}).x0 == 0.0
    with pytest.raises(ValueError, match="frozen"):
        quick.x0 = 0.0
