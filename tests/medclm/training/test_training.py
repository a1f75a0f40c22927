import json

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from tests.medclm.training.blobs import blob_set, train_until
from trimtab.curricula import SpanWeights
from trimtab.medclm.building import DataSetFolder
from trimtab.medclm.records import Box
from trimtab.medclm.texts.prompts import prompt_of
from trimtab.medclm.training.collator import Collator, encoded_prompts, prompt_text
from trimtab.medclm.training.models import load
from trimtab.medclm.training.options import TrainOptions
from trimtab.medclm.training.rows import RowData, asked_plainly, examples_of, with_box
from trimtab.medclm.training.run import train
from trimtab.medclm.training.tiny import tiny_llava
from trimtab.medclm.training.trainer import CurriculumTrainer
from trimtab.observe import GradientTracker
from trimtab.penalties import VarianceAmplifier

QUICK = {"steps": 8, "epochs": 4, "batch": 4, "lr": 2e-3, "save_every": 3, "schedule": "mixed", "pretrain": 0}


@pytest.fixture(scope="module")
def blobs(tmp_path_factory):
    return blob_set(tmp_path_factory.mktemp("blobs") / "set", images=24)


@pytest.fixture(scope="module")
def pieces(blobs):
    examples = examples_of(DataSetFolder(blobs), ["train"])
    texts = [f"{one.row.question} {one.row.target}" for one in examples]
    return examples, *tiny_llava(texts, image=16, patch=8, hidden=16, layers=1)


def test_labels_cover_exactly_the_target_and_the_end(pieces):
    examples, _, processor = pieces
    batch = Collator(processor)([RowData(examples)[place] for place in range(6)])
    tokenizer = processor.tokenizer
    for ids, labels, weights, mask, row in zip(
        batch["input_ids"], batch["labels"], batch["weights"], batch["attention_mask"], batch["rows"], strict=True
    ):
        learnt = labels != -100
        assert tokenizer.decode(labels[learnt]) == row.target + "</s>"
        assert torch.equal(ids[learnt], labels[learnt])
        assert weights.sum().item() == pytest.approx(1)
        assert not weights[~learnt].any()
        answer = tokenizer.decode(ids[weights == weights.max()])
        assert answer.replace("</s>", "").strip().removeprefix("Answer: ") == row.answer
        assert not mask[len(mask) - int((mask == 0).sum()) :].any()  # padding stands at the end and is masked
        assert not learnt[mask == 0].any()


def test_image_expansion_does_not_shift_spans(pieces):
    """The processor's expansion and ours of an unexpanded prompt give the same row."""
    examples, model, processor = pieces
    item = RowData(examples)[1]
    row, tokenizer = item["row"], processor.tokenizer
    batch = Collator(processor)([item])
    text = prompt_of(row)
    short = tokenizer(prompt_text(processor, text), add_special_tokens=False)["input_ids"]
    target = tokenizer(row.target, add_special_tokens=False, return_offsets_mapping=True)
    weights = SpanWeights({"answer": 0.8, "reasoning": 0.2})
    ours = weights.tokens(short, target["input_ids"], target["offset_mapping"], row.spans, tokenizer.eos_token_id)
    ours = ours.expanded(model.config.image_token_index, [4])
    assert batch["input_ids"][0].tolist() == list(ours.ids)
    assert batch["labels"][0].tolist() == list(ours.labels)
    assert torch.equal(batch["weights"][0], torch.tensor(ours.weights))
    assert len(encoded_prompts(processor, [text], [item["image"]]).ids[0]) == len(short) + 3


def test_boxes_are_drawn_for_easy_rows_on_copies_only(pieces):
    examples = pieces[0]
    drawn, plain = RowData(examples), RowData(examples, draw_boxes=False)
    for place, one in enumerate(examples[:3]):
        same = drawn[place]["image"].tobytes() == plain[place]["image"].tobytes()
        assert same == (one.row.stage != "easy")
    picture = Image.new("RGB", (10, 10))
    marked = with_box(picture, Box(x0=0.2, y0=0.3, x1=0.8, y1=0.9))
    red = {(x, y) for x in range(10) for y in range(10) if marked.getpixel((x, y)) != (0, 0, 0)}
    assert red == {(x, y) for x in range(2, 8) for y in range(3, 9) if x in (2, 7) or y in (3, 8)}
    assert not any(picture.tobytes())


def test_a_share_of_the_reasoning_is_left_out_and_nothing_else(pieces):
    examples = pieces[0]
    assert asked_plainly(examples, 0.0) == examples
    for share, most in ((0.5, 24), (1.0, 32)):
        found = asked_plainly(examples, share, seed=1)
        changed = [(old.row, new.row) for old, new in zip(examples, found, strict=True) if old != new]
        assert 4 < len(changed) <= most
        for old, new in changed:
            assert old.reasoning
            assert new.target == f"Answer: {old.answer}"
            assert new.model_dump(exclude={"reasoning", "target", "spans"}) == old.model_dump(
                exclude={"reasoning", "target", "spans"}
            )
            assert prompt_of(new).endswith("Answer only.")
            assert type(new).model_validate(new.model_dump()) == new  # the spans cut out the texts
    assert not any(one.row.reasoning for one in asked_plainly(examples, 1.0))
    assert asked_plainly(examples, 0.5, seed=1) != asked_plainly(examples, 0.5, seed=2)


def test_resumed_training_equals_one_that_was_not_stopped(blobs, tmp_path):
    """Killed in the middle of an epoch of the scheduler: weights, decisions and losses are the same to the bit."""
    options = TrainOptions(**{**QUICK, "schedule": "adaptive"})
    train(blobs, tmp_path / "whole", options)

    train_until(4, blobs, tmp_path / "cut", options)
    found = train(blobs, tmp_path / "cut", options)
    assert found["resumed"]
    assert found["steps"] == 8
    whole, cut = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("whole", "cut"))
    assert whole.keys() == cut.keys()
    for name, value in whole.items():
        assert torch.equal(value, cut[name]), name
    for file in ("stages.jsonl", "losses.jsonl"):
        assert (tmp_path / "whole" / file).read_text() == (tmp_path / "cut" / file).read_text()
    assert train(blobs, tmp_path / "cut", options) == found  # a finished run is returned as it is
    with pytest.raises(ValueError, match=r"other settings \(seed\)"):
        train(blobs, tmp_path / "cut", TrainOptions(**{**QUICK, "schedule": "adaptive", "seed": 1}))


def test_levers_and_tracker_attach(blobs, tmp_path):
    plain = train(blobs, tmp_path / "plain", TrainOptions(**QUICK))
    with pytest.warns(UserWarning, match="clips the gradients before the levers"):
        train(
            blobs, tmp_path / "var", TrainOptions(**QUICK), [VarianceAmplifier(strength=1e-2)],
            GradientTracker(folder=tmp_path / "var"),
        )  # fmt: skip
    assert plain["state"] == "finished"
    one, other = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("plain", "var"))
    assert any(not torch.equal(value, other[name]) for name, value in one.items())
    assert list((tmp_path / "var").rglob("*.parquet"))


def test_lora_and_grounding_terms_train(blobs, tmp_path):
    options = TrainOptions(**{**QUICK, "steps": 2, "epochs": 2}, lora=2, freeze_vision=True, attention=0.1, anchor=0.1)
    train(blobs, tmp_path / "lora", options)
    assert (tmp_path / "lora" / "model" / "model.safetensors").is_file()
    history = [json.loads(line) for line in (tmp_path / "lora" / "history.jsonl").read_text().splitlines()]
    assert history[-1]["train_loss"] > 0


def test_bucketing_pads_less(pieces, tmp_path):
    """The whole trainer's batches: the same rows, fewer padded places."""
    examples, model, processor = pieces
    padded = {}
    for bucket in (False, True):
        options = TrainOptions(**{**QUICK, "steps": 16, "epochs": 2}, bucket=bucket)
        trainer = CurriculumTrainer(model, processor, RowData(examples), options, tmp_path / str(bucket))
        batches = list(trainer.get_train_dataloader())
        padded[bucket] = sum(int((batch["attention_mask"] == 0).sum()) for batch in batches)
    assert padded[True] < padded[False]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 3, "epochs": 4}, "steps no fewer"),
        ({"batch": 0}, "batch must be a whole number of 1 or more"),
        ({"lr": 0}, "lr must be finite and above 0"),
        ({"warmup": 1}, "warmup"),
        ({"plain": 1.5}, r"plain must lie in \[0, 1\], got 1.5"),
        ({"lora": -1}, "lora must be a whole number of 0 or more"),
    ],
)
def test_wrong_options_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        TrainOptions(**settings)


def test_a_set_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(NotADirectoryError, match="is not a folder"):
        train(tmp_path / "none", tmp_path / "run", TrainOptions(**QUICK))


def trainer_of(blobs, folder, **settings):
    options = TrainOptions(**{**QUICK, **settings})
    examples = examples_of(DataSetFolder(blobs), ["train"])
    model, processor = load(options, examples)
    return CurriculumTrainer(model, processor, RowData(examples), options, folder)


def test_the_loss_is_that_of_all_logits(blobs, tmp_path):
    trainer = trainer_of(blobs, tmp_path, answer=0.9, reasoning=0.1)
    batch = trainer.data_collator([trainer.train_dataset[place] for place in (0, 4, 8, 2)])
    labels, weights = batch["labels"], batch["weights"]
    inputs = {key: value for key, value in batch.items() if key not in ("labels", "weights", "rows")}
    with torch.no_grad():
        logits = trainer.model(**inputs).logits
        found = trainer.compute_loss(trainer.model, batch)
    total = 0.0
    for row in range(4):
        for place in range(1, labels.shape[1]):
            if labels[row, place] != -100:
                chance = logits[row, place - 1].softmax(0)[labels[row, place]]
                total -= weights[row, place].item() * chance.log().item()
    assert found.item() == pytest.approx(total / 4, rel=1e-5)


def test_two_accumulated_batches_step_as_one_of_both(blobs, tmp_path):
    settings = {"steps": 2, "epochs": 2, "warmup": 0.0}
    one = trainer_of(blobs, tmp_path / "one", batch=4, **settings)
    two = trainer_of(blobs, tmp_path / "two", batch=2, accumulate=2, **settings)
    for trainer in (one, two):
        trainer.train()
    assert one.state.log_history[0]["grad_norm"] == pytest.approx(two.state.log_history[0]["grad_norm"], rel=1e-4)
    assert one.state.log_history[0]["loss"] == pytest.approx(two.state.log_history[0]["loss"], rel=1e-4)


def test_nothing_is_sent_over_the_network(blobs, tmp_path, monkeypatch):
    sent = []
    monkeypatch.setattr("trl.trainer.base_trainer.send_telemetry", lambda **told: sent.append(told))
    monkeypatch.delenv("CI", raising=False)
    trainer_of(blobs, tmp_path)
    assert not sent
