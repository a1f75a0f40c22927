"""Split by patient, before anything else: no patient is in two splits."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence

from trimtab.medclm.records import ImageRecord, Rejected, SplitName

FRACTIONS = (0.8, 0.1, 0.1)
"""Train, validation, test (ours)."""


def split_of(patient: str, source: str, fractions: Sequence[float] = FRACTIONS, seed: int = 0) -> SplitName:
    """The split of a patient by the hash of data set, patient and seed: the same whatever else is in the set.

    u(patient) = SHA-256(seed / source / patient) as a fraction in [0, 1); train below fractions[0], then validation, then test.

    Raises:
        ValueError: the fractions are not three numbers of at least 0 that sum to 1.

    >>> split_of("p1", "demo") == split_of("p1", "demo")
    True
    """
    if len(fractions) != 3 or min(fractions) < 0 or abs(sum(fractions) - 1) > 1e-6:
        raise ValueError(f"split fractions must be three numbers of at least 0 that sum to 1, not {tuple(fractions)}")
    digest = hashlib.sha256(f"{seed}/{source}/{patient}".encode()).digest()
    place = int.from_bytes(digest[:8], "big") / 2**64
    if place < fractions[0]:
        return "train"
    return "validation" if place < fractions[0] + fractions[1] else "test"


def without_leaks(items: Iterable[ImageRecord | Rejected]) -> Iterator[ImageRecord | Rejected]:
    """`items` with the splits of their source, where an image of a patient seen earlier in another split is rejected."""
    seen: dict[str, SplitName] = {}
    for item in items:
        earlier = seen.setdefault(item.patient, item.split) if isinstance(item, ImageRecord) else None
        if isinstance(item, ImageRecord) and earlier != item.split:
            value = f"{item.patient}: {earlier} and {item.split}"
            yield Rejected(
                file=item.source, row=item.image_id, reason="patient is in two splits of the source", value=value
            )
        else:
            yield item
