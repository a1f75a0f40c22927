"""A reasoning taken apart into its sentences, each tied to the boxes it is about."""

from __future__ import annotations

import re
from collections.abc import Sequence

from trimtab.medclm.records import ImageRecord, Lesion, Marked, Step
from trimtab.medclm.texts.asking import BOX_KINDS, Ask, spoken_of
from trimtab.medclm.texts.wording import quoted, shown

_END = re.compile(r"(?<=[.!?])\s+")


def sentences(text: str) -> list[tuple[int, int]]:
    """Offsets [start, end) of the sentences.

    >>> sentences("One. Two is 1.5 % of it.")
    [(0, 4), (5, 24)]
    """
    ends = [(found.start(), found.end()) for found in _END.finditer(text)]
    starts = [0, *(end for _, end in ends)]
    return [
        (low, high) for low, high in zip(starts, [*(start for start, _ in ends), len(text)], strict=True) if low < high
    ]


def marked(lesions: Sequence[Lesion]) -> tuple[Marked, ...]:
    """Lesions as a row's objects."""
    return tuple(Marked.of_checked(lesion_id=one.lesion_id, label=shown(one.label), box=one.box) for one in lesions)


def tied(
    reasoning: str, start: int, record: ImageRecord, lesion: Lesion | None, ask: Ask
) -> tuple[tuple[Marked, ...], tuple[Step, ...]]:
    """(objects, steps) of a row.

    A sentence is about the boxes that it quotes. One that quotes none is about the row's own lesion; a comparison that names
    both classes, and the conclusion of a count or a detection, are about all objects [ours].

    Args:
        reasoning: of the row; "" has no steps.
        start: of the reasoning in the target.
        record, lesion, ask: of the row.
    """
    lesions = spoken_of(record, lesion, ask)
    objects = marked(lesions)
    quotes = [quoted(one.box) for one in lesions]
    own = [place for place, one in enumerate(lesions) if lesion is not None and one.lesion_id == lesion.lesion_id]
    everything = list(range(len(objects)))
    found = []
    spans = sentences(reasoning)
    for low, high in spans:
        said = reasoning[low:high]
        about = [place for place, quote in enumerate(quotes) if quote in said]
        if not about:
            both = (
                ask.kind == "compare"
                and bool(ask.other)
                and all(shown(label) in said for label in (ask.label, ask.other))
            )
            last = (low, high) == spans[-1] and ask.kind in ("count", "compare", *BOX_KINDS)
            about = everything if both or last else own
        found.append(Step.of_checked(span=(start + low, start + high), objects=tuple(about)))
    return objects, tuple(found)
