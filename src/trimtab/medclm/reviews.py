"""Reviews of a set, as its viewer exports them, and how far two reviewers agree: Cohen's kappa."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import ConfigDict, Field

from trimtab.inputs import named, utf8
from trimtab.medclm.building.folder import DataSetFolder
from trimtab.medclm.evaluation.tables import RESAMPLES
from trimtab.medclm.records import Record

Mark = Literal["accepted", "rejected"]
MARKS: tuple[Mark, ...] = ("accepted", "rejected")


class Judgement(Record):
    """What a reviewer said of one row: a mark ("" for a comment alone) and a comment."""

    row: str
    image: str = ""
    mark: Literal[Mark, ""] = ""
    comment: str = ""


class Review(Record):
    """A file that the viewer exports.

    Attributes:
        set: identity of the set (`identity_of`).
        title: what the viewer called it.
        rows: of the whole set.
        reviewer: as typed into the viewer.
        judgements: of the rows that were marked or commented on.
    """

    model_config = ConfigDict(populate_by_name=True)

    schema_: Literal["trimtab.medclm.review/1"] = Field(alias="schema")
    set: str
    title: str
    rows: int
    reviewer: str
    judgements: tuple[Judgement, ...]

    def marks(self) -> dict[str, Mark]:
        """Row -> mark, of the rows that have one."""
        return {one.row: one.mark for one in self.judgements if one.mark}


@dataclass(frozen=True)
class Agreement:
    """How far two reviewers agree on the rows that both marked.

    Attributes:
        rows: how many both marked.
        only: how many one of them marked alone, for each.
        table: (mark of the first, mark of the second) -> rows.
        agreement: share of rows with the same mark.
        kappa: (agreement - chance) / (1 - chance), chance being the sum over marks of the product of both reviewers' shares
            (Cohen 1960); None where both gave all rows one and the same mark, so that chance leaves nothing to agree on.
        low, high: 95 % percentile bootstrap over images; None with fewer than two images or without kappa.
        disagreements: rows with different marks.
    """

    rows: int
    only: tuple[int, int]
    table: Mapping[tuple[Mark, Mark], int]
    agreement: float
    kappa: float | None
    low: float | None
    high: float | None
    disagreements: tuple[str, ...]


def identity_of(folder: DataSetFolder) -> str:
    """What a set is called in its reviews: the hash of its rows; "" where the manifest has none."""
    manifest = folder.manifest()
    listed = None if manifest is None else manifest.files.get("rows.jsonl")
    return "" if listed is None else listed.sha256[:32]


def load_review(path: Path) -> Review:
    """The review in a file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no review, or judges one row twice; names the file.
    """
    with named(path, "is no review that a viewer exported"):
        review = Review.model_validate_json(utf8(path))
        names = [one.row for one in review.judgements]
        twice = next((name for name in names if names.count(name) > 1), None) if len(set(names)) < len(names) else None
        if twice is not None:
            raise ValueError(f"row {twice!r} is judged twice")
    return review


def check_same_set(reviews: Mapping[Path, Review], folder: DataSetFolder | None = None) -> None:
    """Refuse reviews of different sets, and of another set than that in `folder`.

    Raises:
        ValueError: names the first file that is of another set.
    """
    first, known = next(iter(reviews.items()))
    wanted, what = known.set, f"{first} is of {known.title!r}"
    if folder is not None:
        folder.finished()
        wanted, what = identity_of(folder), f"the set is {folder.path}"
    for path, review in reviews.items():
        if review.set != wanted:
            raise ValueError(
                f"{path} is a review of another set, {review.title!r} ({review.set[:8]}): {what} ({wanted[:8]})"
            )


def agreement(first: Review, second: Review) -> Agreement:
    """How far two reviews agree.

    Raises:
        ValueError: they have no marked row in common.
    """
    one, two = first.marks(), second.marks()
    both = [row for row in one if row in two]
    if not both:
        raise ValueError(f"the reviews of {first.reviewer!r} and {second.reviewer!r} have no marked row in common")
    table = {(a, b): sum((one[row], two[row]) == (a, b) for row in both) for a in MARKS for b in MARKS}
    images = {judged.row: judged.image for judged in first.judgements}
    low, high = _interval([(one[row], two[row]) for row in both], [images[row] or row for row in both])
    counts = np.array([[table[a, b] for b in MARKS] for a in MARKS], dtype=float)
    found = kappa(counts)
    return Agreement(
        rows=len(both),
        only=(len(one) - len(both), len(two) - len(both)),
        table=table,
        agreement=float(np.trace(counts) / len(both)),
        kappa=found,
        low=low if found is not None else None,
        high=high if found is not None else None,
        disagreements=tuple(row for row in both if one[row] != two[row]),
    )


def kappa(counts: np.ndarray) -> float | None:
    """Cohen's kappa of a square table of counts; None where chance agreement is 1.

    >>> kappa(np.array([[20.0, 5.0], [10.0, 15.0]]))
    0.4
    """
    total = counts.sum()
    chance = float(counts.sum(0) @ counts.sum(1)) / total**2
    if chance >= 1:
        return None
    return float(round((float(np.trace(counts)) / float(total) - chance) / (1 - chance), 12))


def _interval(pairs: Sequence[tuple[Mark, Mark]], images: Sequence[str]) -> tuple[float | None, float | None]:
    """95 % percentile bootstrap of kappa, whole images drawn; draws without kappa are left out."""
    names = {name: place for place, name in enumerate(dict.fromkeys(images))}
    if len(names) < 2:
        return None, None
    counts = np.zeros((len(names), 2, 2))
    for (a, b), image in zip(pairs, images, strict=True):
        counts[names[image], MARKS.index(a), MARKS.index(b)] += 1
    drawn = np.random.default_rng(0).multinomial(len(names), np.full(len(names), 1 / len(names)), size=RESAMPLES)
    tables = np.tensordot(drawn.astype(float), counts, axes=1)
    values = [value for table in tables if (value := kappa(table)) is not None]
    if not values:
        return None, None
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)
