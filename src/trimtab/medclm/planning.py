"""Which questions are asked: Easy, Medium and Hard rows of each image, balanced against guessing from the text alone."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field

from trimtab.checks import number, some_of
from trimtab.medclm.records import ImageRecord, Lesion, SplitName, Stage
from trimtab.medclm.texts.asking import BOXES, Ask, asks, box_asks, largest
from trimtab.medclm.texts.wording import NO_BOX

STAGES: tuple[Stage, ...] = ("easy", "medium", "hard")
KIND_WEIGHT = 6.0
"""How much the share of a question type counts beside how common an answer is (ours)."""
MOST = 0.8
"""Greatest share of one answer in groups too small for the cap, and in a whole question type (ours)."""
FEW = 4
"""So few questions may have one answer all (ours)."""


@dataclass(frozen=True, slots=True)
class Planned:
    """One row to be written: what to ask, of which lesion, at which stage; `anchor` for Hard rows."""

    stage: Stage
    lesion: Lesion | None
    ask: Ask
    anchor: Lesion | None = None


@dataclass
class Planner:
    """Plans the rows of one image after the other; its state does not grow with the number of images.

    Of the questions that `asks` allows, the one is taken with the least

        KIND_WEIGHT * share of its type (yes and no apart) + (excess among its like + excess among its type) / 2,

    excess = min(share of the answer * number of different answers - 1, 1), counted over the rows so far of the same split
    and stage; its like are the questions of the same type about the same class. A question whose answer would then make up more
    than `cap` of the answers to its like is not asked, once `grace` of its like have been: so a reader of the text alone gains
    nothing by guessing the most common answer. In smaller groups, such as those of a small split, and in a question type as a
    whole, no answer makes up more than `MOST` (or `cap`, if that is larger), once `FEW` have been asked. Only the one row that
    every negative keeps may pass these bounds. All of this is ours.

    Easy: one row for each lesion. Medium: one for each class in the image and one about a class that is absent. Hard: as
    Medium, on an image of another patient of the same split that shows the same class: the partner of lesion A is the largest
    lesion of its class in the next such image, and the row names A as "anchor". A negative gets one Medium and one Hard row;
    the first of them is written in any case.

    With `box_answers`, Medium and Hard have rows as well whose answer is boxes (`asking.box_asks`): one for each class in the
    image, and one about everything in it or a class that is absent. Boxes are never too common an answer; "none" may be.

    Args:
        labels: all classes of the data set.
        stages: which stages to write.
        balance: False takes the questions by turns of the seed and keeps all of them, to show what balancing changes.
        cap: greatest share of one answer among the answers to questions of its like.
        grace: number of such questions before the cap holds.
        seed: breaks ties.
        box_answers: plan rows whose answer is boxes too.
    """

    labels: Collection[str]
    stages: Collection[Stage] = STAGES
    balance: bool = True
    cap: float = 0.6
    grace: int = 10
    seed: int = 0
    box_answers: bool = False
    left_out: Counter[str] = field(default_factory=Counter)
    """Reasons why a row was not planned -> number."""
    _answers: dict[str, Counter[str]] = field(default_factory=dict)
    _kinds: Counter[str] = field(default_factory=Counter)
    _anchors: dict[tuple[SplitName, str], list[tuple[str, Lesion]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        number("cap", self.cap, above=0, most=1)
        some_of("stages", tuple(self.stages), STAGES)

    def rows(self, record: ImageRecord) -> Iterator[Planned]:
        """The rows of one image: Easy, Medium, Hard."""
        classes = {label: largest([one for one in record.lesions if one.label == label]) for label in _classes(record)}
        if "easy" in self.stages:
            counted: set[str] = set()
            for lesion in record.lesions:
                yield from self._chosen(record, lesion, "easy", counted)
        for stage in ("medium", "hard"):
            if stage not in self.stages:
                continue
            done: set[str] = set()
            for label, lesion in classes.items():
                anchor = self._anchor(record, label) if stage == "hard" else None
                if stage == "hard" and anchor is None:
                    self.left_out["hard: no other patient with this class yet"] += 1
                    continue
                yield from self._chosen(record, lesion, stage, done, anchor)
            yield from self._absent(record, stage, done)
            if self.box_answers:
                yield from self._boxes(record, stage, classes)
        for label, lesion in classes.items():
            self._remember(record, label, lesion)

    def _boxes(self, record: ImageRecord, stage: Stage, classes: Mapping[str, Lesion]) -> Iterator[Planned]:
        done: set[str] = set()
        for lesion in (*classes.values(), None):
            anchor = self._anchor(record, lesion.label) if lesion is not None and stage == "hard" else None
            yield from self._chosen(record, lesion, stage, done, anchor, boxes=True)

    def _absent(self, record: ImageRecord, stage: Stage, done: set[str]) -> Iterator[Planned]:
        for row in self._chosen(record, None, stage, done):
            yield Planned(
                row.stage, row.lesion, row.ask, self._anchor(record, row.ask.label) if stage == "hard" else None
            )

    def _chosen(
        self,
        record: ImageRecord,
        lesion: Lesion | None,
        stage: Stage,
        done: set[str],
        anchor: Lesion | None = None,
        *,
        boxes: bool = False,
    ) -> Iterator[Planned]:
        asked = (box_asks if boxes else asks)(record, lesion, stage, self.labels)
        possible = [ask for ask in asked if _once(ask, stage) not in done]
        if not possible:
            if lesion is not None or not record.lesions:
                self.left_out[f"{stage}: nothing can be asked without ambiguity"] += 1
            return
        if (
            stage == "hard" and lesion is None and not boxes
        ):  # before anything is counted: what is counted is what is asked
            possible = [ask for ask in possible if ask.kind == "what" or self._anchor(record, ask.label) is not None]
            if not possible:
                self.left_out["hard: no other patient with this class yet"] += 1
                return
        about = lesion.lesion_id if lesion is not None else record.image_id
        turn = hashlib.sha256(f"{self.seed}/{about}/{stage}".encode()).digest()
        rotated = turn[0] % len(possible)
        possible = possible[rotated:] + possible[:rotated]
        group = f"{record.split}/{stage}{'/boxes' if boxes else ''}"  # so that the other rows stay what they are
        if self.balance:
            allowed = [ask for ask in possible if self._fits(group, ask)]
            if (
                not allowed
                and not record.lesions
                and not boxes
                and stage == next(one for one in STAGES[1:] if one in self.stages)
            ):
                allowed = possible  # a negative keeps one row
            if not allowed:
                self.left_out[f"{stage}: answer would be too common"] += 1
                return
            ask = min(allowed, key=lambda ask: self._cost(group, ask))
        else:
            ask = possible[0]
        for like in (ask.key, ask.kind):
            self._answers.setdefault(f"{group}/{like}", Counter())[ask.like] += 1
        self._kinds[f"{group}/{_kind(ask)}"] += 1
        self._kinds[group] += 1
        done |= {_once(ask, stage)} - {""}
        yield Planned(stage, lesion, ask, anchor)

    def _fits(self, group: str, ask: Ask) -> bool:
        """Whether the answer stays below its bounds, among its like and in its type, if it were asked once more."""
        if ask.like == BOXES:
            return True
        for like, cap, grace in ((ask.key, self.cap, self.grace), (ask.kind, max(self.cap, MOST), FEW)):
            found = self._answers.get(f"{group}/{like}", Counter())
            asked = found.total()
            share = (found[ask.like] + 1) / (asked + 1)
            if (asked >= grace and share > cap) or (asked >= FEW and share > max(cap, MOST)):
                return False
        return True

    def _cost(self, group: str, ask: Ask) -> float:
        kind = self._kinds[f"{group}/{_kind(ask)}"] / max(self._kinds[group], 1)
        excess = self._excess(group, ask.key, ask) + self._excess(group, ask.kind, ask)
        return KIND_WEIGHT * kind + excess / 2

    def _excess(self, group: str, like: str, ask: Ask) -> float:
        found = self._answers.get(f"{group}/{like}")
        if found is None:
            return 0.0
        different = max(len(found.keys() | {ask.like}), 2)
        return min(found[ask.like] / found.total() * different - 1, 1.0)

    def _anchor(self, record: ImageRecord, label: str) -> Lesion | None:
        for patient, lesion in self._anchors.get((record.split, label), []):
            if patient != record.patient:
                return lesion
        return None

    def _remember(self, record: ImageRecord, label: str, lesion: Lesion) -> None:
        """Keep the last lesions of two different patients, newest first: one of them is always another patient's."""
        kept = self._anchors.setdefault((record.split, label), [])
        kept[:] = [(record.patient, lesion), *(one for one in kept if one[0] != record.patient)][:2]


def _classes(record: ImageRecord) -> list[str]:
    return list(dict.fromkeys(lesion.label for lesion in record.lesions))


def _kind(ask: Ask) -> str:
    """The type; questions answered by yes and by no (or by 0 and by another number) count as two."""
    return f"{ask.kind}/{ask.answer}" if ask.answer in ("yes", "no", "0", NO_BOX) else ask.kind


def _once(ask: Ask, stage: Stage) -> str:
    """Questions with the same text here are asked once an image. Boxes make Easy questions differ, but not what is counted."""
    if stage == "easy" and ask.kind != "count":
        return ""
    return ask.key if ask.variant in ("image", "number", "area") else f"{ask.key}:{ask.label}"
