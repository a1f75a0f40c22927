"""The typed records every stage of MedCLM reads and writes: boxes, lesions, images, rejected rows, finished rows."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from itertools import repeat
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, field_validator, model_validator

from trimtab.inputs import shortened

SplitName = Literal["train", "validation", "test"]
Stage = Literal["easy", "medium", "hard"]
Side = Literal["left", "right", "midline"]
QuestionType = Literal["what", "where", "organ", "present", "count", "side", "compare", "refer", "detect"]

UNKNOWN_ORGAN = "unknown"


_put = object.__setattr__


class Record(BaseModel):
    """Base of all records: frozen, no unknown fields, no NaN."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @classmethod
    def of_checked(cls, **fields: Any) -> Self:
        """A record of values that the caller has checked, all fields given: `model_construct` without its loop over them."""
        made = cls.__new__(cls)
        _put(made, "__dict__", fields)
        _put(made, "__pydantic_fields_set__", set(fields))
        _put(made, "__pydantic_extra__", None)
        _put(made, "__pydantic_private__", None)
        return made

    @classmethod
    def all_checked(cls, fields: Iterable[dict[str, Any]]) -> list[Self]:
        """`of_checked` of many; they share the set of the fields given, which nothing changes in a frozen record."""
        values = list(fields)
        made = list(map(cls.__new__, repeat(cls, len(values))))
        for name, each in (
            ("__dict__", values),
            ("__pydantic_fields_set__", repeat(set(cls.model_fields))),
            ("__pydantic_extra__", repeat(None)),
            ("__pydantic_private__", repeat(None)),
        ):
            deque(map(_put, made, repeat(name), each), maxlen=0)
        return made


class Box(Record):
    """A rectangle as fractions of the image's size: left, top, right, bottom, each in [0, 1], with x0 < x1 and y0 < y1.

    x0 = 0 is the left edge of the left-most pixel and x1 = 1 the right edge of the right-most pixel.

    Raises:
        ValueError: a corner is not finite, lies outside [0, 1], or the corners are swapped or equal.

    >>> Box(x0=0.25, y0=0.5, x1=0.5, y1=1.0).pixels(width=200, height=100)
    (50, 50, 100, 100)
    >>> Box.of_pixels(50, 50, 100, 100, width=200, height=100).area
    0.125
    """

    x0: float
    y0: float
    x1: float
    y1: float

    @model_validator(mode="after")
    def _corners_in_order(self) -> Self:
        corners = (self.x0, self.y0, self.x1, self.y1)
        if not all(0.0 <= value <= 1.0 for value in corners):
            raise ValueError(f"box {corners} must lie in [0, 1]: corners are fractions of the image's size")
        if self.x0 >= self.x1 or self.y0 >= self.y1:
            raise ValueError(f"box {corners} must have x0 < x1 and y0 < y1")
        return self

    @classmethod
    def of_pixels(cls, x0: float, y0: float, x1: float, y1: float, width: int, height: int) -> Box:
        """The box with pixel edges x0, y0 (inclusive) and x1, y1 (exclusive) in an image of `width` x `height`."""
        if width < 1 or height < 1:
            raise ValueError(f"image of {width} x {height} pixels: both sides must be at least 1")
        return cls(x0=x0 / width, y0=y0 / height, x1=x1 / width, y1=y1 / height)

    def pixels(self, width: int, height: int) -> tuple[int, int, int, int]:
        """(x0, y0, x1, y1) rounded to whole pixels, ends exclusive, never empty: `array[y0:y1, x0:x1]` is the box."""
        x0, x1 = _whole(self.x0, self.x1, width)
        y0, y1 = _whole(self.y0, self.y1, height)
        return x0, y0, x1, y1

    @property
    def corners(self) -> tuple[float, float, float, float]:
        """(x0, y0, x1, y1)."""
        return self.x0, self.y0, self.x1, self.y1

    @property
    def area(self) -> float:
        """Area as a fraction of the image's."""
        return (self.x1 - self.x0) * (self.y1 - self.y0)

    @property
    def centre(self) -> tuple[float, float]:
        """(x, y) of the middle, as fractions."""
        return (self.x0 + self.x1) / 2, (self.y0 + self.y1) / 2


def _whole(start: float, end: float, size: int) -> tuple[int, int]:
    low, high = math.floor(start * size + 0.5), math.floor(end * size + 0.5)
    if low >= high:  # thinner than a pixel: the pixel that holds its middle
        low = min(math.floor((start + end) / 2 * size), size - 1)
        high = low + 1
    return low, high


class HostDecision(Record):
    """Which organ holds a lesion, by which rule, and why.

    Attributes:
        organ: name of the organ, or "unknown".
        score: value of the rule for that organ, in [0, 1].
        rule: name of the rule.
        runners_up: (organ, score) of the next best, best first.
        fallback: the organ did not reach the rule's minimum and was taken because it is the nearest.
        reason: the decision in words.
        side: side of the patient (not of the picture), or None where it has no meaning.
        zone: region inside the organ or around it, or None.
    """

    organ: str
    score: float
    rule: str
    runners_up: tuple[tuple[str, float], ...] = ()
    fallback: bool = False
    reason: str
    side: Side | None = None
    zone: str | None = None


class Lesion(Record):
    """One lesion of one image.

    Attributes:
        lesion_id: unique in the data set.
        image_id: of the image it lies in.
        label: class name.
        box: where it lies.
        host: organ that holds it; None before hosts are assigned.
        area_fraction: area of the lesion inside the host / area of the host; None without host.
        source_row: "file:row" it was read from.
        flags: remarks such as "host_fallback", sorted.
    """

    lesion_id: str
    image_id: str
    label: str
    box: Box
    host: HostDecision | None = None
    area_fraction: float | None = None
    source_row: str
    flags: tuple[str, ...] = ()


class ImageRecord(Record):
    """One image with its lesions; no lesions make it a negative ("no finding").

    Attributes:
        image_id: unique in the data set.
        file: path of the image relative to the image folder, with forward slashes, never leaving the folder.
        width, height: pixels.
        upright: the boxes see the picture as its EXIF orientation turns it, and so do width and height; False in a built set,
            whose pictures have no such orientation.
        patient: patient id; splits keep patients whole. Readers without patient ids use the image id.
        modality: such as "chest X-ray".
        split: set by the patient-first split, or by the source.
        lesions: in the order of the source.
        organs: names of organs with a mask on this image.
        organ_file: file with the organ masks, relative to the organ folder, or None.
        source: name of the data set.
    """

    image_id: str
    file: str
    width: int
    height: int
    upright: bool = False
    patient: str
    modality: str
    split: SplitName = "train"
    lesions: tuple[Lesion, ...] = ()
    organs: tuple[str, ...] = ()
    organ_file: str | None = None
    source: str

    @field_validator("file", "organ_file")
    @classmethod
    def _inside_its_folder(cls, value: str | None) -> str | None:
        return value if value is None else inside(value)

    @model_validator(mode="after")
    def _has_a_size(self) -> Self:
        if self.width < 1 or self.height < 1:
            raise ValueError(f"image {self.image_id!r} of {self.width} x {self.height}: both sides must be at least 1")
        return self


def inside(file: str) -> str:
    """The relative path `file` with forward slashes.

    Raises:
        ValueError: the path is absolute, empty, or climbs out of its folder with "..".

    >>> inside("a/b.png")
    'a/b.png'
    """
    parts = [part for part in file.replace("\\", "/").split("/") if part not in ("", ".")]
    if not parts or file[0] in "/\\" or "\x00" in file or ".." in parts or ":" in parts[0]:
        raise ValueError(f"file name {file!r} must be a relative path that stays inside its folder")
    return "/".join(parts)


class Rejected(Record):
    """A row of a source that could not be used, or a finished row that failed quality control.

    Attributes:
        file: file it stands in.
        row: where in the file: a line number, an annotation id, a path inside a document.
        reason: why, in words that are the same for all rows with this fault, so that they can be counted.
        value: the offending value, as text.

    Each is cut at 500 characters: a damaged source may hold anything.
    """

    file: str
    row: str
    reason: str
    value: str = ""

    @field_validator("file", "row", "reason", "value")
    @classmethod
    def _cut(cls, text: str) -> str:
        return shortened(text, 500)

    def __str__(self) -> str:
        where = f"{self.file}:{self.row}" if self.row else self.file
        return f"{where}: {self.reason}: {self.value}" if self.value else f"{where}: {self.reason}"


class Marked(Record):
    """A lesion that a row speaks of: its id, its class as texts show it, and its box."""

    lesion_id: str
    label: str
    box: Box


class Step(Record):
    """One sentence of a reasoning: its offsets [start, end) in the target, and the numbers of the row's objects it is about."""

    span: tuple[int, int]
    objects: tuple[int, ...] = ()


class Row(Record):
    """One question with its reasoning and answer.

    `target` is the full text a model learns ("Reasoning: ... Answer: ..."); `spans` gives the character offsets
    [start, end) of "reasoning" and "answer" in it, so that no loss ever has to find them again.

    Attributes:
        row_id: unique in the data set.
        domain: "{label} x {modality}".
        box: the lesion's box; None where the row has no lesion.
        box_pixels: the same in pixels of the original image, ends exclusive.
        objects: the lesions that reasoning and answer speak of. Of referring and detection rows ("refer", "detect") they are
            the answer, in its order.
        steps: the reasoning sentence by sentence, each with the objects that it is about.
        seed_text: the sentence the reasoning grew from.
        generator, prompt_id, seed: what made the text.
        flags: remarks, sorted.

    Raises:
        ValueError: a span lies outside the target or does not cut out the text it names.
    """

    row_id: str
    image_id: str
    patient: str
    split: SplitName
    stage: Stage
    domain: str
    question_type: QuestionType
    question: str
    reasoning: str
    answer: str
    target: str
    spans: dict[Literal["reasoning", "answer"], tuple[int, int]]
    box: Box | None = None
    box_pixels: tuple[int, int, int, int] | None = None
    lesion_id: str | None = None
    objects: tuple[Marked, ...] = ()
    steps: tuple[Step, ...] = ()
    seed_text: str = ""
    host: HostDecision | None = None
    generator: str
    prompt_id: str
    seed: int
    flags: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _spans_cut_out_their_texts(self) -> Self:
        for name, text in (("reasoning", self.reasoning), ("answer", self.answer)):
            if name not in self.spans:
                raise ValueError(f"row {self.row_id!r}: spans must hold {name!r}; they hold {sorted(self.spans)}")
            start, end = self.spans[name]
            if not 0 <= start <= end <= len(self.target):
                raise ValueError(
                    f"row {self.row_id!r}: span {name} {start, end} lies outside a target of {len(self.target)} characters"
                )
            if self.target[start:end] != text:
                raise ValueError(
                    f"row {self.row_id!r}: span {name} {start, end} cuts {self.target[start:end]!r} out of the target, "
                    f"not {text!r}"
                )
        return self
