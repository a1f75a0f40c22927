"""Models loaded by name from a folder go through the real loop, one of each family."""

import json

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from tests.medclm.training.blobs import blob_set, train_until
from tests.medclm.training.families import FAMILIES, WIDTH
from trimtab.medclm.building import DataSetFolder
from trimtab.medclm.evaluation.generation import replies
from trimtab.medclm.evaluation.questions import questions_of
from trimtab.medclm.training.collator import Collator
from trimtab.medclm.training.models import load, load_finished
from trimtab.medclm.training.options import TrainOptions
from trimtab.medclm.training.rows import RowData, examples_of
from trimtab.medclm.training.run import train
from trimtab.medclm.training.trainer import CurriculumTrainer

SLOW_LLAVA, SLOW_VIPLLAVA = (pytest.param(family, marks=pytest.mark.slow) for family in ("llava", "vipllava"))
IMAGE_TOKENS = {"llava": 16, "vipllava": 16, "qwen2_5_vl": 16}


@pytest.fixture(scope="module")
def blobs(tmp_path_factory):
    return blob_set(tmp_path_factory.mktemp("blobs") / "set", images=24)


@pytest.fixture(scope="module")
def folders(blobs, tmp_path_factory):
    home = tmp_path_factory.mktemp("models")
    texts = [f"{one.row.question} {one.row.target}" for one in examples_of(DataSetFolder(blobs), ["train"])]
    return {family: str(save(home / family, texts)) for family, save in FAMILIES.items()}


@pytest.fixture(params=FAMILIES)
def family(request):
    return request.param


def options_of(folder, **settings):
    quick = {"steps": 4, "epochs": 2, "batch": 2, "lr": 1e-2, "warmup": 0.0, "save_every": 3, "schedule": "mixed"}
    return TrainOptions(model=folder, **{**quick, **settings})


def wide(items):
    """Each second picture twice as wide as high, so that a batch has images of two shapes."""
    return [
        item if place % 2 else {**item, "image": item["image"].resize((32, 16))} for place, item in enumerate(items)
    ]


def test_batches_are_right(family, folders, blobs):
    examples = examples_of(DataSetFolder(blobs), ["train"])
    _, processor = load(options_of(folders[family]), examples)
    items = wide([RowData(examples)[place] for place in range(4)])
    batch = Collator(processor, views=True)(items)
    images = batch["input_ids"] == processor.image_token_id
    for place, row in enumerate(batch["rows"]):
        learnt = batch["labels"][place] != -100
        assert processor.tokenizer.decode(batch["labels"][place][learnt]) == row.target + "</s>"
        assert not (images[place] & learnt).any()
        seen = batch["views"][place]
        assert seen.rows * seen.columns == images[place].sum()
    if family == "qwen2_5_vl":
        assert batch["image_grid_thw"].tolist() == [[1, 4, 8], [1, 8, 8]] * 2
        assert images.sum(dim=1).tolist() == [8, 16] * 2
        assert batch["pixel_values"].shape[0] == 2 * (4 * 8 + 8 * 8)
        assert torch.equal(batch["mm_token_type_ids"].bool(), images)
        assert [(one.rows, one.columns) for one in batch["views"]] == [(2, 4), (4, 4)] * 2
    else:
        assert images.sum(dim=1).tolist() == [16] * 4
        assert batch["pixel_values"].shape == (4, 3, 16, 16)


@pytest.mark.parametrize("family", [SLOW_LLAVA, SLOW_VIPLLAVA, "qwen2_5_vl"])
def test_training_resume_and_generation(family, folders, blobs, tmp_path):
    options = options_of(folders[family])
    train(blobs, tmp_path / "whole", options)

    train_until(4, blobs, tmp_path / "run", options)
    assert train(blobs, tmp_path / "run", options)["resumed"]
    before = load_file(f"{folders[family]}/model.safetensors")
    whole, cut = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("whole", "run"))
    assert all(torch.equal(value, cut[name]) for name, value in whole.items())
    assert before.keys() == cut.keys()
    moved = [name for name, value in before.items() if not torch.equal(value, cut[name])]
    assert any("visual" in name or "vision_tower" in name for name in moved)
    assert any("layers.0" in name and "q_proj" in name for name in moved)
    asked = questions_of(DataSetFolder(blobs), ["test"])[:3]
    model, processor = load_finished(tmp_path / "run")
    together = replies(model, processor, asked, most=24)
    assert together == [
        replies(model, processor, [one], most=24)[0] for one in asked
    ]  # padding on the left does not count


@pytest.mark.parametrize("family", [SLOW_LLAVA, "vipllava", "qwen2_5_vl"])
def test_grounding_terms_reach_the_image(family, folders, blobs, tmp_path):
    """Each term by itself has gradients in the vision tower, and none where no row has a box."""
    examples = examples_of(DataSetFolder(blobs), ["train"])
    for term in ("attention", "anchor"):
        options = options_of(folders[family], **{term: 1.0})
        trainer = CurriculumTrainer(*load(options, examples), RowData(examples), options, tmp_path / term)
        items = wide([trainer.train_dataset[place] for place in range(4)])
        batch = trainer.data_collator(items)
        plain, _ = compute(
            trainer, {**batch, "views": [one.__class__(one.rows, one.columns, None) for one in batch["views"]]}
        )
        with_term, gradient = compute(trainer, batch)
        assert with_term > plain + 1e-4
        assert gradient > 0
        trainer.train()
        assert torch.isfinite(torch.tensor(trainer.state.log_history[-1]["train_loss"]))


def compute(trainer, batch):
    trainer.model.zero_grad()
    loss = trainer.compute_loss(trainer.model, batch)
    loss.backward()
    tower = [p for name, p in trainer.model.named_parameters() if "visual" in name or "vision_tower" in name]
    return loss.item(), sum(p.grad.abs().sum().item() for p in tower if p.grad is not None)


def test_what_stands_at_the_image_tokens_is_what_the_anchor_takes(family, folders, blobs):
    """The first hidden state at the image tokens is the family's own projection of the image, in reading order."""
    examples = examples_of(DataSetFolder(blobs), ["train"])
    model, processor = load(options_of(folders[family]), examples)
    item = RowData(examples)[1]
    dark, bright = Image.new("RGB", (32, 32)), Image.new("RGB", (32, 32))
    bright.paste((255, 255, 255), (24, 0, 32, 8))  # the last token of the first row
    found = []
    for picture in (dark, bright):
        batch = Collator(processor)([{**item, "image": picture}])
        images = batch["input_ids"] == processor.image_token_id
        inputs = {key: value for key, value in batch.items() if key not in ("rows", "labels", "weights")}
        with torch.no_grad():
            patches = model(**inputs, output_hidden_states=True).hidden_states[0][images]
        assert patches.shape == (IMAGE_TOKENS[family], WIDTH)
        found.append(patches)
    changed = (found[0] - found[1]).norm(dim=1)
    assert int(changed.argmax()) == 3


def test_other_families_and_wrong_sizes_are_refused(folders, blobs, tmp_path):
    examples = examples_of(DataSetFolder(blobs), ["train"])
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(ValueError, match="family bert; training knows llava, vipllava, qwen2_5_vl"):
        load(options_of(str(tmp_path / "bert")), examples)
    with pytest.raises(ValueError, match="one fixed size"):
        load(options_of(folders["vipllava"], pixels=1000), examples)
    with pytest.raises(ValueError, match="below the least"):
        load(options_of(folders["qwen2_5_vl"], pixels=10), examples)
    _, processor = load(options_of(folders["qwen2_5_vl"], pixels=256), examples)
    ids = Collator(processor)([RowData(examples)[0]])["input_ids"]
    assert int((ids == processor.image_token_id).sum()) == 4
