"""How an audit asks: form of the prompt, reasoning or not, boxes, length."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from PIL import Image

from trimtab.checks import one_of
from trimtab.medclm.boxes.forms import LIST
from trimtab.medclm.boxes.models import ModelBoxes
from trimtab.medclm.evaluation.parsing import contains
from trimtab.medclm.evaluation.questions import Question
from trimtab.medclm.records import Box
from trimtab.medclm.texts.prompts import explained, instruction
from trimtab.medclm.texts.replies import Reply

FORMS = ("taught", "explained")
ASK = ("set", "reasoning", "answer")
TOKENS = {"taught": 192, "explained": 1024}
"""Of a reply with reasoning, by form (ours); a quarter of it without."""


UNIT = ModelBoxes.named("unit")


@lru_cache(maxsize=4096)
def _size(image: Path) -> tuple[int, int]:
    with Image.open(image) as file:
        return file.size


@dataclass(frozen=True)
class AuditOptions:
    """How is asked.

    Attributes:
        form: "explained": the form of the reply is spelled out; "taught": as `trimtab medclm train` asks.
        ask: for reasoning as the set has it ("set"), always ("reasoning"), or never ("answer").
        boxes: how reasoning about a known box shall quote it, and answers that are boxes are written; None: boxes are neither
            asked for nor measured, and questions whose answer is boxes are left out.
        tokens: of a reply with reasoning; 0: 192 of a taught model, 1024 of others.
        limit: at most so many questions, spread evenly; 0 takes all.

    Raises:
        ValueError: another word.
    """

    form: str = "explained"
    ask: str = "set"
    boxes: ModelBoxes | None = UNIT
    tokens: int = 0
    limit: int = 0

    def __post_init__(self) -> None:
        for name, allowed in (("form", FORMS), ("ask", ASK)):
            one_of(name, getattr(self, name), allowed)

    def question(self, question: Question) -> Question:
        """The question as it is asked and measured: never with a box drawn, which a wrong picture could not have."""
        wanted = {"set": question.reason, "reasoning": True, "answer": False}[self.ask]
        box = None if self.boxes is None else question.box
        return replace(question, draw=False, reason=wanted, box=box)

    def prompt(self, question: Question) -> str:
        """What the model is asked."""
        text = question.question
        if self.boxes is not None and self.boxes.format is not UNIT.format:
            text = LIST.sub(lambda found: self._written(found, question), text)
        if self.form == "taught":
            return instruction(text, reason=question.reason)
        listed = () if all(contains(text, choice) for choice in question.choices) else question.choices
        how = "" if self.boxes is None else self.boxes.format.convention
        answer = f"each box as {how}" if question.answer_boxes is not None else ""
        place = how if question.box is not None and not answer else ""
        return explained(text, listed, reason=question.reason, boxes=place, answer=answer)

    def _written(self, found: re.Match[str], question: Question) -> str:
        """A box that a question quotes in fractions, as the model writes boxes."""
        assert self.boxes is not None
        corners = dict(zip(("x0", "y0", "x1", "y1"), map(float, found.groups()), strict=True))
        return self.boxes.format.inline(Box(**corners), self.boxes.seen(*_size(question.image)))

    def read(self, question: Question, reply: Reply) -> str:
        """What was said, every box in fractions."""
        said = reply.text or reply.refusal
        if self.boxes is None or not said:
            return said
        return self.boxes.format.in_fractions(said, self.boxes.seen(*_size(question.image)))

    def most(self, question: Question) -> int:
        """Tokens of the reply."""
        most = self.tokens or TOKENS[self.form]
        return most if question.reason else max(most // 4, 16)
