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


class BuildOptions(BaseModel):
    """What `build` does. A build goes on only with the same options.

    Attributes:
        detections: annotation file or folder.
        format: reader, see `readers.names`.
        images: folder the images lie in.
        reader: options of the reader.
        organs: (name, options) of the organ sources, see `organs.names`; none leaves hosts unknown.
        without_organs: "keep" images whose masks cannot be had, or "reject" them.
        preset, rule, allowed: host rules, see `rules.host_rules`.
        split: "patient" = by hash of the patient; "source" = as the source says.
        fractions: train, validation, test of the split by patient.
        stages, balance, cap, seed: see `planning.Planner`.
        embed: store the images' bytes in the Parquet files.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    detections: Path
    format: str
    images: Path
    reader: Mapping[str, Any] = {}
    organs: tuple[tuple[str, Mapping[str, Any]], ...] = ()
    without_organs: Literal["keep", "reject"] = "keep"
    preset: str = "general"
    rule: RuleName = "inside_fraction"
    allowed: Mapping[str, tuple[str, ...]] = {}
    split: Literal["patient", "source"] = "patient"
    fractions: tuple[float, float, float] = FRACTIONS
    stages: tuple[Stage, ...] = STAGES
    balance: bool = True
    cap: float = 0.6
    seed: int = 0
    embed: bool = True
