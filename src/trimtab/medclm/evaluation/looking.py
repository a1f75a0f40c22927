"""Does the model look? One sentence from an evaluation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

RULE = "closed.1"


def verdict(summary: Mapping[str, Any]) -> str:
    """Whether the model answers closed questions better than the majority guess and than itself with others' pictures.

    It looks if it beats both, and the 95 % interval of its own minus others' pictures, drawn by patient, lies above zero.

    Args:
        summary: of an `Evaluation`.
    """
    values = {
        system: row
        for system, one in summary["systems"].items()
        for row in one["rows"]
        if (row["group"], row["rule"]) == ("all", RULE)
    }
    gain = next((row for row in summary["looking"]["text only"] if (row["group"], row["rule"]) == ("all", RULE)), None)
    if gain is None:
        return "There are no closed questions: whether the model looks is not known."
    own, others = values["model"]["value"], values["text only"]["value"]
    majority = values["majority"]["value"] if "majority" in values else None
    sure = gain["low"] is not None and gain["low"] > 0
    looks = sure and own > others and (majority is None or own > majority)
    said = "The model looks" if looks else "The model is not shown to look"
    bounds = "" if gain["low"] is None else f" ({100 * gain['low']:.0f} to {100 * gain['high']:.0f})"
    guess = "" if majority is None else f", {100 * majority:.1f} % by the majority guess"
    return (
        f"{said}: {100 * own:.1f} % of {values['model']['n']:,} closed questions right, {100 * others:.1f} % with images of "
        f"other patients{guess}; its own minus others' {100 * gain['value']:+.1f} points{bounds}."
    )
