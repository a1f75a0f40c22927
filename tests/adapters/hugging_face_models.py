"""Tiny models for the Hugging Face tests; imported inside the tests, because importing transformers takes seconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

TOKENS = torch.randint(0, 16, (24, 6), generator=torch.Generator().manual_seed(2))


class Sentences(Dataset[dict[str, Tensor]]):
    """Twenty-four rows of six tokens out of sixteen."""

    def __len__(self) -> int:
        return len(TOKENS)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"input_ids": TOKENS[index], "labels": TOKENS[index]}


def language_model() -> Any:
    """A GPT-2 of one layer and eight channels with dropout, always the same weights."""
    torch.manual_seed(3)
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=16, n_positions=8, n_embd=8, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0)
    )


def trainer(folder: Path, *callbacks: Any, model: Any = None, optimizer: Any = None, **settings: Any) -> Any:
    """A Trainer on the CPU that takes six steps of four rows, with SGD, without the Trainer's own clipping."""
    defaults = {
        "max_steps": 6,
        "per_device_train_batch_size": 4,
        "optim": "sgd",
        "learning_rate": 0.1,
        "max_grad_norm": 0.0,
        "save_strategy": "no",
    }
    arguments = TrainingArguments(
        folder, use_cpu=True, report_to=[], disable_tqdm=True, logging_strategy="no", **{**defaults, **settings}
    )
    model = language_model() if model is None else model
    return Trainer(model, arguments, train_dataset=Sentences(), callbacks=list(callbacks), optimizers=(optimizer, None))
