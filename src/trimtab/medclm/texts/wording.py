"""English for labels, places and boxes, and the seed sentence every text grows from."""

from __future__ import annotations

import re
from collections.abc import Iterable

from trimtab.medclm.english import is_mass_noun, is_plural_noun, plural_of, with_article
from trimtab.medclm.findings import Grammar, finding_of, tidied
from trimtab.medclm.records import UNKNOWN_ORGAN, Box, HostDecision, ImageRecord, Lesion

_BOX = re.compile(r"\[\s*(\d*\.\d+|[01])\s*,\s*(\d*\.\d+|[01])\s*,\s*(\d*\.\d+|[01])\s*,\s*(\d*\.\d+|[01])\s*\]")

SMALL, LARGE = 0.05, 0.25
"""A lesion below 5 % of its organ is called small, above 25 % large (ours)."""

_STATES = ("megaly", "enlargement", "tortuosity", "shift", "scoliosis", "kyphosis")

NO_BOX = "none"
"""The answer where boxes are asked for and there are none."""

shown = tidied
"""A class name as it stands in a sentence: `findings.tidied`."""


def grammar_of(label: str) -> Grammar:
    """How a class name is counted: as the table of findings says, else by its ending.

    >>> grammar_of("nodule"), grammar_of("consolidation"), grammar_of("cardiomegaly"), grammar_of("hard_exudates")
    ('one', 'mass', 'state', 'many')
    """
    text, finding = tidied(label), finding_of(label)
    if finding is not None and (text.lower().endswith(finding.name.lower()) or text.isupper()):
        return finding.grammar
    if is_plural_noun(text):
        return "many"
    return "state" if text.endswith(_STATES) else "mass" if is_mass_noun(text) else "one"


def is_plural(label: str) -> bool:
    """Whether the class name is already a plural ("hard exudates")."""
    return grammar_of(label) == "many"


def is_counted(label: str) -> bool:
    """Whether it makes sense to ask how many there are: not of a state such as cardiomegaly."""
    return grammar_of(label) != "state"


def indefinite(label: str) -> str:
    """The class name with the article it takes.

    >>> indefinite("effusion"), indefinite("nodule"), indefinite("hard_exudates"), indefinite("cardiomegaly")
    ('an effusion', 'a nodule', 'hard exudates', 'cardiomegaly')
    """
    text = tidied(label)
    return with_article(text) if grammar_of(label) == "one" else text


def regions(label: str, number: int | None = None) -> str:
    """The class name where it is counted; `number` is put before it.

    >>> regions("nodule", 1), regions("lung opacity", 2), regions("hard_exudates", 1), regions("consolidation")
    ('1 nodule', '2 lung opacities', '1 region of hard exudates', 'regions of consolidation')
    """
    text = tidied(label)
    grammar = grammar_of(label)
    if grammar == "one":
        noun = text if number == 1 else plural_of(text)
    elif grammar == "state":
        noun = text
    else:
        noun = f"{'region' if number == 1 else 'regions'} of {text}"
    return noun if number is None else f"{number} {noun}"


def sought(label: str) -> str:
    """What one looks for without knowing how many there are.

    >>> sought("nodule"), sought("consolidation"), sought("cardiomegaly")
    ('nodules', 'consolidation', 'cardiomegaly')
    """
    return plural_of(tidied(label)) if grammar_of(label) == "one" else tidied(label)


def definite(label: str, number: int = 1) -> str:
    """The lesions of a class in an image that has `number` of them.

    >>> definite("nodule"), definite("nodule", 2), definite("consolidation"), definite("consolidation", 2)
    ('the nodule', 'the nodules', 'the consolidation', 'the regions of consolidation')
    """
    return f"the {tidied(label)}" if number == 1 else f"the {regions(label)}"


def the_largest(label: str, number: int) -> str:
    """The largest lesion of a class in an image that has `number` of them.

    >>> the_largest("nodule", 1), the_largest("nodule", 2), the_largest("consolidation", 1)
    ('the nodule', 'the largest of the nodules', 'the consolidation')
    """
    return definite(label) if number == 1 else f"the largest of {definite(label, number)}"


def quoted(box: Box) -> str:
    """A box as texts quote it: fractions of the image's size, four decimals.

    >>> quoted(Box(x0=0.25, y0=0.5, x1=1 / 3, y1=1.0))
    '[0.2500, 0.5000, 0.3333, 1.0000]'
    """
    return "[" + ", ".join(f"{value:.4f}" for value in box.corners) + "]"


def named_boxes(lesions: Iterable[Lesion]) -> str:
    """Classes with their boxes as an answer, "none" without any.

    >>> box = Box(x0=0.25, y0=0.5, x1=0.5, y1=1.0)
    >>> named_boxes([Lesion(lesion_id="a/1", image_id="a", label="lung_mass", box=box, source_row="a:1")])
    'lung mass [0.2500, 0.5000, 0.5000, 1.0000]'
    """
    return "; ".join(f"{tidied(one.label)} {quoted(one.box)}" for one in lesions) or NO_BOX


def in_reading_order(lesions: Iterable[Lesion]) -> tuple[Lesion, ...]:
    """By class, then from top to bottom and left to right [ours]: the order in which an answer names boxes."""
    return tuple(sorted(lesions, key=lambda one: (tidied(one.label), one.box.y0, one.box.x0, one.lesion_id)))


def boxes_in(text: str) -> list[tuple[float, float, float, float]]:
    """All boxes a text quotes.

    >>> boxes_in("from [0.1, 0.2, 0.3, 0.4] on")
    [(0.1, 0.2, 0.3, 0.4)]
    """
    return [tuple(float(value) for value in found.groups()) for found in _BOX.finditer(text)]  # type: ignore[misc]


def part_of_picture(box: Box) -> str:
    """Which ninth of the picture holds the middle of the box, in words.

    >>> part_of_picture(Box(x0=0.0, y0=0.0, x1=0.1, y1=0.1)), part_of_picture(Box(x0=0.4, y0=0.4, x1=0.6, y1=0.6))
    ('the upper left of the picture', 'the middle of the picture')
    """
    x, y = box.centre
    across = ("left", "", "right")[min(int(x * 3), 2)]
    down = ("upper", "", "lower")[min(int(y * 3), 2)]
    if across and down:
        return f"the {down} {across} of the picture"
    if across:
        return f"the {across} of the picture, at middle height"
    return f"the {down} middle of the picture" if down else "the middle of the picture"


def is_eye(record: ImageRecord) -> bool:
    """Whether sides mean "which eye": the anatomy is that of a retina."""
    return any("retina" in organ or organ == "optic disc" for organ in record.organs)


def known(host: HostDecision | None) -> HostDecision | None:
    """The host if there is one and its organ is known."""
    return host if host is not None and host.organ != UNKNOWN_ORGAN else None


def beside(label: str, host: HostDecision) -> str:
    """The space beside its host in which a finding lies: of the pleura where the host is a lung or the diaphragm; else "".

    >>> beside("pleural effusion", HostDecision(organ="right lung", score=1.0, rule="r", reason="x"))
    'pleural space'
    """
    finding = finding_of(label)
    if finding is None or not finding.place.startswith("pleura") or host.fallback:
        return ""
    return finding.place if host.organ.endswith(("lung", "lobe", "diaphragm")) else ""


def place(record: ImageRecord, host: HostDecision, label: str = "") -> str:
    """Organ, zone and side in words; the side is the patient's (or says which eye), unless the organ's name has it.

    A finding of the pleura, by its `label`, lies beside its host.

    >>> host = HostDecision(organ="right lung", score=1.0, rule="r", reason="x", side="right", zone="upper zone")
    >>> record = ImageRecord(image_id="a", file="a.png", width=9, height=9, patient="p", modality="X-ray", source="s")
    >>> place(record, host), place(record, host, "effusion")
    ('upper zone of the right lung', 'pleural space beside the upper zone of the right lung')
    """
    words = host.organ
    apart = host.zone is not None and "disc" in host.zone  # a distance, not a part of the organ
    if host.zone and not apart:
        words = f"{host.zone} of the {words}"
    if space := beside(label, host):
        words = f"{space} beside the {words}"
    if host.side and is_eye(record):
        words += f" of the {host.side} eye"
    elif host.side == "midline":
        words += ", at the midline"
    elif host.side and not host.organ.startswith(("left ", "right ")):
        words += f", on the patient's {host.side}"
    if apart:
        words += f", {host.zone}"
    return words


def preposition(label: str, host: HostDecision) -> str:
    """How a finding lies to its `place`: near it (a fallback), at it (the pleura, a state of the organ), or in it."""
    at = beside(label, host) == "pleura" or grammar_of(label) == "state"
    return "near" if host.fallback else "at" if at else "in"


def lies_at(record: ImageRecord, label: str, host: HostDecision) -> str:
    """`place` with its preposition and article: "in the right lung"."""
    return f"{preposition(label, host)} the {place(record, host, label)}"


def size_word(fraction: float | None) -> str:
    """small, medium-sized or large, by the fraction of the organ that the lesion covers."""
    if fraction is None:
        return ""
    return "small" if fraction < SMALL else "large" if fraction > LARGE else "medium-sized"


def listed(words: Iterable[str]) -> str:
    """Words joined by commas and "and".

    >>> listed(["a", "b", "c"])
    'a, b and c'
    """
    found = list(words)
    return found[0] if len(found) == 1 else f"{', '.join(found[:-1])} and {found[-1]}" if found else ""


def same_class(record: ImageRecord, label: str) -> tuple[Lesion, ...]:
    """The lesions of `record` of class `label`."""
    return tuple(lesion for lesion in record.lesions if lesion.label == label)


def seed_text(record: ImageRecord, lesion: Lesion | None) -> str:
    """One deterministic sentence with all that is known: lesion, place, size relative to the organ, count.

    >>> record = ImageRecord(image_id="a", file="a.png", width=9, height=9, patient="p", modality="X-ray", source="s")
    >>> seed_text(record, None)
    'No finding is annotated in this X-ray.'
    """
    if lesion is None:
        if not record.lesions:
            return f"No finding is annotated in this {record.modality}."
        labels = listed(indefinite(label) for label in sorted({lesion.label for lesion in record.lesions}))
        return f"This {record.modality} shows {labels}."
    number = len(same_class(record, lesion.label))
    text = indefinite(lesion.label)
    host = known(lesion.host)
    if host is None:
        text += f" at {quoted(lesion.box)}, in an organ that is not known"
    else:
        text += f" {lies_at(record, lesion.label, host)}"
    if host is not None and lesion.area_fraction is not None and not host.fallback:
        text += f", its box covering {lesion.area_fraction:.1%} of the {host.organ}"
    text += f"; {number} of this class in the image" if number > 1 else "; the only one of this class in the image"
    return text[0].upper() + text[1:] + "."
