"""One question to a model: prompt, picture as it is sent, and the key under which its reply is kept."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from PIL import Image

from trimtab.medclm.evaluation.generation import picture_of
from trimtab.medclm.evaluation.pictures import GREY
from trimtab.medclm.evaluation.questions import Question
from trimtab.medclm.texts.replies import prompt_hash

SENT = {".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".webp": "image/webp", ".gif": "image/gif"}
"""Files that are sent as they are; others are written as PNG first."""


@dataclass(frozen=True)
class Request:
    """What one model is asked once.

    Attributes:
        question: with the picture that is shown.
        prompt: the text.
        most: tokens of the reply at most.
        key: of prompt, picture, length and model: equal requests have equal keys.
    """

    question: Question
    prompt: str
    most: int
    key: str


def picture_bytes(question: Question) -> tuple[bytes, str]:
    """The picture of a question as it is sent, and what kind of file it is."""
    kind = SENT.get(question.image.suffix.lower())
    if question.blank:
        with Image.open(question.image) as file:
            return _blank(file.size), "image/png"
    if kind is None or (question.draw and question.box is not None):
        return _png(picture_of(question)), "image/png"
    return _content(question.image), kind


@lru_cache(maxsize=64)
def _blank(size: tuple[int, int]) -> bytes:
    return _png(Image.new("RGB", size, GREY))


@lru_cache(maxsize=8)
def _content(file: Path) -> bytes:
    return file.read_bytes()


def _png(picture: Image.Image) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, "PNG")
    return stream.getvalue()


class Keys:
    """Keys of requests to one model; each file is hashed once.

    Args:
        identity: what the model's replies depend on besides the request.
    """

    def __init__(self, identity: Mapping[str, Any]) -> None:
        self._identity = dict(identity)
        self._hashes: dict[Path, str] = {}

    def request(self, question: Question, prompt: str, most: int) -> Request:
        """The request, with its key."""
        asked = {"model": self._identity, "prompt": prompt, "picture": self._hash(question), "most": most}
        return Request(question, prompt, most, prompt_hash(asked))

    def _hash(self, question: Question) -> str:
        plain = not question.blank and not question.draw
        if not plain:
            return hashlib.sha256(picture_bytes(question)[0]).hexdigest()
        if question.image not in self._hashes:
            self._hashes[question.image] = hashlib.sha256(question.image.read_bytes()).hexdigest()
        return self._hashes[question.image]
