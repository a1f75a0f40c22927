"""The HTML viewer of an annotated image set: one page with the rows, images and masks beside it, no server, no network."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined

from trimtab.files import write_text
from trimtab.inputs import read_json_mapping
from trimtab.report.page import script_json
from trimtab.report.palette import THEMES

CHUNK = 32
"""Images whose masks stand in one file; it is loaded when one of them is shown."""


@dataclass(frozen=True, slots=True)
class Shown:
    """One row of the viewer.

    Attributes:
        image: path of the image relative to the page.
        width, height: of the image in pixels.
        overlay: json file of masks as COCO run lengths, {"size": [height, width], "organs": {name: run lengths}}, relative
            to the page; or None.
        box: x0, y0, x1, y1 as fractions, or None.
        question, reasoning, answer: the texts.
        facets: name of a filter -> value or values of this row.
        details: more facts, shown as a list.
        name: of the row in its set, by which a review names it; "" takes its number in the page.
    """

    image: str
    width: int
    height: int
    overlay: str | None
    box: tuple[float, float, float, float] | None
    question: str
    reasoning: str
    answer: str
    facets: Mapping[str, str | Sequence[str]]
    details: Mapping[str, str]
    name: str = ""


def write_viewer(page: Path, rows: Sequence[Shown], title: str, total: int | None = None, identity: str = "") -> Path:
    """Write the page, and the masks in pieces into a folder beside it (PAGE's name with ".masks"); returns the page.

    Args:
        page: the HTML file; image and overlay paths are relative to its folder.
        rows: what to show, in order.
        title: shown at the top.
        total: rows of the whole set, if the page has only a part of them.
        identity: of the set, which its reviews carry; "" makes one of what is shown.

    Raises:
        ValueError: there are no rows.
    """
    if not rows:
        raise ValueError(f"{page}: there are no rows to show")
    images: dict[str, int] = {}
    entries: list[list[Any]] = []
    for row in rows:
        if row.image not in images:
            images[row.image] = len(entries)
            entries.append([_link(row.image), row.width, row.height, row.overlay])
    masks = page.with_name(f"{page.stem}.masks")
    pieces = _write_masks(page.parent, masks, entries)
    names = list(rows[0].facets)
    data = {
        "images": [[image, width, height, overlay is not None] for image, width, height, overlay in entries],
        "pieces": [_link(f"{masks.name}/{name}") for name in pieces],
        "chunk": CHUNK,
        "facets": names,
        "rows": [
            [
                images[row.image],
                [round(value, 5) for value in row.box] if row.box is not None else None,
                row.question,
                row.reasoning,
                row.answer,
                [row.facets[name] for name in names],
                list(row.details.values()),
                row.name or str(number),
            ]
            for number, row in enumerate(rows, start=1)
        ],
        "details": list(rows[0].details),
    }
    environment = Environment(loader=PackageLoader("trimtab.report"), autoescape=True, undefined=StrictUndefined)
    environment.filters["script_json"] = script_json
    template = environment.get_template("viewer.html.j2")
    # Only the page's own script runs. The data cannot hold the number, being what it is made of; equal rows, equal pages.
    nonce = hashlib.sha256(json.dumps([title, data]).encode()).hexdigest()[:32]
    data["set"] = identity or nonce
    html = template.render(title=title, total=total or len(rows), data=data, themes=THEMES, nonce=nonce)
    write_text(page, html)
    return page


def _link(path: str) -> str:
    """A relative path as a URL: every part quoted.

    >>> _link("images/a b#1.png")
    'images/a%20b%231.png'
    """
    return "/".join(quote(part, safe="") for part in PurePosixPath(path).parts)


def _write_masks(folder: Path, masks: Path, entries: Sequence[Sequence[Any]]) -> list[str]:
    """Masks of CHUNK images to a script, since a page opened from disk may load scripts but not json."""
    names: list[str] = []
    if not any(entry[3] for entry in entries):
        return names
    for start in range(0, len(entries), CHUNK):
        found = {}
        for number, entry in enumerate(entries[start : start + CHUNK], start=start):
            if entry[3] is not None:
                found[number] = read_json_mapping(folder / entry[3])
        names.append(f"{start // CHUNK}.js")
        masks.mkdir(exist_ok=True)
        (masks / names[-1]).write_text(
            f"masksOf({script_json(found)});\n", encoding="utf-8"
        )  # made again by the next call
    return names
