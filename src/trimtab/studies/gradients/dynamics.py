"""From what a tracker left in a run folder to the dynamics that reports show: points, layers, a few telling numbers."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from trimtab.observe import read_table
from trimtab.runs.run_folder import RunFolder
from trimtab.runs.tracked import (
    Matrix,
    columns_of,
    consecutive,
    joined,
    median,
    rounded,
    signals_at,
    tracked,
    update_ratios,
)
from trimtab.studies.statistics import spearman
from trimtab.studies.summary import AlarmRow, Dynamics, DynamicsFacts, LayerDynamics


def _counts(values: Matrix, bins: Sequence[slice]) -> list[int]:
    return [int(np.nanmax(values[part], initial=0)) for part in bins]


def rank_correlation(values: Matrix) -> float | None:
    """Spearman's rank correlation of the finite values with their place; None for fewer than three or constant ones.

    Example:
        >>> rank_correlation(np.array([8.0, 4.0, 2.0, 1.0]))
        -1.0
    """
    finite = values[np.isfinite(values)]
    found = spearman(range(len(finite)), finite.tolist())
    return None if found is None else rounded(found)


def dynamics(
    columns: Mapping[str, Any],
    signal_columns: Mapping[str, Any] | None,
    *,
    method: str,
    seed: int,
    alarms: Sequence[Mapping[str, Any]] = (),
) -> Dynamics | None:
    """A tracker's rows, drawn together; None when no gradients are among them.

    Args:
        columns: `GradientTracker.table()`, column by column.
        signal_columns: `signals_table()` in the same way, or None.
        method, seed: whose they are.
        alarms: rows of `alarms.jsonl`.
    """
    own = tracked(columns, "gradients")
    if own is None:
        return None
    steps, bins = own.steps, consecutive(len(own.steps))
    tenth = max(1, len(steps) // 10)
    std, together = own.values["std"], own.together["std"]
    dead = own.values["zeros"] >= own.values["n"]
    bad = np.nansum(np.stack([own.values["nan"], own.values["inf"]]), 0)
    ratio = update_ratios(tracked(columns, "updates"), tracked(columns, "weights"), steps)
    signals = signals_at(signal_columns, steps)
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
        alarms=[AlarmRow(**{name: row[name] for name in ("step", "kind", "action", "text")}) for row in alarms],
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


def _ends(values: Matrix) -> tuple[float, float]:
    finite = values[np.isfinite(values)]
    return float(f"{finite.min():.5g}"), float(f"{finite.max():.5g}")


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
        alarms=folder.alarms(),
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
