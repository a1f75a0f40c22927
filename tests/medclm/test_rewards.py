"""Rewards held against values worked out by hand, in every form that TRL hands completions over."""

import inspect
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.medclm.samples import source
from trimtab.medclm.boxes import FORMATS, ModelBoxes
from trimtab.medclm.building import build
from trimtab.medclm.building.exports import export
from trimtab.medclm.records import Box
from trimtab.medclm.rewards import (
    REWARDS,
    agreement,
    choice,
    exact,
    form,
    iou50,
    iou_at,
    iou_smooth,
    normalised,
    side,
    text_of,
)

SEEN_AT = "Reasoning: seen at [0.1000, 0.1000, 0.3000, 0.3000] on the patient's left. So the answer is {0}. Answer: {0}"


def chat(text):
    return [{"role": "assistant", "content": text}]


def call(reward, *said, **columns):
    """The same for texts and for chat messages, and for messages in parts."""
    found = reward([""] * len(said), list(said), **columns)
    assert reward([[{"role": "user", "content": ""}]] * len(said), [chat(one) for one in said], **columns) == found
    parts = [chat([{"type": "text", "text": one}]) for one in said]
    assert (
        reward(
            [""] * len(said), parts, trainer_state=None, log_metric=print, completion_ids=[[1]] * len(said), **columns
        )
        == found
    )
    return found


def test_answers():
    said = ["No.", "no", SEEN_AT.format("no"), "a nodule", "yes or no", ""]
    assert call(exact, *said, answer=["no"] * 6) == [0, 1, 1, 0, 0, 0]
    assert call(normalised, *said, answer=["no"] * 6) == [1, 1, 1, 0, 0, 0]
    assert call(choice, *said, answer=["no"] * 6, choices=[["yes", "no"]] * 6) == [1, 1, 1, 0, 0, 0]
    assert call(choice, "B", "no", answer=["two", "no"], choices=[["one", "two", "three"], []]) == [1, None]


def test_boxes_in_reasoning_and_in_answers():
    gold = [[[0.1, 0.1, 0.3, 0.3]]]
    columns = {"boxes": gold * 3, "box_answer": [False] * 3}
    said = [SEEN_AT.format("no"), SEEN_AT.format("no").replace("0.1000, 0.1000, 0.3", "0.1000, 0.1000, 0.2"), "no"]
    assert call(iou50, *said, **columns) == [1, 1, 0]  # half of it is 0.5
    assert call(iou_at(0.75), *said, **columns) == [1, 0, 0]
    smooth = call(iou_smooth, *said, **columns)
    assert smooth == pytest.approx([1, (1 + 0.5) / 2, 0])
    two = [[0.0, 0.0, 0.2, 0.2], [0.5, 0.5, 0.9, 0.9]]
    answer = "nodule [0.5000, 0.5000, 0.9000, 0.9000]; nodule [0.0000, 0.0000, 0.2000, 0.2000]"
    columns = {"boxes": [two, two, two, [], []], "box_answer": [True] * 5}
    extra = f"{answer}; nodule [0.3000, 0.3000, 0.4000, 0.4000]"
    said = [answer, answer.split("; ")[0], extra, "none", answer]
    assert call(iou50, *said, **columns) == pytest.approx(
        [1, 0.5, 2 / 3, 1, 0]
    )  # pairing, missed, too many, none, none wanted
    assert call(iou50, "no", boxes=[[]], box_answer=[False]) == [None]


@given(st.floats(0.3, 0.9))
def test_the_smooth_reward_grows_as_the_box_comes_nearer(far):
    """Where IoU is 0 all the way."""
    gold = [[[0.0, 0.0, 0.1, 0.1]]] * 2
    said = [f"[{at:.4f}, 0.0, {at + 0.1:.4f}, 0.1]" for at in (far, far - 0.15)]
    assert iou50(said, said, boxes=gold, box_answer=[True] * 2) == [0, 0]
    away, near = iou_smooth(said, said, boxes=gold, box_answer=[True] * 2)
    assert 0 < away < near < 0.5


@pytest.mark.parametrize("name", FORMATS)
def test_boxes_as_the_model_writes_them(name):
    boxes = ModelBoxes.named(name)
    box, seen = Box(x0=0.1, y0=0.2, x1=0.5, y1=0.9), boxes.seen(768, 510)
    said = f"Answer: {boxes.format.answer([('nodule', box)], seen)}"
    columns = {"boxes": [[list(box.corners)]], "box_answer": [True], "box_format": [name], "seen": [list(seen)]}
    assert call(iou_at(0.95), said, **columns) == [1]
    assert call(form, said, reason=[False], **columns) == [1]
    nothing = f"Answer: {boxes.format.answer([], seen)}"
    assert call(iou50, nothing, **{**columns, "boxes": [[]]}) == [1]


def test_form_agreement_side():
    said = [SEEN_AT.format("no"), "no", "Reasoning: so it is.", SEEN_AT.format("left").replace("is left", "is right")]
    assert call(form, *said, reason=[True] * 4) == [1, 0.5, 0.5, 1]
    assert call(form, "no", "none", "[0.1, 0.1, 0.2, 0.2]", reason=[False] * 3, box_answer=[True] * 3) == pytest.approx(
        [2 / 3, 1, 1]
    )
    assert call(agreement, *said, reason=[True, False, True, True]) == [1, None, 0, 0]
    assert call(side, *said[:2], "left", "the left lung and the right lung", side=["left", "left", "left", "left"]) == [
        1,
        0,
        1,
        0,
    ]
    assert call(side, "no", side=[""]) == [None]


def test_wrong_columns_are_refused():
    with pytest.raises(ValueError, match="exact needs a column 'answer' of 2 values, one a completion; got 1"):
        exact(["", ""], ["a", "b"], answer=["a"])
    with pytest.raises(ValueError, match="iou_at_50 needs a column 'boxes'"):
        iou50([""], ["a"], boxes=None)
    with pytest.raises(TypeError, match="a text or a list of messages, got int"):
        text_of(3)
    with pytest.raises(ValueError, match="boxes must be one of"):
        iou50([""], ["a"], boxes=[[[0, 0, 1, 1]]], box_format=["qwen"])
    with pytest.raises(ValueError, match="threshold"):
        iou_at(0.0)


@pytest.mark.parametrize("name", ["unit", "qwen2.5", "paligemma"])
def test_the_sets_own_targets_earn_every_reward(tmp_path, name):
    """The export's rows with their own targets as completions: 1 wherever a reward applies, and each applies somewhere."""
    options = source(tmp_path / "source").model_copy(update={"box_answers": True})
    folder = build(options, tmp_path / "out").folder
    rows, targets = {}, {}
    for path in export(folder, "grpo", tmp_path / "grpo", dialect=name).values():
        rows |= {row["row_id"]: row for row in map(json.loads, path.read_text().splitlines())}
    for path in export(folder, "trl", tmp_path / "trl", dialect=name).values():
        for row in map(json.loads, path.read_text().splitlines()):
            targets[row["row_id"]] = row["completion"][0]["content"][0]["text"]
    assert rows.keys() == targets.keys()
    ids = list(rows)
    columns = {key: [rows[one][key] for one in ids] for key in rows[ids[0]]}
    prompts = columns.pop("prompt")
    said = [chat(targets[one]) for one in ids]
    for label, reward in REWARDS.items():
        found = reward(prompts, said, **columns)
        assert any(value is not None for value in found), label
        limit = 0.9 if label == "iou_smooth" else 1
        for one, value in zip(ids, found, strict=True):
            texts = label in ("exact", "normalised") and rows[one]["box_answer"] and name != "unit"
            assert value is None or value >= limit or texts, (label, one, targets[one], value)


def test_signature_is_trls():
    for reward in (*REWARDS.values(), iou_at(0.3)):
        names = list(inspect.signature(reward).parameters)
        assert names[:2] == ["prompts", "completions"]
        assert inspect.signature(reward).parameters[names[-1]].kind is inspect.Parameter.VAR_KEYWORD
    assert iou_at(0.3).__name__ == "iou_at_30"
