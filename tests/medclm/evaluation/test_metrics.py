import json
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.medclm.training.blobs import blob_set
from trimtab.medclm.boxes import iou
from trimtab.medclm.building import DataSetFolder
from trimtab.medclm.evaluation.benchmarks import load_benchmark
from trimtab.medclm.evaluation.evaluate import evaluate
from trimtab.medclm.evaluation.majority import Majority, WithBoxNumbers
from trimtab.medclm.evaluation.metrics import RULES, closed, overlap, scores
from trimtab.medclm.evaluation.parsing import parse_reply
from trimtab.medclm.evaluation.questions import Question, choices_of, questions_of
from trimtab.medclm.evaluation.tables import interval, measured
from trimtab.medclm.guessing import NearestBoxes
from trimtab.medclm.records import Box


def ask(answer="yes", **settings):
    settings = {"choices": choices_of(answer), **settings}
    return Question("q", Path("x.png"), "Is it?", answer, "p", **settings)


@pytest.mark.parametrize(
    ("reply", "right"),
    [
        ("yes", 1), ("Yes.", 1), ("yes, it is", 1), ("no", 0), ("yes and no", 0), ("nodule", 0), ("", 0), ("yesterday", 0),
        ("I know", 0),
    ],
)  # fmt: skip
def test_closed_answers_need_exactly_one_choice_as_a_whole_word(reply, right):
    assert closed(reply, ask("yes")) == right


def test_no_is_not_found_inside_nodule():
    assert closed("there is a nodule", ask("no")) == 0
    assert closed("no nodule", ask("no")) == 1


@pytest.mark.parametrize(
    ("reply", "answer", "reasoning"),
    [
        ("<think>is there? no... yes</think> yes", "yes", "is there? no... yes"),
        (
            "<think>No?</think>Reasoning: seen at [0.1, 0.2, 0.3, 0.4]. Answer: yes",
            "yes",
            "seen at [0.1, 0.2, 0.3, 0.4].",
        ),
        ("maybe no</think>\n\nYes", "Yes", "maybe no"),
        ("<think>no, it goes on and on", "", "no, it goes on and on"),
        ("◁think▷no◁/think▷yes", "yes", "no"),
        ("<Thinking>\nno\n</Thinking>\n<answer> yes </answer>", "yes", "no"),
        ("Answer: yes\n\nReasoning: there is no doubt", "yes", "there is no doubt"),
        ("**Reasoning:** dense. So yes.\n**Answer:** yes", "yes", "dense. So yes."),
        ("Reasoning: dense.\nAnswer:\nyes\nI hope that there is no error.", "yes", "dense."),
        ("The answer is \\boxed{yes}", "yes", ""),
        ("Final answer: yes<|im_end|>", "yes", "Final"),
        ("Answer: no. Wait. Answer: yes</s>", "yes", "Answer: no. Wait."),
        ("yes", "yes", ""),
        ("Reasoning: it never ends", "", "it never ends"),
        ("", "", ""),
    ],
)
def test_thinking_is_taken_out_and_the_answer_line_is_read(reply, answer, reasoning):
    found = parse_reply(reply)
    assert (found.answer, found.reasoning) == (answer, reasoning)
    assert closed(found.answer, ask("yes")) == (answer.lower() == "yes")


def test_box_numbers_answer_what_the_words_do_not_say():
    """Side by the left edge alone: the words give a coin's toss, the numbers all; another class has neighbours of its own."""
    generator = np.random.default_rng(0)

    def asked(label, mirrored):
        x = float(generator.uniform(0, 0.8))
        text = f"Does the region [{x:.4f}, 0.2000, {x + 0.1:.4f}, 0.3000] show a {label} on the left?"
        return ask("yes" if (x < 0.4) is mirrored else "no", kind="side", stage="easy", domain=f"{label} x X-ray"), text

    def drawn(number):
        pairs = [asked(label, label == "mass") for _ in range(number) for label in ("mass", "nodule")]
        return [replace(one, question=text) for one, text in pairs]

    training, unseen = drawn(200), drawn(50)
    majority = Majority(training)
    guess = WithBoxNumbers(training, majority)
    right = {
        name: np.mean([one.answer == system.answer(one) for one in unseen])
        for name, system in (("majority", majority), ("numbers", guess))
    }
    assert right["majority"] < 0.65
    assert right["numbers"] > 0.95
    without = replace(unseen[0], question="Is there a mass?")
    assert guess.answer(without) == majority.answer(without)
    assert not WithBoxNumbers([ask()], Majority([ask()])).nearest


def test_the_third_baseline_stands_beside_the_majority_where_questions_quote_boxes(monkeypatch):
    replies = "trimtab.medclm.evaluation.evaluate.replies"
    monkeypatch.setattr(replies, lambda model, processor, questions, **_: ["Answer: no"] * len(questions))

    def question(number, x, text="Is [{x}, 0.1, 0.9, 0.9] on the left?"):
        return replace(
            ask("yes" if x < 0.5 else "no", stage="easy", kind="side"), question=text.format(x=x), cluster=str(number)
        )

    training = [question(number, 0.1 + 0.02 * number) for number in range(40)]
    unseen = [question(number, x) for number, x in enumerate((0.15, 0.2, 0.25, 0.7))]
    systems = evaluate(None, None, unseen, training).summary["systems"]
    assert list(systems) == ["model", "text only", "majority", "text with box numbers"]
    accuracy = {name: found["rows"][0]["value"] for name, found in systems.items()}
    assert accuracy == {"model": 0.25, "text only": 0.25, "majority": 0.75, "text with box numbers": 1.0}
    plain = [question(number, 0.1, "Is it left?") for number in range(4)]
    assert "text with box numbers" not in evaluate(None, None, plain, plain).summary["systems"]


def test_five_nearest_boxes_vote_and_ties_go_to_the_nearest():
    guess = NearestBoxes()
    for place, answer in enumerate(("a", "b", "b", "c", "c", "a", "a")):
        guess.add("easy", "where", "d", f"[0.{place}, 0.1, 0.95, 0.9]", answer)
    assert guess.answer("easy", "where", "d", "[0.0, 0.1, 0.95, 0.9]") == "b"  # a, b, b, c, c: b is nearer than c
    assert guess.answer("easy", "where", "d", "[0.6, 0.1, 0.95, 0.9]") == "a"
    assert guess.answer("easy", "where", "d", "the box") is None
    assert guess.answer("medium", "where", "d", "[0.6, 0.1, 0.95, 0.9]") is None


def test_choices_inside_others_and_letters():
    question = ask("lung nodule", choices=("nodule", "lung nodule", "mass", "cyst"))
    assert closed("a lung nodule", question) == 1
    assert closed("B", question) == closed("(B).", question) == 1
    assert closed("A", question) == closed("nodule", question) == 0


def test_open_overlap_against_sets():
    assert overlap("left lower lobe", "left lower lobe") == (1.0, 1.0)
    assert overlap("the lobe lobe", "left lower lobe") == (pytest.approx(2 / 5), pytest.approx(1 / 3))
    assert overlap("heart", "left lower lobe") == (0.0, 0.0)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 9), min_size=8, max_size=8))
def test_iou_is_that_of_pixels(corners):
    boxes = [(x, y, x + w + 1, y + h + 1) for x, y, w, h in (corners[:4], corners[4:])]
    masks = []
    for x0, y0, x1, y1 in boxes:
        mask = np.zeros((25, 25), bool)
        mask[y0:y1, x0:x1] = True
        masks.append(mask)
    expected = (masks[0] & masks[1]).sum() / (masks[0] | masks[1]).sum()
    assert iou(*boxes) == pytest.approx(expected)


def test_grounding_and_reasoning_of_a_reply():
    box = Box(x0=0.1, y0=0.2, x1=0.5, y1=0.6)
    question = ask(
        "right", kind="side", choices=("left", "right"), reason=True, box=box, organ="right lung", side="right"
    )
    seen = "Reasoning: Seen at [0.1000, 0.2000, 0.5000, 0.6000], the patient's right."
    good = f"{seen} In the right lung. So it is right. Answer: right"
    assert scores(question, parse_reply(good)) == dict.fromkeys(
        ("closed.1", "box-given.1", "iou.1", "iou50.1", "quotes.1", "organ.1", "side.1", "agrees.1"), 1.0
    )
    bad = "Reasoning: Seen at [0.3, 0.2, 0.7, 0.6], on the patient's left. So it is left. Answer: right"
    found = scores(question, parse_reply(bad))
    assert found["iou.1"] == pytest.approx(1 / 3)
    assert [found[rule] for rule in ("closed.1", "iou50.1", "quotes.1", "organ.1", "side.1", "agrees.1")] == [
        1,
        0,
        0,
        0,
        0,
        0,
    ]
    none = scores(question, parse_reply("Reasoning: it goes on [1, 0, 0, 0]"))
    assert not any(none.values())
    assert set(found) <= set(RULES)


def test_bootstrap_draws_patients_not_questions():
    """One question per patient: the normal interval of a proportion. Tenfold copies per patient: no narrower."""
    values = [1.0] * 60 + [0.0] * 40
    patients = [str(place) for place in range(100)]
    low, high = interval(values, patients)
    half = 1.96 * (0.6 * 0.4 / 100) ** 0.5
    assert (low, high) == (pytest.approx(0.6 - half, abs=0.02), pytest.approx(0.6 + half, abs=0.02))
    tenfold = interval(values * 10, patients * 10)
    assert tenfold == pytest.approx((low, high))
    assert interval([1.0], ["a"]) == (None, None)


def test_groups_and_majority():
    questions = [ask("yes", stage="easy", kind="present"), ask("no", stage="hard", kind="present")]
    rows = measured(questions, [{"closed.1": 1.0}, {"closed.1": 0.0}])
    found = {(row.group, row.name): (row.n, row.value) for row in rows}
    assert found == {
        ("all", "all"): (2, 0.5), ("stage", "easy"): (1, 1.0), ("stage", "hard"): (1, 0.0), ("kind", "present"): (2, 0.5),
    }  # fmt: skip
    guess = Majority([ask("no", kind="present"), ask("no", kind="present"), ask("yes", kind="count")])
    assert guess.answer(ask("?", kind="present")) == "no"
    with pytest.raises(ValueError, match="needs training questions"):
        Majority([])


def test_questions_of_a_built_set(tmp_path):
    found = questions_of(DataSetFolder(blob_set(tmp_path / "set", images=9)), ["test"])
    assert {one.stage for one in found} == {"easy", "medium", "hard"}
    easy, _, hard = found[:3]
    assert easy.draw
    assert easy.reason
    assert not hard.draw
    assert not hard.reason
    assert easy.choices == ("left", "right")


def picture(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4)).save(path)


def test_vqa_rad_as_its_authors_ship_it(tmp_path):
    picture(tmp_path / "VQA_RAD Image Folder" / "a.jpg")
    given = [
        ("a.jpg", "Yes", "test_freeform"),
        ("a.jpg", 3, "para"),
        ("gone.jpg", "no", "test_para"),
        ("../a.jpg", "no", "test_para"),
    ]
    keys = ("image_name", "answer", "phrase_type")
    same = {"image_organ": "HEAD", "question_type": "PRES", "question": "Is it?"}
    rows = [{"qid": number, **dict(zip(keys, one, strict=True)), **same} for number, one in enumerate(given, start=1)]
    (tmp_path / "VQA_RAD Dataset Public.json").write_text(json.dumps(rows))
    test, train = (load_benchmark("vqa_rad", tmp_path, split) for split in ("test", "train"))
    assert [(one.name, one.choices) for one in test.questions] == [("1", ("yes", "no"))]
    assert [(one.row, one.reason[:12]) for one in test.rejected] == [("[2]", "no image gon"), ("[3]", "file name '.")]
    assert [(one.answer, one.choices) for one in train.questions] == [("3", ())]


@pytest.mark.parametrize(
    ("stated", "answer", "expected"),
    [
        ("CLOSED", "yes", (("yes", "no"), True)),
        ("CLOSED ", "Left", ((), True)),
        ("OPEN", "no", ((), False)),
        (None, "no", (("yes", "no"), False)),
        ("neither", "Left", ((), False)),
    ],
)
def test_vqa_rads_answer_type_says_what_is_closed(tmp_path, stated, answer, expected):
    picture(tmp_path / "images" / "a.jpg")
    row = {"qid": 1, "image_name": "a.jpg", "question": "Left or right?", "answer": answer, "answer_type": stated}
    (tmp_path / "test.jsonl").write_text(json.dumps({key: value for key, value in row.items() if value is not None}))
    (one,) = load_benchmark("vqa_rad", tmp_path, "test").questions
    assert (one.choices, one.closed) == expected


@pytest.mark.parametrize(
    ("reply", "value"), [("Left", 1.0), ("It is on the left side.", 1.0), ("left or right", 0.0), ("right", 0.0)]
)
def test_closed_questions_that_name_their_choices(reply, value):
    asked = Question("1", Path("a"), "Is it on the left or right side?", "Left", "p", closed=True)
    assert scores(asked, parse_reply(reply)) == {"named.1": value}


def test_vqa_rads_test_has_272_closed_and_179_open_questions(tmp_path, shared_data):
    with zipfile.ZipFile(shared_data / "vqa_rad" / "vqa_rad_512.zip") as archive:
        archive.extractall(tmp_path)
    found = load_benchmark("vqa_rad", tmp_path, "test").questions
    assert (sum(one.closed for one in found), sum(not one.closed for one in found)) == (272, 179)


@pytest.mark.parametrize(
    ("question", "answer", "box"),
    [
        ("Where is the left lung?", "Right", (0.5, 0.25, 0.75, 0.75)),  # not also the lung
        ("Which organ is abnormal?", "Liver", (0.0, 0.5, 0.25, 1.0)),
        ("Is the kidney healthy?", "Yes", None),  # two of them
        ("Are the liver and the lung healthy?", "Yes", None),
        ("Which plane is it?", "Axial", None),
    ],
)
def test_slake_gives_the_box_of_the_one_thing_spoken_of(tmp_path, question, answer, box):
    picture(tmp_path / "imgs" / "xmlab0" / "source.jpg")  # 4 x 4
    things = [{"Lung": [0, 0, 4, 4]}, {"Left Lung": [2, 1, 1, 2]}, {"Liver": [0, 2, 1, 2]}]
    things += [{"Kidney": [0, 0, 1, 1]}, {"Kidney": [3, 3, 1, 1]}]
    (tmp_path / "imgs" / "xmlab0" / "detection.json").write_text(json.dumps(things))
    row = {
        "img_id": 0,
        "img_name": "xmlab0/source.jpg",
        "q_lang": "en",
        "qid": 7,
        "question": question,
        "answer": answer,
    }
    (tmp_path / "test.json").write_text(json.dumps([{**row, "answer_type": "CLOSED"}, {**row, "answer_type": "OPEN"}]))
    found = load_benchmark("slake", tmp_path, "test").questions
    assert [None if one.box is None else one.box.corners for one in found] == [box, box]
    assert [(one.closed, one.choices) for one in found] == [(True, choices_of(answer)), (False, ())]
    (tmp_path / "imgs" / "xmlab0" / "detection.json").write_text('{"Liver": 3}')
    with pytest.raises(ValueError, match=r"2 rejected.*detection\.json is damaged"):
        load_benchmark("slake", tmp_path, "test")


def test_slake_path_vqa_and_pmc_vqa(tmp_path):
    picture(tmp_path / "imgs" / "xmlab0" / "source.jpg")
    picture(tmp_path / "images" / "test" / "p1.jpg")
    picture(tmp_path / "images" / "f.jpg")
    slake = {
        "img_id": 0, "img_name": "xmlab0/source.jpg", "question": "What?", "answer": "Liver", "q_lang": "en",
        "location": "Abdomen", "modality": "CT", "qid": 7, "content_type": "Organ",
    }  # fmt: skip
    (tmp_path / "validate.json").write_text(json.dumps([slake, {**slake, "q_lang": "zh", "qid": 8}, {"q_lang": "en"}]))
    found = load_benchmark("slake", tmp_path, "validation")
    assert [(one.name, one.domain) for one in found.questions] == [("7", "Abdomen CT")]
    assert len(found.rejected) == 1
    (tmp_path / "test_qa.jsonl").write_text('{"image": "p1", "question": "is it?", "answer": "no"}\nbroken\n')
    found = load_benchmark("path_vqa", tmp_path, "test")
    assert (found.questions[0].choices, found.rejected[0].row) == (("yes", "no"), "line 2")
    (tmp_path / "test.csv").write_text(
        "index,Figure_path,Question,Choice A,Choice B,Choice C,Choice D,Answer\n"
        "0,f.jpg,Which?, A:CT , B:MRI, C:US, D:PET,B\n1,f.jpg,Which?, A:CT , B:MRI, C:US, D:PET,X-ray\n"
    )
    found = load_benchmark("pmc_vqa", tmp_path, "test")
    assert (found.questions[0].answer, found.questions[0].choices) == ("MRI", ("CT", "MRI", "US", "PET"))
    assert found.rejected[0].reason == "the answer is none of the choices"
    assert closed("B", found.questions[0]) == 1
    with pytest.raises(ValueError, match="unknown question set"):
        load_benchmark("other", tmp_path, "test")
    with pytest.raises(FileNotFoundError, match="is not a file"):
        load_benchmark("slake", tmp_path, "train")
