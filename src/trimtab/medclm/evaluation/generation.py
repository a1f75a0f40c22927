"""Replies of a vision-language model, greedy, in batches."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import torch
from PIL import Image

from trimtab.medclm.boxes import ModelBoxes
from trimtab.medclm.evaluation.pictures import GREY
from trimtab.medclm.evaluation.questions import Question
from trimtab.medclm.texts.prompts import instruction
from trimtab.medclm.training.collator import APART, encoded_prompts, padded
from trimtab.medclm.training.rows import with_box

_OF_BOXES = re.compile(r"<loc_?\d+>|</?(?:ref|box)>")
"""Special tokens that are part of an answer: locations and tags of boxes."""


def picture_of(question: Question) -> Image.Image:
    """The image as the model gets it: RGB, box drawn where asked for; grey where it is blank."""
    with Image.open(question.image) as file:
        picture = Image.new("RGB", file.size, GREY) if question.blank else file.convert("RGB")
    return with_box(picture, question.box) if question.draw and question.box is not None else picture


def _said(tokenizer: Any, ids: Sequence[int]) -> str:
    """The text of the tokens, without special ones but those of boxes."""
    pairs = zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True)
    left_out = {number for number, token in pairs if not _OF_BOXES.fullmatch(token)}
    text: str = tokenizer.decode([number for number in ids if number not in left_out])
    return text.strip()


@torch.no_grad()
def generated(
    model: Any, processor: Any, prompts: Sequence[str], pictures: Sequence[Image.Image], limit: int
) -> list[str]:
    """Greedy replies of one batch, padded on the left.

    Args:
        model, processor: from `training.models`.
        prompts, pictures: one picture for each prompt.
        limit: tokens of a reply at most.
    """
    model.eval()
    tokenizer, device = processor.tokenizer, next(model.parameters()).device
    found = encoded_prompts(processor, prompts, pictures)
    inputs: dict[str, Any] = {
        "input_ids": padded(found.ids, tokenizer.pad_token_id, torch.int64, left=True),
        "attention_mask": padded([[1] * len(one) for one in found.ids], 0, torch.int64, left=True),
        **found.images,
    }
    if found.types is not None:
        inputs[found.named] = padded(found.types, 0, torch.int64, left=True)
    inputs = {key: value.to(device) for key, value in inputs.items()}
    made = model.generate(**inputs, max_new_tokens=limit, do_sample=False, pad_token_id=tokenizer.pad_token_id)
    start = 1 if type(processor).__name__ in APART else inputs["input_ids"].shape[1]
    return [_said(tokenizer, row.tolist()) for row in made[:, start:]]


@torch.no_grad()
def generated_alone(model: Any, processor: Any, prompt: str, picture: Image.Image, limit: int) -> str:
    """The greedy reply of a model of any family, one question at a time, its chat template asked for all there is to know.

    A processor without a chat template gets prompt and picture as they are. What a decoder repeats of the prompt is left out.

    Args:
        model, processor: as transformers loads them.
        prompt, picture: what is asked.
        limit: tokens of the reply at most.
    """
    model.eval()
    if getattr(processor, "chat_template", None):
        content = [{"type": "image", "image": picture}, {"type": "text", "text": prompt}]
        inputs = processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=True, return_dict=True,
            return_tensors="pt",
        )  # fmt: skip
    else:
        inputs = processor(text=prompt, images=picture, return_tensors="pt")
    parameter = next(model.parameters())
    inputs = {
        key: value.to(parameter.device, parameter.dtype if value.is_floating_point() else None)
        for key, value in inputs.items()
    }
    made = model.generate(**inputs, max_new_tokens=limit, do_sample=False)[0]
    if not model.config.is_encoder_decoder:
        made = made[inputs["input_ids"].shape[1] :]
    return _said(getattr(processor, "tokenizer", processor), made.tolist())


def replies(
    model: Any,
    processor: Any,
    questions: Sequence[Question],
    batch: int = 32,
    most: int = 192,
    progress: Callable[[int], None] | None = None,
    boxes: ModelBoxes | None = None,
) -> list[str]:
    """Greedy replies, at most `most` tokens; questions of one form are batched together, padding on the left.

    Args:
        model, processor: from `training.models`.
        questions: what is asked.
        batch: questions at a time.
        most: tokens of a reply; without reasoning a quarter of it.
        progress: called with the number of questions done.
        boxes: how the model writes boxes; they are read as fractions then.
    """
    order = sorted(range(len(questions)), key=lambda place: (questions[place].reason, len(questions[place].question)))
    groups = [[place for place in order if questions[place].reason is reason] for reason in (False, True)]
    found = [""] * len(questions)
    done = 0
    for group in groups:
        for start in range(0, len(group), batch):
            places = group[start : start + batch]
            chosen = [questions[place] for place in places]
            limit = most if chosen[0].reason else max(most // 4, 16)
            prompts = [instruction(one.worded or one.question, reason=one.reason) for one in chosen]
            pictures = [picture_of(one) for one in chosen]
            texts = generated(model, processor, prompts, pictures, limit)
            for place, text, picture in zip(places, texts, pictures, strict=True):
                found[place] = text if boxes is None else boxes.format.in_fractions(text, boxes.seen(*picture.size))
            done += len(places)
            if progress is not None:
                progress(done)
    return found
