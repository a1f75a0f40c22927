"""What a way to write boxes is: numbers on a grid in an order, within a text, written and read back."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from trimtab.medclm.boxes.resizing import Size
from trimtab.medclm.records import Box

Corners = tuple[float, float, float, float]
"""x0, y0, x1, y1 as fractions of the picture."""

Number = TypeVar("Number", int, float)

NUMBER = r"\s*(-?\d*\.?\d+)\s*"
LIST = re.compile(rf"\[{NUMBER},{NUMBER},{NUMBER},{NUMBER}\]")


@dataclass(frozen=True)
class Found:
    """A box that a reply names: its label ("" where there is none) and its corners as fractions of the picture."""

    label: str
    corners: Corners


class BoxFormat(ABC):
    """One way to write boxes.

    Attributes:
        name: as `--boxes` takes it.
        convention: numbers, order and text in a line.
        models: `model_type`s of transformers that write boxes so.
        swapped: y comes before x.
    """

    name: str
    convention: str
    models: tuple[str, ...] = ()
    swapped = False

    @abstractmethod
    def grid(self, seen: Size) -> tuple[int, int]:
        """Into how many steps the picture's width and height are cut; `seen` is the size that the model sees."""

    def numbers(self, box: Box, seen: Size) -> tuple[int, int, int, int]:
        """The corners on the grid, in the format's order; a box thinner than a step keeps one."""
        return self._ordered(box.pixels(*self.grid(seen)))

    def corners(self, numbers: Sequence[float], seen: Size) -> Corners | None:
        """Fractions of the picture of numbers as written, cut at its edges; None where nothing of the box is left."""
        x0, y0, x1, y1 = self._ordered(tuple(numbers))
        wide, high = self.grid(seen)
        found = tuple(min(max(value, 0.0), 1.0) for value in (x0 / wide, y0 / high, x1 / wide, y1 / high))
        return found if found[0] < found[2] and found[1] < found[3] else None  # type: ignore[return-value]

    def error(self, seen: Size) -> tuple[float, float]:
        """By how much a corner may move, across and down, as fractions, when a box is written and read back."""
        wide, high = self.grid(seen)
        return 0.5 / wide, 0.5 / high

    @abstractmethod
    def inline(self, box: Box, seen: Size) -> str:
        """The box within a sentence."""

    @abstractmethod
    def answer(self, objects: Sequence[tuple[str, Box]], seen: Size) -> str:
        """Labels with their boxes as an answer; no objects give the format's way to say so."""

    @abstractmethod
    def parse(self, text: str, seen: Size) -> list[Found]:
        """The boxes of a reply, in order; broken ones are left out."""

    @abstractmethod
    def in_fractions(self, text: str, seen: Size) -> str:
        """`text` with every box written as [x0, y0, x1, y1] in fractions, which the rules of evaluation and rewards read."""

    def _ordered(self, four: tuple[Number, ...]) -> tuple[Number, Number, Number, Number]:
        a, b, c, d = four
        return (b, a, d, c) if self.swapped else (a, b, c, d)

    def _unit(self, numbers: Sequence[str], seen: Size) -> str | None:
        corners = self.corners([float(value) for value in numbers], seen)
        return None if corners is None else fractions(corners)


def fractions(corners: Corners) -> str:
    """The corners as texts of a set quote a box."""
    return "[" + ", ".join(f"{value:.4f}" for value in corners) + "]"


def last_words(text: str) -> str:
    """What stands behind the last punctuation: the label before a box."""
    return re.split(r"[;:,.\n\[\]]", text)[-1].strip(" `*\"'")
