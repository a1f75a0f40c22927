"""Croissant metadata (mlcommons.org/croissant/1.0) of a published set: its files with hashes, its columns with types."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from trimtab.medclm.building.folder import ListedFile
from trimtab.medclm.building.parquet import features
from trimtab.medclm.publishing.about import About

_OF_CROISSANT = (
    "citeAs column extract field fileObject fileProperty fileSet format includes isLiveDataset jsonPath key md5 parentField "
    "path recordSet references regex repeated replace samplingRate separator source subField transform"
)
CONTEXT: dict[str, Any] = {
    "@language": "en", "@vocab": "https://schema.org/", "sc": "https://schema.org/", "cr": "http://mlcommons.org/croissant/",
    "rai": "http://mlcommons.org/croissant/RAI/", "dct": "http://purl.org/dc/terms/", "conformsTo": "dct:conformsTo",
    "data": {"@id": "cr:data", "@type": "@json"}, "examples": {"@id": "cr:examples", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"}, **{word: f"cr:{word}" for word in _OF_CROISSANT.split()},
}  # fmt: skip
"""What the words of the metadata mean, as the standard gives it."""
_TYPES = {"string": "sc:Text", "int64": "sc:Integer", "float64": "sc:Float", "bool": "sc:Boolean"}


def croissant(
    about: About,
    files: Mapping[str, ListedFile],
    splits: Sequence[str],
    version: str,
    published: str,
    *,
    pictures: bool,
) -> dict[str, Any]:
    """The metadata as JSON-LD; nested columns (objects, steps) are left to Parquet's own schema.

    Args:
        about: name, licence and the like.
        files: path -> size and hash, of the Parquet files.
        splits: which of them there are, as data/SPLIT.parquet.
        version: of the set, as MAJOR.MINOR.PATCH.
        published: date, as 2026-01-31.
        pictures: the Parquet files hold the pictures.
    """
    distribution = [
        {
            "@type": "cr:FileObject", "@id": f"data/{split}.parquet", "name": f"data/{split}.parquet",
            "contentUrl": f"data/{split}.parquet", "contentSize": f"{files[f'data/{split}.parquet'].bytes} B",
            "encodingFormat": "application/x-parquet", "sha256": files[f"data/{split}.parquet"].sha256,
        }
        for split in splits
    ]  # fmt: skip
    said = {
        "description": about.description or f"Questions, reasoning and answers tied to boxes: {about.shown_name}.",
        "url": about.url,
        "citeAs": about.citation,
        "creator": [{"@type": "sc:Organization", "name": one} for one in about.creators],
    }
    return {
        "@context": CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": "http://mlcommons.org/croissant/1.0",
        "name": about.name,
        "alternateName": about.shown_name,
        "license": about.licence_url,
        "version": version,
        "datePublished": published,
        **{key: value for key, value in said.items() if value},
        "distribution": distribution,
        "recordSet": [_records(split, pictures=pictures) for split in splits],
    }


def _records(split: str, *, pictures: bool) -> dict[str, Any]:
    fields = []
    for name, kind in features().items():
        source: dict[str, Any] = {"fileObject": {"@id": f"data/{split}.parquet"}, "extract": {"column": name}}
        field: dict[str, Any] = {"@type": "cr:Field", "@id": f"{split}/{name}", "name": f"{split}/{name}"}
        inner = getattr(kind, "feature", None)
        if name == "image":
            if not pictures:
                continue
            field |= {"dataType": "sc:ImageObject", "source": {**source, "transform": {"jsonPath": "bytes"}}}
        elif inner is None:
            field |= {"dataType": _TYPES[kind.dtype], "source": source}
        elif hasattr(inner, "dtype"):
            field |= {"dataType": _TYPES[inner.dtype], "repeated": True, "source": source}
        else:
            continue
        fields.append(field)
    return {
        "@type": "cr:RecordSet",
        "@id": split,
        "name": split,
        "description": f"Rows of the split {split}.",
        "field": fields,
    }
