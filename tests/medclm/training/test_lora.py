"""LoRA, bfloat16 and recomputed activations: gradients arrive, runs resume exactly, the merged model is the trained one."""

import pytest
import torch
from safetensors.torch import load_file

from tests.medclm.training.blobs import blob_set, train_until
from tests.medclm.training.families import FAMILIES
from trimtab.medclm.building import DataSetFolder
from trimtab.medclm.training.collator import Collator
from trimtab.medclm.training.models import load, load_finished
from trimtab.medclm.training.options import TrainOptions
from trimtab.medclm.training.rows import RowData, examples_of
from trimtab.medclm.training.run import train
from trimtab.medclm.training.trainer import CurriculumTrainer


@pytest.fixture(scope="module")
def blobs(tmp_path_factory):
    return blob_set(tmp_path_factory.mktemp("blobs") / "set", images=24)


@pytest.fixture(scope="module")
def examples(blobs):
    return examples_of(DataSetFolder(blobs), ["train"])


def options_of(**settings):
    quick = {"steps": 4, "epochs": 2, "batch": 2, "lr": 1e-2, "warmup": 0.0, "save_every": 3, "schedule": "mixed"}
    quick["pretrain"] = 0
    return TrainOptions(**{**quick, **settings})


def trainer_of(options, examples, folder):
    return CurriculumTrainer(*load(options, examples), RowData(examples), options, folder)


def trained(trainer):
    return {name: weight for name, weight in trainer.model.named_parameters() if weight.requires_grad}


@pytest.mark.parametrize("family", ["tiny-llava", *FAMILIES])
def test_every_trained_weight_gets_a_gradient(family, examples, tmp_path):
    """Without a gradient it has no optimizer state, and a sharded checkpoint of it cannot be read again."""
    texts = [one.row.target for one in examples]
    name = family if family == "tiny-llava" else str(FAMILIES[family](tmp_path / "model", texts))
    trainer = trainer_of(options_of(model=name), examples, tmp_path)
    trainer.compute_loss(trainer.model, trainer.data_collator([trainer.train_dataset[0]])).backward()
    assert not [name for name, weight in trained(trainer).items() if weight.grad is None]


@pytest.mark.parametrize("precision", ["float32", pytest.param("bfloat16", marks=pytest.mark.slow)])
def test_gradients_reach_the_adapters_through_recomputed_layers(precision, examples, tmp_path):
    found = {}
    for checkpointing in (False, True):
        options = options_of(lora=2, precision=precision, checkpointing=checkpointing)
        trainer = trainer_of(options, examples, tmp_path / str(checkpointing))
        before = {name: weight.detach().clone() for name, weight in trained(trainer).items()}
        assert all("lora_" in name and weight.dtype == torch.float32 for name, weight in before.items())
        trainer.train()
        layer = trainer.model.get_base_model().model.language_model.layers[0]
        assert layer.gradient_checkpointing == checkpointing
        found[checkpointing] = {name: weight.detach() - before[name] for name, weight in trained(trainer).items()}
        assert all(moved.any() for moved in found[checkpointing].values())
    for name, moved in found[False].items():
        assert torch.allclose(moved, found[True][name], atol=1e-5), name


def test_the_seed_sets_the_adapters(examples, tmp_path):
    first, same, other = (trained(trainer_of(options_of(lora=2, seed=seed), examples, tmp_path)) for seed in (1, 1, 2))
    name = next(name for name in first if "lora_A" in name)
    assert torch.equal(first[name], same[name])
    assert not torch.equal(first[name], other[name])


def test_a_resumed_run_with_adapters_is_the_same(blobs, examples, tmp_path):
    """bfloat16 weights, recomputed layers, stopped in the middle of an epoch: adapters, optimizer and order to the bit."""
    name = str(FAMILIES["vipllava"](tmp_path / "model", [one.row.target for one in examples]))
    options = options_of(
        model=name, lora=2, precision="bfloat16", checkpointing=True, schedule="adaptive", save_every=1
    )
    assert load(options, examples)[0].dtype == torch.bfloat16
    train(blobs, tmp_path / "whole", options)

    train_until(2, blobs, tmp_path / "cut", options)
    assert [one.name for one in (tmp_path / "cut" / "checkpoints").iterdir()] == ["checkpoint-1"]
    assert train(blobs, tmp_path / "cut", options)["resumed"]
    whole, cut = (tmp_path / name / "checkpoints" / "checkpoint-4" for name in ("whole", "cut"))
    ours, theirs = (load_file(one / "adapter_model.safetensors") for one in (whole, cut))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    ours, theirs = (torch.load(one / "optimizer.pt", weights_only=True)["state"] for one in (whole, cut))
    assert all(torch.equal(value, theirs[place][key]) for place, state in ours.items() for key, value in state.items())
    for file in ("stages.jsonl", "losses.jsonl"):
        assert (tmp_path / "whole" / file).read_text() == (tmp_path / "cut" / file).read_text()


def test_merged_into_the_weights_it_answers_the_same(examples, blobs, tmp_path):
    options = options_of(lora=4)
    trainer = trainer_of(options, examples, tmp_path / "trainer")
    trainer.train()
    batch = Collator(trainer.processing_class)([trainer.train_dataset[place] for place in (0, 4)])
    inputs = {key: value for key, value in batch.items() if key not in ("rows", "labels", "weights")}
    train(blobs, tmp_path / "run", options)
    merged, _ = load_finished(tmp_path / "run")
    trainer.model.eval()
    with torch.no_grad():
        wanted, found = trainer.model(**inputs).logits, merged(**inputs).logits
        with trainer.model.disable_adapter():
            without = trainer.model(**inputs).logits
    assert torch.allclose(found, wanted, atol=1e-4)
    assert not torch.allclose(found, without, atol=1e-2)
