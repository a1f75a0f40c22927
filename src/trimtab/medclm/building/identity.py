"""One picture, one identity: copies of a picture under several ids or names are found by their pixels."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from trimtab.files import replace_atomically
from trimtab.medclm.building.folder import DataSetFolder
from trimtab.medclm.building.journal import journal_items
from trimtab.medclm.records import Rejected
from trimtab.medclm.splits import split_of

if TYPE_CHECKING:
    from trimtab.medclm.building.options import BuildOptions

SAME = "same picture as an earlier image of the set"
DISPUTED = "same picture as another image of the set, with other findings"


def content_of(pixels: NDArray[np.uint8]) -> str:
    """A hash of the pixels, the same for a grey picture stored in colour; empty for a picture of one value, which says nothing.

    >>> import numpy as np
    >>> ramp = np.arange(6, dtype=np.uint8).reshape(2, 3)
    >>> content_of(ramp) == content_of(np.repeat(ramp[..., None], 3, axis=2)), content_of(ramp * 0)
    (True, '')
    """
    if pixels.ndim == 3 and (pixels == pixels[..., :1]).all():
        pixels = pixels[..., 0]
    if (pixels == pixels.flat[0]).all():
        return ""
    digest = hashlib.blake2b(str(pixels.shape).encode(), digest_size=16)
    digest.update(np.ascontiguousarray(pixels).tobytes())
    return digest.hexdigest()


@dataclass(slots=True)
class _Copies:
    """The images that show one picture."""

    ids: list[str] = field(default_factory=list)
    patients: set[str] = field(default_factory=set)
    findings: set[str] = field(default_factory=set)


def settle(folder: DataSetFolder, options: BuildOptions) -> Path:
    """Write `work/images.jsonl`: the step "images" with each picture once; returns its path.

    Copies with the same classes and boxes: the first is kept. Copies that say different things: all are rejected, since
    nobody knows which is right. Patients who share a picture get one split, that of the first of their names.
    Memory holds a hash, an id and a patient of every image.
    """
    source, target = folder.work / "prepared.jsonl", folder.work / "images.jsonl"
    pictures: dict[str, _Copies] = {}
    for item in journal_items(source):
        record = item["record"]
        if record is not None and item["content"]:
            copies = pictures.setdefault(item["content"], _Copies())
            copies.ids.append(record["image_id"])
            copies.patients.add(record["patient"])
            copies.findings.add(_findings(record))
    pictures = {content: copies for content, copies in pictures.items() if len(copies.ids) > 1}
    patients = _joined(pictures) if options.split == "patient" else {}
    kept: set[str] = set()
    dropped: set[str] = set()
    used: set[str] = set()

    def lines() -> Iterator[str]:
        for item in journal_items(source):
            record = item["record"]
            copies = pictures.get(item["content"]) if record is not None else None
            reason = ""
            if copies is not None:
                reason = DISPUTED if len(copies.findings) > 1 else SAME if item["content"] in kept else ""
                kept.add(item["content"])
            if copies is not None and reason:
                dropped.update(_files(record))
                others = [one for one in copies.ids if one != record["image_id"]]
                value = f"{record['file']}: also {', '.join(others[:3])}"
                fault = Rejected(file=record["source"], row=record["image_id"], reason=reason, value=value)
                item = {**item, "record": None, "rejected": [*item["rejected"], fault.model_dump()]}
            elif record is not None:
                used.update(_files(record))
                if record["patient"] in patients:
                    first = patients[record["patient"]]
                    record["split"] = split_of(first, record["source"], options.fractions, options.seed)
            yield json.dumps(item)

    def write(temporary: Path) -> None:
        with temporary.open("w", encoding="utf-8") as handle:
            handle.writelines(f"{line}\n" for line in lines())

    replace_atomically(target, write)
    for path in dropped - used:
        (folder.path / path).unlink(missing_ok=True)
    return target


def _files(record: Mapping[str, Any]) -> set[str]:
    """The files of an image in the data set's folder."""
    return {f"images/{record['file']}", f"organs/{record['organ_file']}"}


def _findings(record: Mapping[str, Any]) -> str:
    """Classes and boxes of an image as text, in an order of their own."""
    found = sorted(
        (lesion["label"], *(round(lesion["box"][corner], 6) for corner in ("x0", "y0", "x1", "y1")))
        for lesion in record["lesions"]
    )
    return hashlib.blake2b(repr(found).encode(), digest_size=16).hexdigest()


def _joined(pictures: Mapping[str, _Copies]) -> dict[str, str]:
    """Patient -> the first, by name, of all who are joined to them by pictures they share."""
    above: dict[str, str] = {}

    def first(patient: str) -> str:
        while above.setdefault(patient, patient) != patient:
            above[patient] = above[above[patient]]
            patient = above[patient]
        return patient

    for copies in pictures.values():
        for patient in copies.patients:
            one, other = sorted((first(patient), first(min(copies.patients))))
            above[other] = one
    return {patient: first(patient) for patient in above}
