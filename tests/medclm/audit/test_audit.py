"""Audits of models whose looking is known: one that sees, one that lies, one of our own behind a server and in a folder."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.medclm.audit.served import liar, seer, served, side_of
from tests.medclm.training.blobs import blob_set
from trimtab.medclm.audit import AuditOptions, FolderModel, ServedModel, audit
from trimtab.medclm.audit.measures import value, verdict
from trimtab.medclm.boxes.models import ModelBoxes
from trimtab.medclm.building import DataSetFolder
from trimtab.medclm.evaluation.evaluate import write
from trimtab.medclm.evaluation.pictures import with_pictures
from trimtab.medclm.evaluation.questions import Question, questions_of
from trimtab.medclm.texts.generator import GenerationError
from trimtab.medclm.texts.replies import Reply
from trimtab.medclm.texts.server import ChatServer

PLAIN = AuditOptions(boxes=None)


@pytest.fixture(scope="module")
def blobs(tmp_path_factory):
    folder = DataSetFolder(blob_set(tmp_path_factory.mktemp("blobs") / "set", images=36))
    return [one for one in questions_of(folder, ["test"]) if one.stage != "easy"]


def at(server, **settings):
    return ServedModel("tiny", ChatServer(server.url, "key", **{"retries": 2, "timeout": 20.0, **settings}), 3)


def measure(found, rule):
    return value(found.summary["measures"], rule)["value"]


def share(found, condition, rule="accuracy.1"):
    return value(found.summary["systems"][condition]["rows"], rule)["value"]


def test_a_model_that_sees_is_measured_as_one(blobs, tmp_path):
    with served(seer) as server:
        found = audit(at(server), blobs, tmp_path / "replies", training=blobs)
    truth = np.array([one.answer for one in blobs])
    other = np.array([side_of(Image.open(one.image)) for one in with_pictures(blobs, "other")])
    assert share(found, "real") == 1
    assert share(found, "shuffled") == pytest.approx((other == truth).mean())
    assert share(found, "blank") == share(found, "majority") == pytest.approx((truth == "right").mean())
    assert measure(found, "vrs.1") == pytest.approx(1 - (other == truth).mean())
    assert measure(found, "is.1") == pytest.approx((other != truth).mean())
    assert measure(found, "kept.1") == pytest.approx((truth == "right").mean())
    assert measure(found, "claims.1") == 1
    asked = np.array([one.reason for one in blobs])
    assert measure(found, "hvrr.1") == measure(found, "ungrounded.1") == pytest.approx((other == truth)[asked].mean())
    assert share(found, "real", "lateral.1") == 1 - share(found, "real", "mirrored.1") == 1
    assert share(found, "real", "iou.1") > 0.8
    assert share(found, "real", "iou50.1") == share(found, "real", "agrees.1") == 1
    assert share(found, "blank", "iou.1") < 0.3
    assert verdict(found.summary).startswith("The answers hang on the pictures: 100.0 %")
    assert "key" not in json.dumps(found.summary["replies"])


def test_a_liar_relies_on_nothing_and_hallucinates_all(blobs, tmp_path):
    with served(liar) as server:
        found = audit(at(server), blobs, tmp_path / "replies", AuditOptions(ask="reasoning"))
    assert [measure(found, rule) for rule in ("vrs.1", "is.1", "blank-is.1")] == [0, 0, 0]
    assert [measure(found, rule) for rule in ("claims.1", "hvrr.1", "ungrounded.1", "kept.1")] == [1, 1, 1, 1]
    assert share(found, "real") == share(found, "blank") == np.mean([one.answer == "left" for one in blobs])
    assert "not shown to hang" in verdict(found.summary)
    assert found.summary["left_out"] == {"majority guess": "there are no training questions"}


class Scripted:
    """Replies by question and condition, without a server; `asked` counts what was not in the cache."""

    name, identity = "scripted", {"scripted": 1}

    def __init__(self, said, stop=None):
        self.said, self.stop, self.asked = said, stop, []

    def replies(self, requests, cache):
        for one in requests:
            condition = (
                "blank"
                if one.question.blank
                else "real"
                if one.question.image.stem == one.question.cluster
                else "shuffled"
            )
            yield cache.get(one.key, 0, lambda key=(one.question.name, condition): self._reply(key))

    def _reply(self, key):
        if len(self.asked) == self.stop:
            raise KeyboardInterrupt
        self.asked.append(key)
        said = self.said[key]
        return said if isinstance(said, Reply) else Reply(text=said)


def four(folder):
    """Four patients, one question each with reasoning."""
    for name, shade in zip("abcd", (10, 60, 110, 160), strict=True):
        Image.new("RGB", (8, 8), (shade,) * 3).save(folder / f"{name}.png")
    choices = ("yes", "no")
    return [Question(f"q{n}", folder / f"{n}.png", f"Is it {n}?", a, n, choices=choices, reason=True)
            for n, a in zip("abcd", ("yes", "yes", "no", "no"), strict=True)]  # fmt: skip


SAW, KNEW = "It is seen. So {0}. Answer: {0}", "Mostly so. Answer: {0}"
TABLE = {  # real, shuffled, blank
    "qa": (SAW.format("yes"), SAW.format("no"), KNEW.format("no")),  # right, looks
    "qb": (SAW.format("yes"), SAW.format("yes"), KNEW.format("yes")),  # right, claims, does not look
    "qc": (KNEW.format("yes"), KNEW.format("no"), KNEW.format("yes")),  # wrong, right on another's
    "qd": (KNEW.format("no"), "Answer: no", Reply(text="", finish="length")),  # right, no claim, does not look
}
SAID = {(name, condition): said[place] for name, said in TABLE.items()
        for place, condition in enumerate(("real", "shuffled", "blank"))}  # fmt: skip


def test_measures_by_hand(tmp_path):
    found = audit(Scripted(SAID), four(tmp_path), tmp_path / "replies")
    assert [share(found, name) for name in ("real", "shuffled", "blank")] == [3 / 4, 3 / 4, 1 / 4]
    assert measure(found, "vrs.1") == 0  # 1 + 0 - 1 + 0
    assert measure(found, "is.1") == 2 / 4
    assert measure(found, "blank-is.1") == 2 / 4  # qa, qd
    assert measure(found, "kept.1") == pytest.approx(1 / 3)
    assert measure(found, "claims.1") == 2 / 4
    assert measure(found, "hvrr.1") == 1 / 4
    assert measure(found, "ungrounded.1") == 1 / 2
    assert found.summary["replies"]["cut off"] == found.summary["replies"]["without an answer"] == 1
    vrs = value(found.summary["measures"], "vrs.1")
    assert vrs["low"] < 0 < vrs["high"]


def test_a_killed_audit_goes_on_and_asks_nothing_twice(tmp_path):
    questions = four(tmp_path)
    first = Scripted(SAID, stop=5)
    with pytest.raises(KeyboardInterrupt):
        audit(first, questions, tmp_path / "replies")
    second = Scripted(SAID)
    found = audit(second, questions, tmp_path / "replies")
    assert sorted(first.asked + second.asked) == sorted(SAID)
    whole = audit(Scripted(SAID), questions, tmp_path / "other")
    assert (found.summary, found.predictions) == (whole.summary, whole.predictions)
    third = Scripted(SAID)
    audit(third, questions, tmp_path / "replies", AuditOptions(limit=2))  # the same pictures as without a limit
    assert third.asked == []


def test_a_server_is_paid_once_for_each_different_request(blobs, tmp_path):
    with served(seer) as server:
        for _ in range(2):
            audit(at(server), blobs, tmp_path / "replies")
        asked = {json.dumps(body, sort_keys=True) for body in server.bodies}
        assert len(asked) == len(server.bodies)
        # One blank picture and one text for all questions of a form: two requests instead of two for each image.
        assert len(asked) < 3 * len(blobs)
        assert {body["temperature"] for body in server.bodies} == {0.0}


def test_a_server_that_stalls_is_named_and_nothing_is_lost(blobs, tmp_path):
    guard, seen = threading.Lock(), []

    def stalls(prompt, picture):
        with guard:
            seen.append(prompt)
            return "Answer: left" if len(seen) <= 4 else "hang"

    with (
        served(stalls) as server,
        pytest.raises(ValueError, match=rf"{server.url} did not reply within 0\.5 s, asked 2 times about question"),
    ):
        audit(at(server, timeout=0.5, longest_pause=0.01), blobs, tmp_path / "replies", PLAIN)
    assert 4 <= len(list((tmp_path / "replies").glob("*/*.json"))) <= 7


@pytest.mark.parametrize(
    ("says", "message"),
    [
        (401, "refuses every request: 401"),
        ("page", "does not speak OpenAI's chat protocol"),
        (400, "answers none of the first 3 questions; of question .* the server answered 400: .*status 400"),
    ],
)
def test_a_server_that_answers_nothing_stops_the_audit_at_once(blobs, tmp_path, says, message):
    with served(lambda *_: says) as server:
        with pytest.raises(ValueError, match=message):
            audit(at(server), blobs, tmp_path / "replies", PLAIN)
        assert len(server.bodies) < 12


def test_replies_without_boxes_stop_an_audit_that_asked_for_them_before_all_is_paid(blobs, tmp_path):
    many = [one for one in blobs if one.reason] * 4
    many = [Question(**{**vars(one), "name": str(n), "question": f"{n} {one.question}"}) for n, one in enumerate(many)]
    with served(lambda prompt, _: "It is seen. So it is left. Answer: left") as server:
        with pytest.raises(ValueError, match=r"not one of 20 replies .* gives one as label \[x0.*--boxes none"):
            audit(at(server), many, tmp_path / "replies")
        assert len(server.bodies) <= 20 + 2 * 3
        found = audit(at(server), many, tmp_path / "replies", PLAIN)
    assert found.summary["left_out"]["boxes: IoU and Acc@0.5"] == "no box is known or asked for"
    assert all("[x0" not in body["messages"][0]["content"][1]["text"] for body in server.bodies[-len(many) :])


def test_a_question_that_cannot_be_asked_is_left_out_by_name(tmp_path):
    class Failing(Scripted):
        def replies(self, requests, cache):
            for one, reply in zip(requests, super().replies(requests, cache), strict=True):
                yield (
                    GenerationError("qb", "the server answered 400", "too big") if one.question.name == "qb" else reply
                )

    found = audit(Failing(SAID), four(tmp_path), tmp_path / "replies")
    assert found.summary["n"] == 3
    assert found.summary["failed"] == {"qb": "the server answered 400: too big"}


@pytest.mark.parametrize(("said", "counted"), [
    ({"message": {"role": "assistant", "content": None, "refusal": "I cannot."}}, ("refused", "without an answer")),
    ({"finish_reason": "content_filter"}, ("refused", "without an answer")),
    ({"finish_reason": "length"}, ("cut off", "without an answer")),
])  # fmt: skip
def test_refusals_and_replies_cut_off_are_counted(blobs, tmp_path, said, counted):
    with served(lambda *_: said) as server:
        found = audit(at(server), blobs[:4], tmp_path / "replies", PLAIN)
    assert found.summary["replies"][counted[0]] == 12
    assert share(found, "real") == 0
    assert "kept.1" not in found.summary["rules"]
    assert found.summary["left_out"]["accuracy kept on blank images"]


def test_without_reasoning_there_is_no_claim_and_it_says_so(blobs, tmp_path):
    with served(seer) as server:
        found = audit(at(server), blobs, tmp_path / "replies", AuditOptions(ask="answer"))
        assert max(body["max_tokens"] for body in server.bodies) == 256
    assert not {"claims.1", "hvrr.1", "agrees.1", "iou.1"} & set(found.summary["rules"])
    assert found.summary["left_out"]["agreement of reasoning and answer, claims, HVRR"]
    assert share(found, "real", "lateral.1") == 1


def test_options_and_sets_that_cannot_be_audited(tmp_path):
    with pytest.raises(ValueError, match="no questions"):
        audit(Scripted({}), [], tmp_path / "replies")
    with pytest.raises(ValueError, match="of one patient"):
        audit(Scripted({}), four(tmp_path)[:1], tmp_path / "replies")
    for wrong in ({"form": "other"}, {"ask": "both"}):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))} must be one of"):
            AuditOptions(**wrong)
    assert not (tmp_path / "replies").exists()


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    from tests.medclm.training.families import saved
    from trimtab.medclm.training.tiny import tiny_llava

    model, processor = tiny_llava(
        ["Which side? Reason first, then answer. left right"], image=16, patch=8, hidden=16, layers=1
    )
    return saved(model, processor, tmp_path_factory.mktemp("model") / "tiny")


def test_a_model_in_a_folder_and_the_same_model_served_are_audited_alike(blobs, tmp_path, tiny):
    from trimtab.medclm.evaluation.generation import generated
    from trimtab.medclm.training.models import load_finished

    model, processor = load_finished(tiny)
    guard = threading.Lock()

    def says(prompt, picture):
        with guard:
            return generated(model, processor, [prompt], [picture.convert("RGB")], 16)[0]

    options = AuditOptions("taught", "answer", tokens=12)
    folder = audit(FolderModel(tiny, batch=1), blobs[:8], tmp_path / "folder", options)
    with served(says) as server:
        behind = audit(at(server), blobs[:8], tmp_path / "served", options)
    assert [one["replies"] for one in folder.predictions] == [one["replies"] for one in behind.predictions]
    assert folder.summary["measures"] == behind.summary["measures"]
    write(folder, tmp_path, {}, "audit.json")
    assert json.loads((tmp_path / "audit.json").read_text())["schema"] == "trimtab.medclm.audit/1"


def test_a_family_that_training_does_not_know_is_asked_one_by_one(blobs, tmp_path):
    from transformers import LlavaNextConfig, LlavaNextForConditionalGeneration, LlavaNextProcessor
    from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

    from tests.medclm.training.families import saved
    from trimtab.medclm.training.tiny import CHAT, tiny_llava

    small, processor = tiny_llava(["Which side? left right"], image=16, patch=8, hidden=16, layers=1)
    config = LlavaNextConfig(
        vision_config=small.config.vision_config, text_config=small.config.text_config, image_token_index=3,
        vision_feature_layer=-1, vision_feature_select_strategy="default", image_grid_pinpoints=[[16, 16], [16, 32]],
        tie_word_embeddings=True,
    )  # fmt: skip
    pictures = LlavaNextImageProcessorPil(
        size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}, image_grid_pinpoints=[[16, 16], [16, 32]]
    )
    whole = LlavaNextProcessor(
        pictures, processor.tokenizer, patch_size=8, vision_feature_select_strategy="default", chat_template=CHAT,
        image_token="<image>", num_additional_image_tokens=1,
    )  # fmt: skip
    model = LlavaNextForConditionalGeneration(config)
    model.generation_config.pad_token_id, model.generation_config.eos_token_id = 0, 1
    folder = saved(model, whole, tmp_path / "model")
    found = audit(
        FolderModel(folder), blobs[:4], tmp_path / "replies", AuditOptions(ask="answer", tokens=8, boxes=None)
    )
    assert found.summary["n"] == 4
    assert len(list((tmp_path / "replies").glob("*/*.json"))) == 3  # one text on two pictures and on a blank one


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="is no folder with a model"):
        FolderModel(tmp_path / "none")
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(ValueError, match="llama, which takes no picture"):
        FolderModel(tmp_path)


def test_a_model_that_was_trained_on_is_asked_anew(tiny, tmp_path):
    before = FolderModel(tiny).identity
    assert FolderModel(tiny).identity == before
    weights = Path(tiny) / "model.safetensors"
    weights.write_bytes(weights.read_bytes())
    assert FolderModel(tiny).identity != before


def test_boxes_of_other_formats_are_asked_for_and_read_as_such(blobs, tmp_path):
    """Pixels of the picture as Qwen2.5-VL resizes it: 32 x 32 becomes 56 x 56."""

    def says(prompt, picture):
        side = side_of(picture)
        if "bbox_2d" not in prompt:
            return f"Answer: {side}"
        box = picture.convert("L").point(lambda value: 255 * (value > 200)).getbbox() or (0, 0, 8, 8)
        corners = [round(56 * value / 32) for value in box]
        return f'{{"bbox_2d": {corners}, "label": "blob"}} is seen. So it is {side}.\nAnswer: {side}'

    options = AuditOptions(boxes=ModelBoxes.named("qwen2.5"))
    easy = [replace(one, question="Which side is [0.2500, 0.5000, 0.7500, 1.0000]?") for one in blobs]
    with served(says) as server:
        found = audit(at(server), easy, tmp_path / "replies", options)
        texts = {body["messages"][0]["content"][1]["text"] for body in server.bodies}
    assert share(found, "real", "iou50.1") == 1
    assert all("[14, 28, 42, 56]" in text for text in texts)


def test_questions_whose_answer_is_boxes_are_right_where_the_box_is_found(blobs, tmp_path):
    asked = [
        replace(
            one, question="Where is the blob?", answer="blob", choices=(), reason=False, answer_boxes=(one.box.corners,)
        )
        for one in blobs
        if one.box is not None
    ]

    def says(prompt, picture):
        assert '"Answer: " and each box as label [x0, y0, x1, y1]' in prompt
        box = picture.convert("L").point(lambda value: 255 * (value > 200)).getbbox() or (0, 0, 8, 8)
        corners = ", ".join(f"{at / length:.4f}" for at, length in zip(box, picture.size * 2, strict=True))
        return f"Answer: blob [{corners}]"

    with served(says) as server:
        found = audit(at(server), asked, tmp_path / "replies")
    assert share(found, "real") == share(found, "real", "boxes50.1") == 1
    assert measure(found, "vrs.1") == 1 - share(found, "shuffled", "boxes50.1") > 0.5
    assert measure(found, "is.1") > 0.5
    with pytest.raises(ValueError, match="no questions"):
        audit(Scripted({}), asked, tmp_path / "replies", PLAIN)
