"""Rows into batches: prompt through the model's own processor, target with labels and weights, padding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from trimtab.curricula import SpanWeights
from trimtab.curricula.spans import IGNORED
from trimtab.medclm.records import Row
from trimtab.medclm.texts.prompts import prompt_of
from trimtab.medclm.training.grounding import view

PLAIN = {"PaliGemmaProcessor": "<image>{}", "Florence2Processor": "{}"}
"""Prompts of processors without a chat format; Florence-2's puts the image in itself."""
APART = ("Florence2Processor",)
"""Processors of models that read the prompt with an encoder and write with a decoder."""


def prompt_text(processor: Any, text: str) -> str:
    """The prompt in the model's chat format, with one image placeholder."""
    plain = PLAIN.get(type(processor).__name__)
    if plain is not None and not processor.chat_template:
        return plain.format(text)
    content = [{"type": "image"}, {"type": "text", "text": text}]
    prompt: str = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
    )
    return prompt


@dataclass(frozen=True)
class Prompts:
    """Prompts of a batch as the processor makes them, image tokens expanded, padding taken off again."""

    ids: list[list[int]]
    """Tokens of each prompt."""
    types: list[list[int]] | None
    """Kind of each token, where the model wants to know: `mm_token_type_ids` (of an image or not), or `token_type_ids`."""
    named: str
    """Under which of these names."""
    images: dict[str, Tensor]
    """Pixel values and what goes with them, of the whole batch."""


def encoded_prompts(processor: Any, texts: Sequence[str], images: Sequence[Any]) -> Prompts:
    """The prompts with their images through one call of the processor; a tokenizer without padding token pads with its end."""
    if processor.tokenizer.pad_token is None:
        processor.tokenizer.pad_token = processor.tokenizer.eos_token
    apart = type(processor).__name__.startswith("Gemma")  # which wants to be told whose each image is
    given = [[image] for image in images] if apart else list(images)
    prompts = [prompt_text(processor, text) for text in texts]
    found = dict(processor(images=given, text=prompts, return_tensors="pt", padding=True, padding_side="right"))
    real = found.pop("attention_mask").bool()

    def parts(values: Tensor) -> list[list[int]]:
        return [row[kept].tolist() for row, kept in zip(values, real, strict=True)]

    named = "token_type_ids" if "token_type_ids" in found else "mm_token_type_ids"
    ids, types = parts(found.pop("input_ids")), found.pop(named, None)
    found.pop("labels", None)  # PaliGemma's, of the prompt alone
    tensors = {key: value for key, value in found.items() if isinstance(value, Tensor)}
    return Prompts(ids, None if types is None else parts(types), named, tensors)


def padded(rows: Sequence[Sequence[Any]], value: float, dtype: torch.dtype, *, left: bool = False) -> Tensor:
    """Rows of unequal length as one tensor, filled up with `value`."""
    length = max(map(len, rows))
    filled = [
        [*[value] * (length - len(row)), *row] if left else [*row, *[value] * (length - len(row))] for row in rows
    ]
    return torch.tensor(filled, dtype=dtype)


class Collator:
    """Batches for a causal vision-language model: input_ids, attention_mask, labels, weights, image tensors, and `rows`.

    The prompt goes through the processor, which expands its image tokens; the target is tokenized alone and appended, so its
    character offsets stay those of `Row.spans`, whatever stands before it. Labels cover exactly the target and the
    end-of-text token. Padding is on the right, masked, unlabelled. Models with encoder and decoder have the prompt alone as
    input_ids, and `decoder_input_ids`: labels moved by one, the end-of-text token first.

    Args:
        processor: of the model: `apply_chat_template`, `__call__(images, text)`, `tokenizer`, `image_token_id`.
        answer, reasoning: weights of the spans in Easy and Medium; Hard has the answer only.
        views: add `views`, what the grounding terms need to know of each image.

    Raises:
        ValueError: (at a batch) a row's spans do not fit its target's tokens; names the row.
    """

    def __init__(self, processor: Any, answer: float = 0.8, reasoning: float = 0.2, *, views: bool = False) -> None:
        self.processor, self.views = processor, views
        both = SpanWeights({"answer": answer, "reasoning": reasoning})
        self.weights = {"easy": both, "medium": both, "hard": SpanWeights({"answer": 1.0, "reasoning": 0.0})}

    def __call__(self, items: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Items of `RowData` as one batch."""
        tokenizer = self.processor.tokenizer
        texts = [prompt_of(item["row"]) for item in items]
        prompts = encoded_prompts(self.processor, texts, [item["image"] for item in items])
        apart = type(self.processor).__name__ in APART
        made = []
        for item, prompt in zip(items, prompts.ids, strict=True):
            row: Row = item["row"]
            target = tokenizer(row.target, add_special_tokens=False, return_offsets_mapping=True)
            try:
                made.append(
                    self.weights[row.stage].tokens(
                        [] if apart else prompt, target["input_ids"], target["offset_mapping"],
                        dict(row.spans.items()), tokenizer.eos_token_id,
                    )
                )  # fmt: skip
            except ValueError as error:
                raise ValueError(f"row {row.row_id!r}: {error}") from error
        pad = tokenizer.pad_token_id
        read = prompts.ids if apart else [one.ids for one in made]
        batch: dict[str, Any] = {
            "input_ids": padded(read, pad, torch.int64),
            "attention_mask": padded([[1] * len(one) for one in read], 0, torch.int64),
            "labels": padded([one.labels for one in made], IGNORED, torch.int64),
            "weights": padded([one.weights for one in made], 0.0, torch.float32),
            "rows": [item["row"] for item in items],
        }
        if apart:
            written = [[tokenizer.eos_token_id, *one.ids[:-1]] for one in made]
            batch["decoder_input_ids"] = padded(written, pad, torch.int64)
        if prompts.types is not None:
            learnt = int(type(self.processor).__name__ == "PaliGemmaProcessor")  # 1: not seen by what stands before it
            types = [kinds + [learnt] * (len(one) - len(kinds)) for kinds, one in zip(prompts.types, made, strict=True)]
            batch[prompts.named] = padded(types, 0, torch.int64)
        if self.views:
            grids = prompts.images.get("image_grid_thw")
            batch["views"] = [
                view(
                    item["row"].box, item["image"].size, ids.count(self.processor.image_token_id), self.processor,
                    None if grids is None else grids[place].tolist(),
                )
                for place, (item, ids) in enumerate(zip(items, prompts.ids, strict=True))
            ]  # fmt: skip
        return batch | prompts.images
