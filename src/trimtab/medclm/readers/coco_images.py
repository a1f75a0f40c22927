"""The list `images` of a COCO file: one entry for each file, whatever its ids."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from trimtab.medclm.coco import shown
from trimtab.medclm.files import identifier, whole
from trimtab.medclm.records import Rejected


@dataclass(slots=True)
class Entry:
    """An image of the list `images`, under all its ids."""

    ids: list[str]
    file: str
    size: tuple[int, int] | None
    split: str
    patient: str


class Listed:
    """The usable entries of the list `images`: one for each file, whatever its ids; what was rejected; who may be named."""

    def __init__(self, images: Sequence[object], file: str, folder: Path) -> None:
        self.entries: list[Entry] = []
        self.rejected: list[Rejected] = []
        self._known: set[str] = set()
        self.refused: set[str] = set()
        by_id: dict[str, Entry] = {}
        by_file: dict[str, Entry] = {}
        wrong: set[int] = set()
        for index, given in enumerate(images):
            identity = identifier(given.get("id")) if isinstance(given, dict) else None
            made = _entry(given, identity, folder)
            problem = made if isinstance(made, str) else ""
            if isinstance(made, Entry):
                twin, other = by_file.get(made.file), by_id.get(made.ids[0])
                if other is not None and other is not twin:
                    problem = "image id occurs twice"
                    wrong.add(id(other))
                elif twin is not None and _facts(twin) != _facts(made):
                    problem = "image is listed twice and its entries disagree"
                    wrong.add(id(twin))
                elif twin is not None:
                    problem = "image is listed twice and was merged with its first entry"
                    if other is None:
                        twin.ids.append(made.ids[0])
                        by_id[made.ids[0]] = twin
                else:
                    by_id[made.ids[0]] = by_file[made.file] = made
                    self.entries.append(made)
            if problem:
                self.rejected.append(Rejected(file=file, row=f"images[{index}]", reason=problem, value=shown(given)))
                if identity is not None and identity not in by_id:
                    self.refused.add(identity)
        for entry in [entry for entry in self.entries if id(entry) in wrong]:
            self.refused.update(entry.ids)
            reason = "image shares its id or its file with another entry that says otherwise"
            self.rejected.append(Rejected(file=file, row=f"image {entry.ids[0]}", reason=reason, value=entry.file))
        self.entries = [entry for entry in self.entries if id(entry) not in wrong]
        self._known = {identity for entry in self.entries for identity in entry.ids}

    @property
    def ids(self) -> list[str]:
        """The ids of the usable entries."""
        return [identity for entry in self.entries for identity in entry.ids]

    def usable(self, identity: str) -> bool:
        """Whether it is the id of a usable entry, and of no other."""
        return identity in self._known and identity not in self.refused

    def __contains__(self, identity: str) -> bool:
        """Whether the list names this id, be its entry usable or not."""
        return identity in self._known or identity in self.refused


def _facts(entry: Entry) -> tuple[object, ...]:
    return entry.size, entry.split, entry.patient


def _entry(given: object, identity: str | None, folder: Path) -> Entry | str:
    """The entry, or what is wrong with it."""
    if not isinstance(given, dict) or identity is None:
        return "image entry without id"
    name = given.get("file_name")
    if not isinstance(name, str) or not name:
        return "image entry without file_name"
    sides = [given.get(key) for key in ("width", "height")]
    size = [whole(side) for side in sides if side is not None and side != 0]
    if any(side is None or side < 1 for side in size) or any(isinstance(side, bool) for side in sides):
        return "image entry whose width and height are no whole numbers above 0"
    patient = next((given[key] for key in ("patient", "patient_id", "patientid") if given.get(key) is not None), "")
    return Entry(
        ids=[identity],
        file=_located(name, folder),
        size=(size[0], size[1]) if len(size) == 2 and size[0] and size[1] else None,
        split=str(given.get("split") or ""),
        patient=identifier(patient) or str(patient),
    )


def _located(name: str, folder: Path) -> str:
    """`name` relative to `folder`: names that begin with the folder's own name are relative to what it lies in."""
    parts = [part for part in name.replace("\\", "/").split("/") if part != "."]
    if len(parts) > 1 and parts[0] == folder.name and ".." not in parts and "\x00" not in name:
        rest = "/".join(parts[1:])
        if not folder.joinpath(*parts).exists() and (folder / rest).exists():
            return rest
    return "/".join(part for part in parts if part) if parts[0] else name
