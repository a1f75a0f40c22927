"""Train, validation and test by patient: no patient is in two of them."""

from __future__ import annotations

import hashlib
from typing import Literal

from trimtab.medclm.records import ImageRecord, Rejected, SplitName

Fractions = tuple[float, float, float]
_NAMES: tuple[SplitName, ...] = ("train", "validation", "test")


class PatientSplit:
    """Gives every image its split, decided by its patient alone.

    "patient": a hash of seed and patient, as a number in [0, 1), falls into the share of one split; so a patient keeps its
    split whatever else is in the set, and the shares hold on average. "source": the split the source gave, and images of
    a patient who was already seen in another split are rejected.

    Args:
        by: "patient" or "source".
        fractions: shares of train, validation and test, adding to 1; 0.8, 0.1, 0.1 (ours).
        seed: changes the draw.

    Raises:
        ValueError: unknown `by`, or fractions that are negative or do not add to 1.

    >>> PatientSplit(seed=0).of("P0001")
    'train'
    """

    def __init__(
        self, by: Literal["patient", "source"] = "patient", fractions: Fractions = (0.8, 0.1, 0.1), seed: int = 0
    ) -> None:
        if by not in ("patient", "source"):
            raise ValueError(f"by must be 'patient' or 'source', not {by!r}")
        if len(fractions) != 3 or min(fractions) < 0 or abs(sum(fractions) - 1) > 1e-6:
            raise ValueError(f"fractions must be three shares of 0 or more that add to 1, not {fractions}")
        self.by, self.fractions, self.seed = by, fractions, seed
        self._seen: dict[str, SplitName] = {}

    def of(self, patient: str) -> SplitName:
        """The split a patient falls into by hash."""
        digest = hashlib.blake2b(f"{self.seed}:{patient}".encode(), digest_size=8).digest()
        position = int.from_bytes(digest) / 2**64
        train, validation, _ = self.fractions
        return _NAMES[0] if position < train else _NAMES[1] if position < train + validation else _NAMES[2]

    def apply(self, record: ImageRecord) -> ImageRecord | Rejected:
        """`record` with its split set, or why it would leak."""
        if self.by == "patient":
            return record.model_copy(update={"split": self.of(record.patient)})
        earlier = self._seen.setdefault(record.patient, record.split)
        if earlier != record.split:
            return Rejected(
                file=record.source,
                row=record.image_id,
                reason="patient is in two splits",
                value=f"{record.patient}: {earlier} and {record.split}",
            )
        return record
