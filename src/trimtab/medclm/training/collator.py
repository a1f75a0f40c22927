"""Rows into batches: prompt through the model's own processor, target with labels and weights, padding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from trimtab.curricula import SpanWeights
from trimtab.curricula.spans import IGNORED
from trimtab.medclm.records import Row
from trimtab.medclm.training.rows import instruction


def prompt_text(processor: Any, text: str) -> str:
    """The prompt in the model's chat format, with one image placeholder."""
    content = [{"type": "image"}, {"type": "text", "text": text}]
    prompt: str = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
    )
    return prompt


def encoded_prompts(processor: Any, texts: Sequence[str], images: Sequence[Any]) -> list[dict[str, Tensor]]:
    """What the processor makes of each prompt with its image, image tokens expanded; every tensor has a first dimension."""
    return [
        dict(processor(images=[image], text=[prompt_text(processor, text)], return_tensors="pt"))
        for text, image in zip(texts, images, strict=True)
    ]


def padded(rows: Sequence[Sequence[Any]], value: float, dtype: torch.dtype, left: bool = False) -> Tensor:
    """Rows of unequal length as one tensor, filled up with `value`."""
    length = max(map(len, rows))
    filled = [
        [*[value] * (length - len(row)), *row] if left else [*row, *[value] * (length - len(row))] for row in rows
    ]
    return torch.tensor(filled, dtype=dtype)


def joined(parts: Sequence[dict[str, Tensor]], key: str) -> Tensor:
    """The tensors of images (pixel values, grids) of a batch."""
    return torch.cat([part[key] for part in parts])


class Collator:
    """Batches for a causal vision-language model: input_ids, attention_mask, labels, weights, image tensors, and `rows`.

    The prompt goes through the processor, which expands its image tokens; the target is tokenized alone and appended, so its
    character offsets stay those of `Row.spans`, whatever stands before it. Labels cover exactly the target and the
    end-of-text token. Padding is on the right, masked, unlabelled.

    Args:
        processor: of the model: `apply_chat_template`, `__call__(images, text)`, `tokenizer`.
        answer, reasoning: weights of the spans in Easy and Medium; Hard has the answer only.

    Raises:
        ValueError: (at a batch) a row's spans do not fit its target's tokens; names the row.
    """

    def __init__(self, processor: Any, answer: float = 0.8, reasoning: float = 0.2) -> None:
        self.processor = processor
        both = SpanWeights({"answer": answer, "reasoning": reasoning})
        self.weights = {"easy": both, "medium": both, "hard": SpanWeights({"answer": 1.0, "reasoning": 0.0})}

    def __call__(self, items: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Items of `RowData` as one batch."""
        tokenizer = self.processor.tokenizer
        texts = [instruction(item["row"].question, bool(item["row"].reasoning)) for item in items]
        prompts = encoded_prompts(self.processor, texts, [item["image"] for item in items])
        made = []
        for item, prompt in zip(items, prompts, strict=True):
            row: Row = item["row"]
            target = tokenizer(row.target, add_special_tokens=False, return_offsets_mapping=True)
            try:
                made.append(
                    self.weights[row.stage].tokens(
                        prompt["input_ids"][0].tolist(), target["input_ids"], target["offset_mapping"],
                        dict(row.spans.items()), tokenizer.eos_token_id,
                    )
                )  # fmt: skip
            except ValueError as error:
                raise ValueError(f"row {row.row_id!r}: {error}") from error
        pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        batch: dict[str, Any] = {
            "input_ids": padded([one.ids for one in made], pad, torch.int64),
            "attention_mask": padded([[1] * len(one) for one in made], 0, torch.int64),
            "labels": padded([one.labels for one in made], IGNORED, torch.int64),
            "weights": padded([one.weights for one in made], 0.0, torch.float32),
            "rows": [item["row"] for item in items],
        }
        for key, value in prompts[0].items():
            if key in batch:
                continue
            if key == "mm_token_type_ids":
                batch[key] = padded([part[key][0].tolist() for part in prompts], 0, torch.int64)
                short = batch["input_ids"].shape[1] - batch[key].shape[1]
                batch[key] = torch.nn.functional.pad(batch[key], (0, short))
            elif isinstance(value, Tensor):
                batch[key] = joined(prompts, key)
        return batch
