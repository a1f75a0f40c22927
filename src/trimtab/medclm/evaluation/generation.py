"""Replies of a vision-language model, greedy, in batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from PIL import Image

from trimtab.medclm.evaluation.pictures import GREY
from trimtab.medclm.evaluation.questions import Question
from trimtab.medclm.texts.prompts import instruction
from trimtab.medclm.training.collator import encoded_prompts, padded
from trimtab.medclm.training.rows import with_box


def picture_of(question: Question) -> Image.Image:
    """The image as the model gets it: RGB, box drawn where asked for; grey where it is blank."""
    with Image.open(question.image) as file:
        picture = Image.new("RGB", file.size, GREY) if question.blank else file.convert("RGB")
    return with_box(picture, question.box) if question.draw and question.box is not None else picture


@torch.no_grad()
def replies(
    model: Any,
    processor: Any,
    questions: Sequence[Question],
    batch: int = 32,
    most: int = 192,
    progress: Callable[[int], None] | None = None,
) -> list[str]:
    """Greedy replies, at most `most` tokens; questions of one form are batched together, padding on the left.

    Args:
        model, processor: from `training.models`.
        questions: what is asked.
        batch: questions at a time.
        most: tokens of a reply; without reasoning a quarter of it.
        progress: called with the number of questions done.
    """
    model.eval()
    tokenizer = processor.tokenizer
    device = next(model.parameters()).device
    order = sorted(range(len(questions)), key=lambda place: (questions[place].reason, len(questions[place].question)))
    groups = [[place for place in order if questions[place].reason is reason] for reason in (False, True)]
    found = [""] * len(questions)
    done = 0
    for group in groups:
        for start in range(0, len(group), batch):
            places = group[start : start + batch]
            chosen = [questions[place] for place in places]
            prompts = encoded_prompts(
                processor,
                [instruction(one.question, reason=one.reason) for one in chosen],
                [picture_of(one) for one in chosen],
            )
            inputs: dict[str, Any] = {
                "input_ids": padded(prompts.ids, tokenizer.pad_token_id, torch.int64, left=True),
                "attention_mask": padded([[1] * len(one) for one in prompts.ids], 0, torch.int64, left=True),
                **prompts.images,
            }
            if prompts.types is not None:
                inputs["mm_token_type_ids"] = padded(prompts.types, 0, torch.int64, left=True)
            inputs = {key: value.to(device) for key, value in inputs.items()}
            limit = most if chosen[0].reason else max(most // 4, 16)
            made = model.generate(**inputs, max_new_tokens=limit, do_sample=False, pad_token_id=tokenizer.pad_token_id)
            for place, row in zip(places, made[:, inputs["input_ids"].shape[1] :], strict=True):
                found[place] = tokenizer.decode(row, skip_special_tokens=True).strip()
            done += len(places)
            if progress is not None:
                progress(done)
    return found
