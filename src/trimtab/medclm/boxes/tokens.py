"""Boxes as tokens of their own: PaliGemma's and Florence-2's locations, InternVL's tags."""

from __future__ import annotations

import re
from collections.abc import Sequence

from trimtab.medclm.boxes.forms import LIST, BoxFormat, Corners, Found, fractions, last_words
from trimtab.medclm.boxes.resizing import Size
from trimtab.medclm.records import Box
from trimtab.medclm.texts.wording import NO_BOX


class Tokens(BoxFormat):
    """Four location tokens: PaliGemma's `<loc0003><loc0002><loc1000><loc0512> label` or Florence-2's
    `label<loc_2><loc_3><loc_512><loc_1000>`; no objects give "none" [ours].

    Args:
        token: with the number to be filled in.
        steps: of the grid.
        floored: numbers are steps (0 to steps - 1), read back at their middles; else edges (0 to steps).
        after: the label comes after its box, and `;` between the objects.
    """

    def __init__(
        self, name: str, convention: str, token: str, steps: int, models: tuple[str, ...],
        *, swapped: bool, floored: bool, after: bool,
    ) -> None:  # fmt: skip
        self.name, self.convention, self.models, self.swapped = name, convention, models, swapped
        self._token, self._steps, self._floored, self._after = token, steps, floored, after
        self._four = re.compile(re.sub(r"\{:?\d*d?\}", r"(\\d{1,5})", token) * 4)

    def grid(self, seen: Size) -> tuple[int, int]:
        """The same for every picture."""
        return self._steps, self._steps

    def numbers(self, box: Box, seen: Size) -> tuple[int, int, int, int]:
        """Steps or edges."""
        if not self._floored:
            return super().numbers(box, seen)
        x0, y0, x1, y1 = (min(int(value * self._steps), self._steps - 1) for value in box.corners)
        return self._ordered((x0, y0, x1, y1))

    def corners(self, numbers: Sequence[float], seen: Size) -> Corners | None:
        """Of steps the middles; a box within one step is that step."""
        if not self._floored:
            return super().corners(numbers, seen)
        x0, y0, x1, y1 = self._ordered(tuple(numbers))
        across, down = ((0.0, 1.0) if low == high else (0.5, 0.5) for low, high in ((x0, x1), (y0, y1)))
        moved = (x0 + across[0], y0 + down[0], x1 + across[1], y1 + down[1])
        return super().corners(self._ordered(moved), seen)

    def error(self, seen: Size) -> tuple[float, float]:
        """Half a step, a whole one for a box within one step."""
        return (1.0 / self._steps, 1.0 / self._steps) if self._floored else super().error(seen)

    def inline(self, box: Box, seen: Size) -> str:
        """The four tokens."""
        return "".join(self._token.format(value) for value in self.numbers(box, seen))

    def answer(self, objects: Sequence[tuple[str, Box]], seen: Size) -> str:
        """Labels before or after their boxes."""
        if self._after:
            return " ; ".join(f"{self.inline(box, seen)} {label}".strip() for label, box in objects) or NO_BOX
        return "".join(f"{label}{self.inline(box, seen)}" for label, box in objects) or NO_BOX

    def parse(self, text: str, seen: Size) -> list[Found]:
        """Several boxes behind one label share it, as Florence-2 writes them."""
        found, end, label = [], 0, ""
        matches = list(self._four.finditer(text))
        for place, match in enumerate(matches):
            if self._after:
                rest = text[match.end() : matches[place + 1].start() if place + 1 < len(matches) else None]
                label = re.split(r"[;<\n]", rest)[0].strip()
            else:
                label = last_words(re.sub(r"<[^<>]*>", " ", text[end : match.start()])) or label
            end = match.end()
            if corners := self.corners([float(value) for value in match.groups()], seen):
                found.append(Found(label, corners))
        return found

    def in_fractions(self, text: str, seen: Size) -> str:
        """Labels stay where they are."""
        return self._four.sub(lambda match: self._unit(match.groups(), seen) or match[0], text)


class Tagged(BoxFormat):
    """InternVL: `<ref>label</ref><box>[[x0, y0, x1, y1], [...]]</box>`, one `<ref>` a label, in thousandths; "none" without
    objects [ours]."""

    name, models = "internvl", ("internvl",)
    convention = (
        "<ref>label</ref><box>[[x0, y0, x1, y1], ...]</box>, thousandths of the picture, boxes of one label together"
    )
    _pair = re.compile(
        r"(?:<ref>(.*?)</ref>\s*)?(?:<box>(.*?)(?:</box>|$)|(\[\[[^\[\]]*\](?:\s*,\s*\[[^\[\]]*\])*\s*\]))", re.DOTALL
    )

    def grid(self, seen: Size) -> tuple[int, int]:
        """Thousandths."""
        return 1000, 1000

    def inline(self, box: Box, seen: Size) -> str:
        """The box without a label."""
        return f"<box>[{list(self.numbers(box, seen))}]</box>"

    def answer(self, objects: Sequence[tuple[str, Box]], seen: Size) -> str:
        """Boxes of one label behind it, in the order in which labels come first."""
        labels = dict.fromkeys(label for label, _ in objects)
        parts = []
        for label in labels:
            boxes = [list(self.numbers(box, seen)) for other, box in objects if other == label]
            parts.append(f"<ref>{label}</ref><box>{boxes}</box>")
        return "\n".join(parts) or NO_BOX

    def parse(self, text: str, seen: Size) -> list[Found]:
        """The tags, with or without `<ref>`; lists of lists where a decoder has left the tags out."""
        return [one for match in self._pair.finditer(text) for one in self._boxes(match, seen)]

    def in_fractions(self, text: str, seen: Size) -> str:
        """Tags become `label [...]; label [...]`."""

        def untagged(match: re.Match[str]) -> str:
            found = [f"{one.label} {fractions(one.corners)}".strip() for one in self._boxes(match, seen)]
            return "; ".join(found) or "(no box)"

        return re.sub(r"\]\n(?=[^\n]* \[)", "]; ", self._pair.sub(untagged, text))

    def _boxes(self, match: re.Match[str], seen: Size) -> list[Found]:
        lists = (
            self.corners([float(value) for value in one.groups()], seen)
            for one in LIST.finditer(match[2] or match[3] or "")
        )
        return [Found((match[1] or "").strip(), corners) for corners in lists if corners]
