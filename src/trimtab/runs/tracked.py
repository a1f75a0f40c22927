"""The rows of a tracked run as matrices, and the last step among them."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trimtab.tables.rows import GLOBAL

POINTS = 120
"""Most points of a curve in a summary [ours]: more than a figure of 1000 pixels can tell apart as blocks."""


Matrix = NDArray[np.float64]


@dataclass(frozen=True)
class Tracked:
    """A tracker's rows of one kind as matrices, NaN where there is no row.

    Attributes:
        steps: (S,) ascending.
        layers: (L,) in the network's order.
        values: per column a matrix (L, S).
        together: per column the values (S,) of all layers together.
    """

    steps: NDArray[np.int64]
    layers: list[str]
    values: dict[str, Matrix]
    together: dict[str, Matrix]


@dataclass(frozen=True)
class Latest:
    """Gradients at one step, for a display while training goes on.

    Attributes:
        step: counted from 0.
        std: standard deviation of all tracked gradients together; NaN where one is not finite.
        largest, smallest: (name, standard deviation) of the layers at the ends; None where all are dead or not finite.
        dead: layers whose gradient is zero everywhere.
        non_finite: entries that are NaN or infinite.
        update_ratio: norm of the update over norm of the weights; None where not tracked.
        signals: what the transforms reported.
    """

    step: int
    std: float
    largest: tuple[str, float] | None
    smallest: tuple[str, float] | None
    dead: int
    non_finite: int
    update_ratio: float | None
    signals: dict[str, float]


COLUMNS = ("n", "std", "norm", "zeros", "nan", "inf")


def tracked(columns: Mapping[str, Any], kind: str, wanted: Sequence[str] = COLUMNS) -> Tracked | None:
    """The rows of `kind` ("gradients", "weights", "updates") as matrices; None when there are none.

    Args:
        columns: a tracker's or a meter's table, column by column.
        kind: which rows.
        wanted: which columns become matrices.
    """
    kinds = np.asarray(columns["kind"], dtype=object)
    own = np.flatnonzero(kinds == kind)
    if not len(own):
        return None
    names = np.asarray(columns["layer"], dtype=object)[own]
    steps, at = np.unique(np.asarray(columns["step"], dtype=np.int64)[own], return_inverse=True)
    order = list(dict.fromkeys(names.tolist()))
    place = {name: row for row, name in enumerate(order)}
    rows = np.array([place[name] for name in names.tolist()])
    whole = {}
    for column in wanted:
        matrix = np.full((len(order), len(steps)), np.nan)
        matrix[rows, at] = np.asarray(columns[column], dtype=np.float64)[own]
        whole[column] = matrix
    layers = [name for name in order if name != GLOBAL]
    kept = [place[name] for name in layers]
    return Tracked(
        steps,
        layers,
        {column: matrix[kept] for column, matrix in whole.items()},
        {column: matrix[place[GLOBAL]] for column, matrix in whole.items()},
    )


def median(values: Matrix, axis: int | None = None) -> Any:
    """Median of the finite values; NaN where there is none."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a slice without a finite value
        return np.nanmedian(np.where(np.isfinite(values), values, np.nan), axis=axis)


def rounded(value: float, digits: int = 5) -> float | None:
    """`value` to so many significant digits; None where it is not finite."""
    return float(f"{value:.{digits}g}") if np.isfinite(value) else None


def consecutive(count: int) -> list[slice]:
    """Consecutive, equally long up to one, at most `POINTS` of them.

    Example:
        >>> [part.stop for part in consecutive(3)]
        [1, 2, 3]
    """
    edges = np.linspace(0, count, min(count, POINTS) + 1).round().astype(int)
    return [slice(int(low), int(high)) for low, high in itertools.pairwise(edges)]


def joined(values: Matrix, bins: Sequence[slice], join: Callable[[Matrix], float] = median) -> list[float | None]:
    """One number for each bin."""
    return [rounded(float(join(values[part]))) for part in bins]


def update_ratios(
    updates: Tracked | None, weights: Tracked | None, steps: NDArray[np.int64]
) -> tuple[Matrix, Matrix] | None:
    """Norm of the update over norm of the weights, by layer and of all together, at `steps`; None where not tracked."""
    if updates is None or weights is None:
        return None
    place = {name: row for row, name in enumerate(weights.layers)}
    rows = [place[name] for name in updates.layers if name in place]
    common, one, other = np.intersect1d(updates.steps, weights.steps, return_indices=True)
    kept, there, here = np.intersect1d(common, steps, return_indices=True)
    if not len(kept) or len(rows) < len(updates.layers):
        return None
    one, other = one[there], other[there]
    with np.errstate(divide="ignore", invalid="ignore"):
        layers = np.full((len(updates.layers), len(steps)), np.nan)
        layers[:, here] = updates.values["norm"][:, one] / weights.values["norm"][rows][:, other]
        together = np.full(len(steps), np.nan)
        together[here] = updates.together["norm"][one] / weights.together["norm"][other]
    return layers, together


def signals_at(columns: Mapping[str, Any] | None, steps: NDArray[np.int64]) -> dict[str, Matrix]:
    """The signals of levers at `steps`, by name; NaN where one was not reported."""
    found: dict[str, Matrix] = {}
    if columns is None:
        return found
    place = {int(step): at for at, step in enumerate(steps)}
    for step, name, value in zip(columns["step"], columns["name"], columns["value"], strict=True):
        if int(step) in place:
            found.setdefault(str(name), np.full(len(steps), np.nan))[place[int(step)]] = float(value)
    return found


def latest(columns: Mapping[str, Any], signal_columns: Mapping[str, Any] | None) -> Latest | None:
    """The last step among a tracker's rows; None when there are no gradients."""
    own = tracked(columns, "gradients")
    if own is None:
        return None
    std = own.values["std"][:, -1]
    alive = sorted((float(value), name) for value, name in zip(std, own.layers, strict=True) if value > 0)
    ratio = update_ratios(tracked(columns, "updates"), tracked(columns, "weights"), own.steps)
    signals = {name: float(values[-1]) for name, values in signals_at(signal_columns, own.steps).items()}
    return Latest(
        step=int(own.steps[-1]),
        std=float(own.together["std"][-1]),
        largest=alive[-1][::-1] if alive else None,
        smallest=alive[0][::-1] if alive else None,
        dead=int((own.values["zeros"][:, -1] >= own.values["n"][:, -1]).sum()),
        non_finite=int(own.together["nan"][-1] + own.together["inf"][-1]),
        update_ratio=None if ratio is None else float(ratio[1][-1]),
        signals=signals,
    )


def columns_of(table: Any) -> dict[str, NDArray[Any]]:
    """What `dynamics` reads of a tracker's table (pyarrow)."""
    return {name: table[name].to_numpy() for name in ("step", "layer", "kind", *COLUMNS)}
