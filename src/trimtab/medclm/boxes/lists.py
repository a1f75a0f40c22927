"""Boxes as lists of four numbers: in brackets, or in JSON."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

from trimtab.medclm.boxes.forms import LIST, BoxFormat, Corners, Found, fractions, last_words
from trimtab.medclm.boxes.resizing import Size
from trimtab.medclm.records import Box
from trimtab.medclm.texts.wording import NO_BOX, quoted

_OBJECT = r"\{[^{}]*(?:\}|$)"
_OBJECTS = re.compile(rf"(?:```(?:json)?\s*)?\[?\s*{_OBJECT}(?:\s*,\s*{_OBJECT})*\s*\]?(?:\s*```)?")
_EMPTY = re.compile(r"(?:```(?:json)?\s*)?\[\s*\](?:\s*```)?")
_LABEL = re.compile(r'"label"\s*:\s*"((?:[^"\\]|\\.)*)"')


class Brackets(BoxFormat):
    """`label [x0, y0, x1, y1]; label [...]`; "none" without objects [ours]."""

    def __init__(self, name: str, convention: str, steps: int | None) -> None:
        self.name, self.convention, self._steps = name, convention, steps

    def grid(self, seen: Size) -> tuple[int, int]:
        """10,000 steps for fractions of four decimals."""
        return (self._steps or 10_000,) * 2

    def inline(self, box: Box, seen: Size) -> str:
        """[x0, y0, x1, y1]."""
        return str(list(self.numbers(box, seen))) if self._steps else quoted(box)

    def corners(self, numbers: Sequence[float], seen: Size) -> Corners | None:
        """As written."""
        return super().corners([value * (1 if self._steps else 10_000) for value in numbers], seen)

    def answer(self, objects: Sequence[tuple[str, Box]], seen: Size) -> str:
        """Labels before their boxes."""
        return "; ".join(f"{label} {self.inline(box, seen)}".strip() for label, box in objects) or NO_BOX

    def parse(self, text: str, seen: Size) -> list[Found]:
        """The label is what stands before the box, back to the last punctuation."""
        found, end = [], 0
        for match in LIST.finditer(text):
            if corners := self.corners([float(value) for value in match.groups()], seen):
                found.append(Found(last_words(text[end : match.start()]), corners))
            end = match.end()
        return found

    def in_fractions(self, text: str, seen: Size) -> str:
        """Lists of four numbers, wherever they stand."""
        return LIST.sub(lambda match: self._unit(match.groups(), seen) or match[0], text)


class Json(BoxFormat):
    """A fenced JSON list of objects with a key of four numbers and "label"; `[a, b, c, d]` within sentences; `[]` without
    objects.

    A reply that breaks off keeps the boxes whose four numbers are there.
    """

    def __init__(
        self, name: str, convention: str, key: str, steps: int | None, models: tuple[str, ...], *, swapped: bool = False
    ) -> None:
        self.name, self.convention, self.key, self._steps, self.models = name, convention, key, steps, models
        self.swapped = swapped
        self._keyed = re.compile(rf'"{key}"\s*:\s*{LIST.pattern}')

    def grid(self, seen: Size) -> tuple[int, int]:
        """Thousandths, or the pixels of what the model sees."""
        return (self._steps, self._steps) if self._steps else seen

    def inline(self, box: Box, seen: Size) -> str:
        """The bare list of numbers."""
        return str(list(self.numbers(box, seen)))

    def answer(self, objects: Sequence[tuple[str, Box]], seen: Size) -> str:
        """As the models' own cookbooks show it."""
        if not objects:
            return "```json\n[]\n```"
        lines = [json.dumps({self.key: list(self.numbers(box, seen)), "label": label}) for label, box in objects]
        return "```json\n[\n\t" + ",\n\t".join(lines) + "\n]\n```"

    def parse(self, text: str, seen: Size) -> list[Found]:
        """Objects with the key; where there are none, bare lists of four numbers."""
        found = [one for match in re.finditer(_OBJECT, text) if (one := self._object(match[0], seen))]
        return found or [
            Found("", corners)
            for match in LIST.finditer(text)
            if (corners := self.corners([float(value) for value in match.groups()], seen))
        ]

    def in_fractions(self, text: str, seen: Size) -> str:
        """Lists of objects become `label [...]; label [...]`, an empty one "none"."""

        def objects(match: re.Match[str]) -> str:
            if not self._keyed.search(match[0]):
                return match[0]
            found = [one for inner in re.finditer(_OBJECT, match[0]) if (one := self._object(inner[0], seen))]
            return "; ".join(f"{one.label} {fractions(one.corners)}".strip() for one in found) or "(no box)"

        def bare(match: re.Match[str]) -> str:
            return self._unit(match.groups(), seen) or match[0]

        parts, end = [], 0
        for match in _OBJECTS.finditer(text):
            parts += [LIST.sub(bare, text[end : match.start()]), objects(match)]
            end = match.end()
        parts.append(LIST.sub(bare, text[end:]))
        return _EMPTY.sub(NO_BOX, "".join(parts))

    def _object(self, text: str, seen: Size) -> Found | None:
        numbers, label = self._keyed.search(text), _LABEL.search(text)
        if numbers is None or (corners := self.corners([float(value) for value in numbers.groups()], seen)) is None:
            return None
        return Found(json.loads(f'"{label[1]}"', strict=False) if label else "", corners)
