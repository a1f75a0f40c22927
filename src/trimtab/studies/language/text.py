"""A text as tokens, as sequences to calibrate on, and what a language model makes of it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trimtab.checks import whole
from trimtab.inputs import utf8

HELD_BACK = 0.1
"""Share at the end of the calibration text that is measured on where no other text is given [ours]."""


@dataclass(frozen=True)
class TextQuality:
    """How well a model guesses a text.

    Attributes:
        loss: mean of -log of the probability of each token that is guessed, natural logarithm.
        tokens: how many were guessed: all but the first of each window.
        bits_per_byte: the same for each byte of the text, whatever the tokenizer: `loss / ln 2 * tokens / bytes`.
    """

    loss: float
    tokens: int
    bits_per_byte: float

    @property
    def perplexity(self) -> float:
        """`exp(loss)`: among how many equally likely tokens the model is torn; infinite where that is no number any more."""
        return math.exp(self.loss) if self.loss < 700 else math.inf


def read_text(file: Path) -> str:
    """The text in a UTF-8 file.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is not UTF-8, or empty.
    """
    if not file.is_file():
        raise FileNotFoundError(f"{file} does not exist; a text file (UTF-8) is needed")
    text = utf8(file)
    if not text.strip():
        raise ValueError(f"{file} is empty")
    return text


def tokens_of(text: str, tokenizer: Any) -> Tensor:
    """The text as one row of token numbers, without tokens that only mark beginnings and ends."""
    found = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return torch.tensor(found, dtype=torch.int64)


def sequences(tokens: Tensor, length: int, count: int, seed: int = 0, where: object = "the text") -> list[Tensor]:
    """So many stretches of `length` tokens from random places, each (1, length), as the published methods draw them.

    Raises:
        ValueError: the text is shorter than one stretch.

    Example:
        >>> [tuple(one.shape) for one in sequences(torch.arange(100), 8, 2)]
        [(1, 8), (1, 8)]
    """
    whole("length", length, 2)
    whole("samples", count, 1)
    if len(tokens) < length:
        raise ValueError(
            f"{where} holds {len(tokens):,} tokens, fewer than one sequence of {length:,}; give more text or a smaller length"
        )
    generator = torch.Generator().manual_seed(seed)
    starts = torch.randint(len(tokens) - length + 1, (count,), generator=generator).tolist()
    return [tokens[start : start + length].unsqueeze(0) for start in starts]


@torch.no_grad()
def text_quality(model: nn.Module, tokens: Tensor, length: int, size: int, windows: int | None = None) -> TextQuality:
    """Loss of a causal language model over a text, window after window, each read from its beginning.

    Args:
        model: a causal language model of transformers.
        tokens: the text.
        length: tokens of a window; windows do not overlap, the last may be shorter.
        size: bytes of the text.
        windows: only the first so many; default all.

    Raises:
        ValueError: fewer than two tokens, or a loss that is NaN.
    """
    if len(tokens) < 2:
        raise ValueError(f"the text to measure on has {len(tokens)} tokens; two are the least")
    parts = [part for part in torch.split(tokens, length) if len(part) > 1][:windows]
    device = next(model.parameters()).device
    total, count = 0.0, 0
    for part in parts:
        row = part.unsqueeze(0).to(device)
        logits = model(input_ids=row, use_cache=False).logits[0, :-1]
        total += float(F.cross_entropy(logits.float(), row[0, 1:], reduction="sum"))
        count += len(part) - 1
    loss = total / count
    if math.isnan(loss):
        raise ValueError("the model gives NaN on the text: its loss cannot be measured")
    return TextQuality(loss, count, loss / math.log(2) * len(tokens) / size)
