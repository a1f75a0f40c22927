"""What rounding did to gradients, or to the products of layers and their operands: layer by layer, and early in a run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from pydantic import Field

from trimtab.precision.operands import KINDS, RESULTS
from trimtab.runs.tracked import Matrix, median, rounded, tracked
from trimtab.studies.documents import Record
from trimtab.tables.rows import GLOBAL

PARTS = ("scale_bias", "dead_zone", "grid_noise")
"""The parts of a squared error, which add up to it."""
WHOLE = (*RESULTS, "gradients")
"""Kinds that stand for a run: its products, or the gradients that it rounds."""
COLUMNS = ("projection", *PARTS, "oscillating", "loss_gap")
EARLY = 100
"""Steps from which a run's end is predicted [ours]."""


class ProductError(Record):
    """One product of one layer, one operand of it, or its rounded gradient; medians over the metered steps."""

    kind: str = Field(description="fprop, dgrad, wgrad: the product itself, with a second word the operand; gradients")
    layer: str = Field(description="(global): all layers together")
    q: float | None = Field(description="projection of the rounded on the exact one")
    scale_bias: float | None = Field(
        description="of the squared error over the squared norm, as the next two; they add up"
    )
    dead_zone: float | None
    grid_noise: float | None
    oscillating: float | None = Field(description="share of the weights that go back and forth; null where not watched")
    loss_gap: float | None = Field(
        description="by how much the layer's rounding raises the loss, to first order; of fprop"
    )

    @property
    def error(self) -> float | None:
        """The squared error over the squared norm."""
        parts = [getattr(self, name) for name in PARTS]
        return None if None in parts else sum(parts)


def _middle(values: Matrix) -> float | None:
    return rounded(float(median(values))) if np.isfinite(values).any() else None


def product_errors(columns: Mapping[str, Any]) -> list[ProductError]:
    """A meter's rows on products, operands and gradients, by kind and layer, all layers together last of each kind.

    Args:
        columns: `ShrinkageMeter.table()`, column by column.
    """
    if not set(COLUMNS) <= columns.keys():
        return []  # rows of earlier versions
    found = []
    for kind in (*WHOLE, *KINDS.values()):
        own = tracked(columns, kind, COLUMNS)
        if own is None:
            continue
        rows = [(name, {column: own.values[column][row] for column in COLUMNS}) for row, name in enumerate(own.layers)]
        for layer, values in [*rows, (GLOBAL, own.together)]:
            numbers = {column: _middle(values[column]) for column in COLUMNS}
            found.append(ProductError(kind=kind, layer=layer, q=numbers.pop("projection"), **numbers))
    return found


def early(columns: Mapping[str, Any], before: int = EARLY) -> tuple[float | None, float | None]:
    """Medians over the metered steps up to `before`: the predicted gap of the loss, and the products' squared error.

    The error is the mean over fprop, dgrad and wgrad of the squared error over the squared norm, all layers together; that of
    the gradients where they are what is rounded.
    """
    if not set(COLUMNS) <= columns.keys():
        return None, None
    gap: float | None = None
    errors = []
    for kind in WHOLE:
        own = tracked(columns, kind, (*PARTS, "loss_gap"))
        if own is None:
            continue
        at = own.steps <= before
        if kind == "fprop":
            gap = _middle(own.together["loss_gap"][at])
        errors.append(_middle(np.sum([own.together[part][at] for part in PARTS], axis=0)))
    known = [error for error in errors if error is not None]
    return gap, rounded(float(np.mean(known))) if known else None
