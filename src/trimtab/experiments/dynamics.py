"""From what a tracker left in a run folder to the dynamics that reports show: points, layers, a few telling numbers."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trimtab.experiments.run_folder import RunFolder
from trimtab.experiments.summary import Dynamics, DynamicsFacts, LayerDynamics
from trimtab.observe import read_table

POINTS = 120
"""Most points of a curve in a summary [ours]: more than a figure of 1000 pixels can tell apart as blocks."""
GLOBAL = "(global)"

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


def _counts(values: Matrix, bins: Sequence[slice]) -> list[int]:
    return [int(np.nanmax(values[part], initial=0)) for part in bins]


def rank_correlation(values: Matrix) -> float | None:
    """Spearman's rank correlation of the finite values with their place; None for fewer than three or constant ones.

    Example:
        >>> rank_correlation(np.array([8.0, 4.0, 2.0, 1.0]))
        -1.0
    """
    from scipy.stats import spearmanr

    finite = values[np.isfinite(values)]
    if len(finite) < 3 or np.ptp(finite) == 0:
        return None
    return rounded(float(spearmanr(np.arange(len(finite)), finite).statistic))


def _ratio(updates: Tracked | None, weights: Tracked | None, steps: NDArray[np.int64]) -> tuple[Matrix, Matrix] | None:
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


def _signals(columns: Mapping[str, Any] | None, steps: NDArray[np.int64]) -> dict[str, Matrix]:
    found: dict[str, Matrix] = {}
    if columns is None:
        return found
    place = {int(step): at for at, step in enumerate(steps)}
    for step, name, value in zip(columns["step"], columns["name"], columns["value"], strict=True):
        if int(step) in place:
            found.setdefault(str(name), np.full(len(steps), np.nan))[place[int(step)]] = float(value)
    return found


def dynamics(
    columns: Mapping[str, Any],
    signal_columns: Mapping[str, Any] | None,
    *,
    method: str,
    seed: int,
) -> Dynamics | None:
    """A tracker's rows, drawn together; None when no gradients are among them.

    Args:
        columns: `GradientTracker.table()`, column by column.
        signal_columns: `signals_table()` in the same way, or None.
        method, seed: whose they are.
    """
    own = tracked(columns, "gradients")
    if own is None:
        return None
    steps, bins = own.steps, consecutive(len(own.steps))
    tenth = max(1, len(steps) // 10)
    std, together = own.values["std"], own.together["std"]
    dead = own.values["zeros"] >= own.values["n"]
    bad = np.nansum(np.stack([own.values["nan"], own.values["inf"]]), 0)
    ratio = _ratio(tracked(columns, "updates"), tracked(columns, "weights"), steps)
    signals = _signals(signal_columns, steps)
    alpha = next((values for name, values in signals.items() if name.rpartition(".")[2] == "alpha"), None)
    alive = np.where(np.isfinite(std) & (std > 0), std, np.nan)
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        spread = np.nanmax(alive, 0) / np.nanmin(alive, 0)
        log_std = np.log10(alive)
        first, last = median(together[:tenth]), median(together[-tenth:])
        fall = first / last if last > 0 else np.nan
    layers = [
        LayerDynamics(
            name=name,
            log10_std=joined(log_std[row], bins),
            first=rounded(float(median(std[row, :tenth]))),
            last=rounded(float(median(std[row, -tenth:]))),
            update_ratio=None if ratio is None else rounded(float(median(ratio[0][row]))),
            dead=round(float(dead[row].mean()), 4),
            non_finite=int(bad[row].sum()),
        )
        for row, name in enumerate(own.layers)
    ]
    return Dynamics(
        method=method,
        seed=seed,
        tracked=len(steps),
        steps=[int(steps[part][-1]) for part in bins],
        std=joined(together, bins),
        update_ratio=[] if ratio is None else joined(ratio[1], bins),
        dead=_counts(dead.sum(0).astype(np.float64), bins),
        non_finite=_counts(bad.sum(0), bins),
        signals={name: joined(values, bins) for name, values in signals.items()},
        layers=layers,
        facts=DynamicsFacts(
            heterogeneity=rounded(float(median(spread))),
            fall=rounded(float(fall)),
            trend=rank_correlation(together),
            update_ratio=None if ratio is None else rounded(float(median(ratio[1]))),
            alpha=None if alpha is None or not np.isfinite(alpha).any() else _ends(alpha),
            dead=sum(layer.dead >= 0.5 for layer in layers),
            non_finite=int(bad.sum()),
        ),
    )


def latest(columns: Mapping[str, Any], signal_columns: Mapping[str, Any] | None) -> Latest | None:
    """The last step among a tracker's rows; None when there are no gradients."""
    own = tracked(columns, "gradients")
    if own is None:
        return None
    std = own.values["std"][:, -1]
    alive = sorted((float(value), name) for value, name in zip(std, own.layers, strict=True) if value > 0)
    ratio = _ratio(tracked(columns, "updates"), tracked(columns, "weights"), own.steps)
    signals = {name: float(values[-1]) for name, values in _signals(signal_columns, own.steps).items()}
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


def _ends(values: Matrix) -> tuple[float, float]:
    finite = values[np.isfinite(values)]
    return float(f"{finite.min():.5g}"), float(f"{finite.max():.5g}")


def columns_of(table: Any) -> dict[str, NDArray[Any]]:
    """What `dynamics` reads of a tracker's table (pyarrow)."""
    return {name: table[name].to_numpy() for name in ("step", "layer", "kind", *COLUMNS)}


def run_dynamics(folder: RunFolder, method: str) -> Dynamics | None:
    """The dynamics of a run that was tracked, None of one that was not.

    Raises:
        ValueError: the tracker's files are damaged.
    """
    if not folder.gradients_folder.is_dir():
        return None
    signals = read_table(folder.signals_folder).to_pydict() if folder.signals_folder.is_dir() else None
    table = read_table(folder.gradients_folder)
    return dynamics(
        columns_of(table),
        signals,
        method=method,
        seed=folder.recipe.seed,
    )


def without_curves(found: Dynamics) -> Dynamics:
    """The same without the layers' curves, which a study keeps of the first seed only."""
    layers = [layer.model_copy(update={"log10_std": []}) for layer in found.layers]
    return found.model_copy(update={"layers": layers})


def in_words(found: Sequence[Dynamics]) -> str:
    """One sentence on the spread between layers and the global fall of these runs, as ranges over them.

    Raises:
        ValueError: no run.
    """
    if not found:
        raise ValueError("there is no tracked run to speak of")
    who = f"In {'this run' if len(found) == 1 else f'these {len(found)} runs'}"
    spreads = [run.facts.heterogeneity for run in found if run.facts.heterogeneity is not None]
    falls = [run.facts.fall for run in found if run.facts.fall is not None]
    trends = [run.facts.trend for run in found if run.facts.trend is not None]
    parts = []
    if spreads:
        parts.append(f"the standard deviations of the layers' gradients differ by a factor of {_between(spreads)}")
    if falls and trends:
        parts.append(
            f"the global one ends at {_between([100 / fall for fall in falls])} % of its beginning (rank correlation "
            f"with the step {_between(trends, 2)})"
        )
    bad = sum(run.facts.non_finite for run in found)
    parts.append(f"{bad:,} gradient entries were NaN or infinite" if bad else "every gradient was finite")
    return f"{who}, {'; '.join(parts)}."


def _between(values: Sequence[float], digits: int = 3) -> str:
    low, high = (f"{value:,.{digits}g}".replace("-", "\N{MINUS SIGN}") for value in (min(values), max(values)))
    return low if low == high else f"{low} to {high}"
