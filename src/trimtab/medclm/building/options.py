"""What a build is told."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from trimtab.medclm.planning import STAGES
from trimtab.medclm.records import Stage
from trimtab.medclm.rules import RuleName
from trimtab.medclm.splits import FRACTIONS


class BuildSettings(BaseModel):
    """What of a build is told alike in Python and on the command line, whose flags are made from these fields."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    detections: Path
    """Annotation file or folder."""
    images: Path
    """Folder of the images."""
    format: str = "coco"
    """Reader: coco, voc, yolo, vindr, nih, rsna, deeplesion, dicom, masks."""
    without_organs: Literal["keep", "reject"] = "keep"
    """Images whose masks cannot be had: keep them with unknown hosts, or reject them. Both are reported."""
    rule: RuleName = "inside_fraction"
    """How the host organ is decided."""
    split: Literal["patient", "source"] = "patient"
    """By hash of the patient, or as the source says."""
    fractions: tuple[float, float, float] = FRACTIONS
    """Train, validation, test of the split by patient."""
    stages: tuple[Stage, ...] = STAGES
    """Which stages to write."""
    balance: bool = True
    """Choose questions so that no answer is too common among its like."""
    cap: float = 0.6
    """Greatest share of one answer among the answers to questions of its like."""
    box_answers: bool = False
    """Write referring and detection rows as well: questions whose answer is boxes."""
    seed: int = 0
    """Chooses wordings and breaks ties."""
    embed: bool = True
    """Store image bytes in the Parquet files."""


class BuildOptions(BuildSettings):
    """What `build` does. A build goes on only with the same options."""

    reader: Mapping[str, Any] = {}
    """Options of the reader."""
    organs: tuple[tuple[str, Mapping[str, Any]], ...] = ()
    """(name, options) of the organ sources, see `organs.names`; none leaves hosts unknown."""
    preset: str = "general"
    """Hierarchy, allow-lists, sides and zones, see `rules.host_rules`."""
    allowed: Mapping[str, tuple[str, ...]] = {}
    """Organs that may hold a class, beside the allow-list of the preset."""
