"""The seeing tiny model under TRL's own GRPOTrainer with the rewards of this library."""

import random

import pytest
import torch

from tests.medclm.boxes.pictures import set_of
from trimtab.medclm.building import DataSetFolder
from trimtab.medclm.building.exports import export
from trimtab.medclm.rewards import form, iou_smooth
from trimtab.medclm.training.models import load_finished
from trimtab.medclm.training.options import TrainOptions
from trimtab.medclm.training.run import train

STEPS = 16


@pytest.mark.slow
def test_the_grounding_reward_is_not_zero_and_differs_within_groups(tmp_path):
    """After a short supervised start the rewards differ within groups, so that every step has something to learn from."""
    from trl import GRPOConfig, GRPOTrainer

    from datasets import Image, List, load_dataset

    chance = random.Random(0)
    pictures = []
    for _ in range(24):
        x, y = chance.randint(0, 30), chance.randint(0, 18)
        pictures.append((chance.randint(0, 60), (x, y, x + chance.randint(10, 16), y + chance.randint(8, 12))))
    data = set_of(tmp_path / "set", pictures)
    options = TrainOptions(
        steps=200,
        epochs=2,
        batch=8,
        lr=5e-3,
        warmup=0.1,
        schedule="mixed",
        pretrain=4,
        draw_boxes=False,
        save_every=200,
    )
    train(data, tmp_path / "run", options)
    files = export(DataSetFolder(data), "grpo", tmp_path / "grpo")
    rows = load_dataset("json", data_files=str(files["train"]), split="train", cache_dir=str(tmp_path / "cache"))
    rows = rows.cast_column("images", List(Image()))
    model, processor = load_finished(tmp_path / "run")
    before = [one.detach().clone() for one in model.parameters()]
    settings = GRPOConfig(
        output_dir=str(tmp_path / "grpo-run"), max_steps=STEPS, per_device_train_batch_size=16, num_generations=8,
        max_completion_length=48, learning_rate=2e-4, use_cpu=True, report_to=[], logging_steps=1, save_strategy="no",
        disable_tqdm=True, seed=0, reward_weights=[1.0, 0.5],
    )  # fmt: skip
    trainer = GRPOTrainer(
        model=model,
        processing_class=processor,
        reward_funcs=[iou_smooth, form],
        args=settings,
        train_dataset=rows,
    )
    trainer.train()
    log = [line for line in trainer.state.log_history if "reward" in line]
    smooth = [line["rewards/iou_smooth/mean"] for line in log]
    spread = [line["rewards/iou_smooth/std"] for line in log]
    assert len(log) == STEPS
    assert min(smooth) > 0
    assert sum(smooth) / len(smooth) > 0.1
    assert sum(value > 0.01 for value in spread) >= STEPS * 3 // 4  # what differs within a group is what it learns from
    assert any(not torch.equal(one, other) for one, other in zip(before, model.parameters(), strict=True))
