"""Which organ holds a lesion: scores over organ masks, ties, a flagged fallback, and a reason."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trimtab.medclm.findings import side_in
from trimtab.medclm.places import bounds, side_and_conflict, zone_of
from trimtab.medclm.records import UNKNOWN_ORGAN, Box, HostDecision, ImageRecord, Lesion
from trimtab.medclm.rules import HostRules, RuleName, host_rules, warn_unlisted

__all__ = ["HostRules", "assign_hosts", "host_rules"]

Mask = NDArray[np.bool_]

FALLBACK = "host_fallback"
UNKNOWN = "host_unknown"
SIDE_CONFLICT = "side_conflict"


@dataclass(frozen=True, slots=True)
class _Organ:
    name: str
    mask: Mask
    area: int
    around: Box


def assign_hosts(record: ImageRecord, masks: Mapping[str, Mask], rules: HostRules | None = None) -> ImageRecord:
    """`record` with the host organ of every lesion decided.

    inside_fraction(lesion, organ) = |box and mask| / |box|; areas count the pixels of the mask's grid, those at the edges of
    the box by the part of them that lies inside, so a mask of fewer pixels than the image serves too. The lesion is its box.

    Args:
        record: the image.
        masks: organ -> mask (height, width) of bool over the whole image; empty masks are as good as absent.
        rules: without them `HostRules()`.

    Raises:
        ValueError: the masks are not two-dimensional bool arrays of one size.

    >>> import numpy as np
    >>> lung, rib = np.zeros((100, 100), dtype=bool), np.zeros((100, 100), dtype=bool)
    >>> lung[10:90, 10:50] = True
    >>> rib[40:44, 10:50] = True
    >>> box = Box(x0=0.2, y0=0.4, x1=0.25, y1=0.45)
    >>> lesion = Lesion(lesion_id="1", image_id="a", label="nodule", box=box, source_row="a.json:1")
    >>> record = ImageRecord(
    ...     image_id="a", file="a.png", width=100, height=100, patient="p", modality="X-ray", source="doc", lesions=(lesion,)
    ... )
    >>> decided = assign_hosts(record, {"right lung": lung, "rib": rib}).lesions[0].host
    >>> decided.organ, decided.score, decided.side, decided.runners_up
    ('right lung', 1.0, 'right', (('rib', 0.8),))
    >>> assign_hosts(record, {"right lung": lung, "rib": rib}, HostRules(rule="mask_iou")).lesions[0].host.organ
    'rib'
    """
    rules = rules or HostRules()
    warn_unlisted((lesion.label for lesion in record.lesions), rules)
    return decided_hosts(record, masks, rules)


def decided_hosts(record: ImageRecord, masks: Mapping[str, Mask], rules: HostRules) -> ImageRecord:
    """`assign_hosts` without its warning, for many processes at once."""
    organs = _organs(record, masks)
    lesions = tuple(_decided(lesion, organs, record.width / record.height, rules) for lesion in record.lesions)
    return record.model_copy(update={"lesions": lesions, "organs": tuple(organs)})


def _organs(record: ImageRecord, masks: Mapping[str, Mask]) -> dict[str, _Organ]:
    shapes = {name: mask.shape for name, mask in masks.items()}
    wrong = {name: str(mask.dtype) for name, mask in masks.items() if mask.ndim != 2 or mask.dtype != np.bool_}
    if wrong or len(set(shapes.values())) > 1:
        raise ValueError(
            f"image {record.image_id!r}: masks must be bool (height, width) of one size; got {shapes} {wrong}"
        )
    organs = {}
    for name in sorted(masks):
        around = bounds(masks[name])
        if around is not None:
            organs[name] = _Organ(name, masks[name], int(np.count_nonzero(masks[name])), around)
    return organs


class _Patch:
    """A box on the grid of the masks: the pixels it touches, and the part of each row and column that lies inside."""

    __slots__ = ("area", "columns", "rows", "x", "y")

    def __init__(self, box: Box, shape: tuple[int, ...]) -> None:
        self.y, self.rows = _weights(box.y0, box.y1, shape[0])
        self.x, self.columns = _weights(box.x0, box.x1, shape[1])
        self.area = float(self.rows.sum() * self.columns.sum())

    def inside(self, mask: Mask) -> float:
        """Area of the box inside the mask, in pixels."""
        return float(self.rows @ mask[self.y, self.x] @ self.columns)


def _weights(start: float, end: float, size: int) -> tuple[slice, NDArray[np.float64]]:
    low, high = start * size, end * size
    first = min(int(low), size - 1)
    last = max(min(math.ceil(high), size), first + 1)
    weights = np.ones(last - first)
    weights[0] -= low - first
    weights[-1] -= last - high
    return slice(first, last), weights


def _score(rule: RuleName, box: Box, patch: _Patch, organ: _Organ) -> float:
    across = min(box.x1, organ.around.x1) - max(box.x0, organ.around.x0)
    down = min(box.y1, organ.around.y1) - max(box.y0, organ.around.y0)
    if across <= 0 or down <= 0:
        return 0.0
    if rule == "box_iou":
        return round(across * down / (box.area + organ.around.area - across * down), 9)
    both = patch.inside(organ.mask)
    return round(both / (patch.area if rule == "inside_fraction" else patch.area + organ.area - both), 9)


def _decided(lesion: Lesion, organs: Mapping[str, _Organ], aspect: float, rules: HostRules) -> Lesion:
    patch = _Patch(lesion.box, next(iter(organs.values())).mask.shape if organs else (1, 1))
    scores = {
        name: _score(rules.rule, lesion.box, patch, organ)
        for name, organ in organs.items()
        if rules.allows(lesion.label, name)
    }
    ranked = sorted(scores, key=lambda name: (-scores[name], -len(rules.ancestors(name)), name))
    minimum = rules.minimum if rules.minimum is not None else 0.5 if rules.rule == "inside_fraction" else 0.0
    holding = [name for name in ranked if scores[name] >= minimum and scores[name] > 0]
    if rules.rule == "inside_fraction":
        containing = {parent for name in holding for parent in rules.ancestors(name)}
        holding = [name for name in holding if name not in containing]
    flags = set(lesion.flags)
    organ, fallback = UNKNOWN_ORGAN, False
    if holding:
        organ = holding[0]
        reason = _reason(rules, organ, scores[organ], minimum)
    else:
        organ, reason = _nearest(lesion, organs, ranked, scores, rules, minimum)
        fallback = organ != UNKNOWN_ORGAN
        flags.add(FALLBACK if fallback else UNKNOWN)
    boxes = {name: found.around for name, found in organs.items()}
    side, conflict = side_and_conflict(lesion.box, organ, boxes, rules.convention)
    if conflict:
        flags.add(SIDE_CONFLICT)
    named = side_in(lesion.label)
    if {side, named} == {"left", "right"}:
        flags = (flags - {FALLBACK}) | {SIDE_CONFLICT, UNKNOWN}
        reason = f"the class {lesion.label!r} says {named}, but {reason} ({organ}), on the patient's {side}"
        organ, fallback, side = UNKNOWN_ORGAN, False, None
    runners_up = tuple((name, scores[name]) for name in ranked if name != organ and scores[name] > 0)[:3]
    host = HostDecision(
        organ=organ,
        score=scores.get(organ, 0.0),
        rule=rules.rule,
        runners_up=runners_up,
        fallback=fallback,
        reason=reason,
        side=side,
        zone=zone_of(lesion.box, (organ, *rules.ancestors(organ)), boxes, aspect, rules.zones),
    )
    fraction = None
    if organ != UNKNOWN_ORGAN:
        fraction = round(patch.inside(organs[organ].mask) / organs[organ].area, 9)
    return lesion.model_copy(update={"host": host, "area_fraction": fraction, "flags": tuple(sorted(flags))})


def _reason(rules: HostRules, organ: str, score: float, minimum: float) -> str:
    if rules.rule == "inside_fraction":
        return f"{score:.1%} of the box lies inside {organ}, the most specific allowed organ that holds at least {minimum:.0%}"
    what = "mask" if rules.rule == "mask_iou" else "box"
    return f"the {what} of {organ} has the highest intersection over union with the lesion's box, {score:.4f}"


def _nearest(
    lesion: Lesion,
    organs: Mapping[str, _Organ],
    ranked: list[str],
    scores: Mapping[str, float],
    rules: HostRules,
    minimum: float,
) -> tuple[str, str]:
    if not organs:
        return UNKNOWN_ORGAN, "the image has no organ masks"
    if not rules.lists(lesion.label):
        return UNKNOWN_ORGAN, f"the class {lesion.label!r} is not in the allow-list"
    if rules.organs_of(lesion.label) == ():
        return UNKNOWN_ORGAN, "a finding of this class has no one host organ"
    if not ranked:
        return UNKNOWN_ORGAN, f"none of the organs in the image ({', '.join(organs)}) is allowed for this class"
    distances = {name: round(_distance(lesion.box, organs[name].mask), 9) for name in ranked}
    nearest = min(ranked, key=lambda name: (distances[name], ranked.index(name)))
    short = f"no allowed organ reaches a score of {minimum:g} (best: {ranked[0]} {scores[ranked[0]]:.4f})"
    where = f"{nearest} is the nearest, {distances[nearest]:.2%} of the diagonal away"
    if distances[nearest] > rules.reach:
        return UNKNOWN_ORGAN, f"{short}; {where}, beyond the reach of {rules.reach:.2%}"
    return nearest, f"{short}; {where}"


def _distance(box: Box, mask: Mask) -> float:
    """Least distance between box and mask as a fraction of the image's diagonal; 0 where they touch."""
    height, width = mask.shape
    rows, columns = np.nonzero(mask)
    x0, y0, x1, y1 = box.x0 * width, box.y0 * height, box.x1 * width, box.y1 * height
    across = np.maximum(0.0, np.maximum(x0 - (columns + 1), columns - x1))
    down = np.maximum(0.0, np.maximum(y0 - (rows + 1), rows - y1))
    return float(np.sqrt((across**2 + down**2).min()) / np.hypot(width, height))
