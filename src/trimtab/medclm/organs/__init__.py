"""Organ masks by name of their source: `create("png", folder=Path("organs")).masks(record, None)`."""

from __future__ import annotations

import importlib
from typing import Any

from trimtab.medclm.organs.source import Combined, OrganError, OrganSource

__all__ = ["Combined", "OrganError", "OrganSource", "create", "names", "source_class"]

_SOURCES = {
    "coco": ("rle", "CocoOrgans"),
    "cxas": ("segmenters", "CxasOrgans"),
    "labels": ("folders", "LabelMapOrgans"),
    "nifti": ("nifti", "NiftiOrgans"),
    "png": ("folders", "PngOrgans"),
    "retina": ("retina", "RetinaOrgans"),
    "rle": ("rle", "RleFolder"),
    "torchxrayvision": ("segmenters", "XrayVisionOrgans"),
    "totalsegmentator": ("segmenters", "TotalSegmentatorOrgans"),
}


def names() -> tuple[str, ...]:
    """Names of all organ sources.

    >>> names()
    ('coco', 'cxas', 'labels', 'nifti', 'png', 'retina', 'rle', 'torchxrayvision', 'totalsegmentator')
    """
    return tuple(_SOURCES)


def source_class(name: str) -> type:
    """The class of organ source `name`; its arguments are the source's options.

    Raises:
        ValueError: there is no such source.
    """
    if name not in _SOURCES:
        raise ValueError(f"no organ source is called {name!r}; there are {', '.join(names())}")
    module, attribute = _SOURCES[name]
    found: type = getattr(importlib.import_module(f"trimtab.medclm.organs.{module}"), attribute)
    return found


def create(name: str, **options: Any) -> OrganSource:
    """The organ source `name` with `options` (see its class).

    Raises:
        ValueError: there is no such source. TypeError: it has no such option. Errors of the source itself.
    """
    source: OrganSource = source_class(name)(**options)
    return source
