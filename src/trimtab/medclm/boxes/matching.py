"""How near boxes are: IoU, generalised IoU, and the best pairing of two sets of boxes."""

from __future__ import annotations

from collections.abc import Sequence

Corners = tuple[float, float, float, float]


def iou(one: Corners, other: Corners) -> float:
    """Intersection over union of two boxes (x0, y0, x1, y1).

    >>> iou((0, 0, 2, 2), (1, 0, 3, 2))
    0.3333333333333333
    """
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    if width <= 0 or height <= 0:
        return 0.0
    areas = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (one, other))
    return width * height / (areas - width * height)


def generalized_iou(one: Corners, other: Corners) -> float:
    """IoU minus the share of the smallest box around both that neither covers (arXiv 1902.09630); in (-1, 1], so that it tells
    far from near where boxes do not touch.

    >>> generalized_iou((0, 0, 1, 1), (2, 0, 3, 1)), generalized_iou((0, 0, 1, 1), (8, 0, 9, 1))
    (-0.33333333333333337, -0.7777777777777778)
    """
    width = max(one[2], other[2]) - min(one[0], other[0])
    height = max(one[3], other[3]) - min(one[1], other[1])
    overlap = iou(one, other)
    areas = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (one, other))
    union = areas / (1 + overlap)  # areas = union + intersection = union (1 + iou)
    return overlap - (1 - union / (width * height))


def share_found(
    said: Sequence[Corners], gold: Sequence[Corners], score: str = "iou", least: float | None = None
) -> float:
    """The scores of `matched`, summed and divided by the larger number of boxes; without gold boxes 1 where none is said.

    Args:
        said, gold, score: as for `matched`.
        least: count pairs with this score or more instead of summing scores.

    >>> share_found([(0, 0, 1, 1), (4, 4, 5, 5)], [(0, 0, 1, 0.8)]), share_found([], [])
    (0.4, 1.0)
    """
    if not gold:
        return float(not said)
    values = matched(said, gold, score)
    kept = values if least is None else [float(value >= least) for value in values]
    return sum(kept) / max(len(said), len(gold))


def matched(said: Sequence[Corners], gold: Sequence[Corners], score: str = "iou") -> list[float]:
    """The scores of the pairing of said with gold boxes whose sum is greatest (Hungarian), one a pair.

    Args:
        said, gold: boxes.
        score: "iou", or "smooth": (1 + generalised IoU) / 2, which is above 0 for boxes apart as well.
    """
    if not said or not gold:
        return []
    import numpy as np
    from scipy.optimize import linear_sum_assignment

    of = iou if score == "iou" else lambda one, other: (1 + generalized_iou(one, other)) / 2
    table = np.array([[of(one, other) for other in gold] for one in said])
    rows, columns = linear_sum_assignment(-table)
    return [float(value) for value in table[rows, columns]]
