"""PolicyTrainer: TRL's own steps where loss and advantage are TRL's, another loss where they are not."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.adapters.hugging_face_models import language_model
from tests.losses.test_cross_entropies import wave
from trimtab.losses.policy import batch_advantage, gppo, group_advantage, ppo

SETTINGS = {
    "max_steps": 2, "per_device_train_batch_size": 8, "num_generations": 4, "num_iterations": 2, "max_completion_length": 4,
    "learning_rate": 3.0, "optim": "sgd", "max_grad_norm": 0.0, "seed": 5, "beta": 0.0,
}  # fmt: skip


def tokenizer() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {f"w{at}": at for at in range(14)} | {"<pad>": 14, "<eos>": 15}
    inner = Tokenizer(models.WordLevel(words, unk_token="w0"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", eos_token="<eos>")


def reward(completions: list[str], **others: Any) -> list[float | None]:
    """How often an even word occurs; some are not scored."""
    found: list[float | None] = [float(sum(int(word[1:]) % 2 == 0 for word in text.split())) for text in completions]
    return [None if at == 3 else value for at, value in enumerate(found)]


def trainer(kind: Any, folder: Path, **given: Any) -> Any:
    from trl import GRPOConfig

    from datasets import Dataset

    own = {name: given.pop(name) for name in ("policy_loss", "advantage") if name in given}
    config = GRPOConfig(str(folder), use_cpu=True, bf16=False, report_to=[], disable_tqdm=True, save_strategy="no",
                        logging_strategy="no", **{**SETTINGS, **given})  # fmt: skip
    rows = Dataset.from_dict({"prompt": ["w1 w2", "w3", "w4 w5", "w6 w7"]})
    model = language_model()
    model.config.pad_token_id = 14
    model.save_pretrained(folder / "start")  # where TRL finds the reference policy
    model.config._name_or_path = str(folder / "start")
    return kind(model=model, reward_funcs=reward, args=config, train_dataset=rows, processing_class=tokenizer(), **own)


def weights(model: Any) -> Tensor:
    return torch.cat([one.detach().flatten() for one in model.parameters()])


def trained(kind: Any, folder: Path, **given: Any) -> tuple[Tensor, Any]:
    found = trainer(kind, folder, **given)
    found.train()
    return weights(found.model), found


OURS = {"policy_loss": ppo, "advantage": functools.partial(group_advantage, eps=1e-4)}


@pytest.mark.parametrize(
    "given", [{"loss_type": "dapo"}, {"loss_type": "grpo", "beta": 0.1}], ids=lambda one: one["loss_type"]
)
def test_with_ppo_and_the_group_advantage_it_takes_trls_steps(tmp_path: Path, given: dict[str, Any]) -> None:
    from trl import GRPOTrainer

    from trimtab.adapters.trl import PolicyTrainer

    expected, _ = trained(GRPOTrainer, tmp_path, **given)
    found, ours = trained(PolicyTrainer, tmp_path, **given, **OURS)
    start = weights(language_model())
    assert (expected - start).norm() > 1e-2
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    assert 0 < ours.state.log_history[-1]["policy/clip"] < 1


def test_another_loss_and_advantage_take_other_steps(tmp_path: Path) -> None:
    from trimtab.adapters.trl import PolicyTrainer

    settings = {"loss_type": "bnpo", "learning_rate": 30.0}
    tight = {"low": 0.01, "high": 0.01}
    plain, _ = trained(PolicyTrainer, tmp_path, policy_loss=functools.partial(ppo, **tight), **settings)
    kept, ours = trained(PolicyTrainer, tmp_path, policy_loss=functools.partial(gppo, **tight), **settings)
    other, _ = trained(
        PolicyTrainer, tmp_path, policy_loss=functools.partial(ppo, **tight), advantage=batch_advantage, **settings
    )
    assert ours.state.log_history[-1]["policy/clip"] > 0
    assert (kept - plain).norm() > 1e-5  # clipped tokens go on moving the weights
    assert (other - plain).norm() > 1e-5


@pytest.mark.parametrize(
    ("loss_type", "aggregate"),
    [("bnpo", "token"), ("grpo", "sequence"), ("dr_grpo", "sequence_sum_norm"), ("dapo", "sum")],
)
def test_joining_as_trl_does_has_the_gradient_of_our_own(loss_type: str, aggregate: str) -> None:
    from trimtab.adapters.trl import PolicyTrainer

    bare = PolicyTrainer.__new__(PolicyTrainer)
    bare.loss_type, bare.max_completion_length, bare.current_gradient_accumulation_steps = loss_type, 5, 1
    bare.accelerator = type("Accelerator", (), {"num_processes": 1})()
    bare.args = type("Arguments", (), {"steps_per_generation": 1})()
    old, gain = wave(3, 5, seed=2, scale=0.5) - 1, wave(3, 5, seed=3)
    mask = (torch.arange(5)[None] < torch.tensor([5, 2, 3])[:, None]).long()
    logp = (wave(3, 5, seed=1) - 1).requires_grad_()
    inputs = {"num_items_in_batch": torch.tensor(1)}
    loss = bare._joined(gppo(logp, old, gain, mask, aggregate="none")[0], mask, inputs, "train")
    (found,) = torch.autograd.grad(loss, logp)
    (expected,) = torch.autograd.grad(gppo(logp, old, gain, mask, aggregate=aggregate)[0], logp)  # type: ignore[arg-type]
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)


def test_what_belongs_to_trls_own_loss_is_refused(tmp_path: Path) -> None:
    from trimtab.adapters.trl import PolicyTrainer

    with pytest.raises(ValueError, match="takes importance_sampling_level='token' only, got 'sequence'"):
        trainer(PolicyTrainer, tmp_path, importance_sampling_level="sequence")
    with pytest.raises(ValueError, match=r"loss_type must be one of 'grpo', .* got 'cispo'"):
        trainer(PolicyTrainer, tmp_path, loss_type="cispo")
