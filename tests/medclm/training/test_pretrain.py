"""The tower's lessons against closed forms and Pillow; the pretraining resumed, refused, and put into the model."""

import json
import math

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from sklearn.metrics import roc_auc_score

from tests.medclm.samples import source
from tests.medclm.training.blobs import blob_set
from trimtab.cli import main
from trimtab.medclm.building import DataSetFolder, build
from trimtab.medclm.records import Box
from trimtab.medclm.training.models import load_finished
from trimtab.medclm.training.options import TrainOptions
from trimtab.medclm.training.pretrain import PretrainOptions, Teacher, pretrain, tower_loss
from trimtab.medclm.training.rows import with_box
from trimtab.medclm.training.run import train
from trimtab.medclm.training.sights import Sights, drawn, normalised, patch_truth, read_sights
from trimtab.medclm.training.tiny import tiny_llava, tiny_tower
from trimtab.medclm.training.tower_figures import auc

QUICK = PretrainOptions(epochs=3, batch=8, seed=1)


@pytest.fixture(scope="module")
def boxed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("boxed")
    options = source(folder / "source", images=36).model_copy(update={"fractions": (0.6, 0.2, 0.2)})
    build(options, folder / "set")
    return folder / "set"


def sights(boxes, labels, side=32, grid=2):
    return Sights(
        torch.zeros(len(boxes), 3, side, side, dtype=torch.uint8), torch.tensor(boxes), torch.tensor(labels),
        torch.zeros(len(boxes), 0, grid, grid),
    )  # fmt: skip


def test_a_patch_holds_its_share_or_the_share_of_a_small_box():
    """On 2 x 2 patches: the right half of the picture, and a small box with three quarters in the first patch."""
    truth = patch_truth(sights([[[0.5, 0.0, 1.0, 1.0], [0.2, 0.3, 0.6, 0.4]], [[0.0] * 4] * 2], [[0, 1], [-1, -1]]), 2)
    assert truth.lesions[0, :, 0].tolist() == [0, 1, 0, 1]
    torch.testing.assert_close(truth.lesions[0, :, 1], torch.tensor([0.75, 0.25, 0, 0]))
    assert truth.present.tolist() == [[1, 1], [0, 0]]
    assert not truth.lesions[1].any()
    assert truth.place.tolist() == [[0.25, 0.25], [0.75, 0.25], [0.25, 0.75], [0.75, 0.75]]
    marked = patch_truth(sights([[[0.5, 0.0, 1.0, 1.0]]] * 2, [[0], [0]]), 1, torch.tensor([0, -1])).marked
    assert marked.tolist() == [[0, 1, 0, 1], [0] * 4]


def test_a_drawn_box_is_the_one_of_easy_rows():
    box = Box(x0=0.13, y0=0.2, x1=0.71, y1=0.9)
    found = drawn(sights([[list(box.corners)]] * 2, [[0], [0]], side=128), torch.tensor([0, -1]))
    expected = np.asarray(with_box(Image.new("RGB", (128, 128)), box))
    assert np.array_equal(found.pictures[0].permute(1, 2, 0).numpy(), expected)
    assert not found.pictures[1].any()


def test_the_tower_is_taught_what_the_processor_hands_over(boxed):
    folder = DataSetFolder(boxed)
    record = next(folder.records())
    mine = normalised(read_sights(folder, [record], ["nodule", "mass", "effusion"], [], 128, 8).pictures)
    processor = tiny_llava(["a b"])[1]
    with Image.open(folder.images / record.file) as opened:
        theirs = processor.image_processor(opened.convert("RGB"), return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(mine, theirs, atol=0.02, rtol=0)  # one grey level


def test_the_loss_is_the_sum_of_its_terms():
    """One picture of two patches, one class, one organ, all logits 0 but those of the class."""
    said = (torch.tensor([[[2.0], [-1.0]]]), torch.zeros(1, 2, 1), torch.zeros(1, 2), torch.zeros(1, 2, 2))
    one = sights([[[0.0, 0.0, 0.5, 1.0]]], [[0]], grid=2)
    truth = patch_truth(one, 1)
    truth = type(truth)(
        truth.lesions[:, :2], truth.present, torch.tensor([[[1.0], [0.0]]]), torch.tensor([[1.0, 0.0]]),
        torch.tensor([[0.2, 0.4], [0.6, 0.0]]),
    )  # fmt: skip
    options = PretrainOptions(positive=8.0, image=0.2, organs=0.5)

    def softplus(x):
        return math.log1p(math.exp(x))

    lesions = (8 * softplus(-2.0) + softplus(-1.0)) / 2
    image = softplus(-math.log(math.exp(2.0) + math.exp(-1.0)))
    marked = (8 * math.log(2) + math.log(2)) / 2
    place = (0.2**2 + 0.4**2 + 0.6**2) / 4
    expected = lesions + 0.2 * image + 0.5 * math.log(2) + 0.5 * marked + place
    assert tower_loss(said, truth, options).item() == pytest.approx(expected, rel=1e-6)


def test_the_area_is_scikit_learns():
    chance = torch.Generator().manual_seed(0)
    scores = torch.randn(200, generator=chance).round(decimals=1)  # with ties
    holds = torch.rand(200, generator=chance) < 0.3
    assert auc(scores, holds) == pytest.approx(roc_auc_score(holds.numpy(), scores.numpy()))
    assert auc(scores, torch.zeros(200, dtype=torch.bool)) is None


def test_a_tower_learns_where_bright_boxes_are():
    """Bright squares on noise: after some steps their patches are found in new pictures."""
    chance = torch.Generator().manual_seed(0)

    def pictures(count):
        corners = torch.randint(0, 6, (count, 2), generator=chance) / 8
        found = sights(torch.cat([corners, corners + 0.25], -1)[:, None].tolist(), [[0]] * count, side=128, grid=8)
        noise = torch.randint(0, 60, found.pictures.shape, generator=chance, dtype=torch.uint8)
        for picture, corner in zip(noise, (corners * 128).int().tolist(), strict=True):
            picture[:, corner[1] : corner[1] + 32, corner[0] : corner[0] + 32] += 150
        return Sights(noise, found.boxes, found.labels, found.organs)

    torch.manual_seed(0)
    teacher, lesson, unseen = Teacher(tiny_tower(), 1, 0), pictures(32), pictures(16)
    optimizer = torch.optim.AdamW(teacher.parameters(), lr=3e-3)
    for _ in range(25):
        optimizer.zero_grad()
        tower_loss(teacher(normalised(lesson.pictures)), patch_truth(lesson, 1), QUICK).backward()
        optimizer.step()
    found = teacher(normalised(unseen.pictures))[0][..., 0].detach().flatten()
    assert auc(found, patch_truth(unseen, 1).lesions.flatten() == 1) > 0.95


def test_a_pretraining_that_was_stopped_goes_on_to_the_same_bits(boxed, tmp_path):
    whole = pretrain(boxed, tmp_path / "whole", QUICK)

    def die(epoch, epochs, loss):
        if epoch == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pretrain(boxed, tmp_path / "cut", QUICK, die)
    _as_if_it_had_taken(1000.0, tmp_path / "cut" / "checkpoint.safetensors")
    cut = pretrain(boxed, tmp_path / "cut", QUICK)
    assert whole["cpu_seconds"] < 1000 < cut["cpu_seconds"]  # of all its processes
    changing = ("cpu_seconds",)
    assert {k: v for k, v in whole.items() if k not in changing} == {k: v for k, v in cut.items() if k not in changing}
    one, other = (load_file(tmp_path / name / "tower" / "model.safetensors") for name in ("whole", "cut"))
    assert all(torch.equal(value, other[name]) for name, value in one.items())
    assert not (tmp_path / "cut" / "checkpoint.safetensors").exists()
    assert pretrain(boxed, tmp_path / "cut", QUICK) == cut
    assert len(whole["losses"]) == 3
    assert set(whole["figures"]["classes"]) == set(whole["classes"])
    with pytest.raises(ValueError, match="with other options or data"):
        pretrain(boxed, tmp_path / "cut", PretrainOptions(epochs=4))


def _as_if_it_had_taken(seconds, checkpoint):
    with safe_open(checkpoint, "pt") as opened:
        tensors, kept = {name: opened.get_tensor(name) for name in opened.keys()}, opened.metadata()  # noqa: SIM118
    assert 0 < float(kept["cpu_seconds"]) < 1000
    save_file(tensors, checkpoint, metadata={**kept, "cpu_seconds": repr(seconds)})


def test_the_model_has_the_tower_and_keeps_it(boxed, tmp_path):
    options = TrainOptions(steps=2, epochs=2, batch=2, pretrain=2, seed=3)
    train(boxed, tmp_path / "run", options)
    tower = load_file(tmp_path / "run" / "pretrain" / "tower" / "model.safetensors")
    model, _ = load_finished(tmp_path / "run")
    inside = model.model.vision_tower.state_dict()
    assert {k.removeprefix("vision_model."): None for k in tower}.keys() == {
        k.removeprefix("vision_model."): None for k in inside if not k.endswith("position_ids")
    }.keys()
    for name, value in tower.items():
        assert torch.equal(value, inside[name if name in inside else name.removeprefix("vision_model.")]), name
    figures = json.loads((tmp_path / "run" / "pretrain" / "pretrain.json").read_text())
    assert figures["options"] == {**PretrainOptions(epochs=2, seed=3).__dict__}
    taken = TrainOptions(steps=2, epochs=2, batch=2, tower=str(tmp_path / "run" / "pretrain"), seed=3)
    train(boxed, tmp_path / "again", taken)
    one, other = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("run", "again"))
    assert all(torch.equal(value, other[name]) for name, value in one.items())
    with pytest.raises(FileNotFoundError, match="holds no vision tower"):
        train(boxed, tmp_path / "none", TrainOptions(steps=2, epochs=2, tower=str(tmp_path)))


def test_what_cannot_be_pretrained_on_is_one_error_and_leaves_nothing(boxed, tmp_path, capsys):
    with pytest.raises(FileNotFoundError, match=r"no records\.jsonl, so there are no boxes .*--pretrain 0"):
        pretrain(blob_set(tmp_path / "blobs", images=6), tmp_path / "out", QUICK)
    folder = DataSetFolder(boxed)
    records = list(folder.records())
    saved = folder.records_file.read_text()

    def write(change):
        folder.records_file.write_text("".join(change(one).model_dump_json() + "\n" for one in records))

    try:
        write(lambda one: one.model_copy(update={"lesions": ()}))
        with pytest.raises(ValueError, match=r"none of the .* training pictures has a box .*--pretrain 0"):
            pretrain(boxed, tmp_path / "out", QUICK)
        write(
            lambda one: one.model_copy(
                update={"lesions": tuple(x for x in one.lesions if one.split != "train" or x.label != "nodule")}
            )
        )
        assert main(["medclm", "pretrain", str(boxed), "--out", str(tmp_path / "out"), "--quiet"]) == 2
        error = " ".join(capsys.readouterr().err.split())
        assert "held-out pictures have boxes of nodule, training pictures have none" in error
    finally:
        folder.records_file.write_text(saved)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model": "some/llava", "pretrain": 3}, "only the tower of tiny-llava is pretrained, not that of some/llava"),
        ({"model": "some/llava", "tower": "here"}, "tower here is for tiny-llava"),
        ({"tower": "here", "pretrain": 3}, "instead of pretrain"),
        ({"pretrain": -1}, "pretrain must be a whole number of 0 or more"),
    ],
)
def test_options_that_do_not_go_together_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        TrainOptions(**settings)


def test_the_learning_rate_and_the_pretraining_follow_the_model():
    assert (TrainOptions().peak, TrainOptions().tower_epochs) == (5e-3, 32)
    other = TrainOptions(model="some/llava")
    assert (other.peak, other.tower_epochs) == (2e-5, 0)
    assert TrainOptions(lr=1e-4).peak == 1e-4


def test_the_language_model_starts_with_attention_that_is_not_flat():
    model, _ = tiny_llava(["a b c"] * 3)
    spread = model.model.language_model.layers[0].self_attn.q_proj.weight.std().item()
    assert spread == pytest.approx(0.1, rel=0.05)


def test_the_command_shows_what_the_tower_sees(boxed, tmp_path, capsys):
    assert main(["medclm", "pretrain", str(boxed), "--out", str(tmp_path / "tower"), "--epochs", "1"]) == 0
    printed = capsys.readouterr().out
    assert "area under the curve" in printed
    assert "trimtab medclm train" in printed
