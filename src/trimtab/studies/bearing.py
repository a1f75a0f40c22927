"""What a run's network could bear over its epochs, and whether that fell with the learning rate."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from trimtab.runs.metric import Metric
from trimtab.runs.run_folder import RunFolder
from trimtab.studies.documents import finite
from trimtab.studies.statistics import Estimate, estimate
from trimtab.studies.summary import BearingTrack

SPARSITY, BITS = "bearing_sparsity_", "bearing_bits_"


def run_bearing(folder: RunFolder, method: str) -> BearingTrack | None:
    """What a run could bear over its epochs; None of one that was not tracked."""
    rows = [row for row in folder.metrics() if "bearing_dense" in row]
    if not rows:
        return None

    def under(prefix: str) -> dict[str, list[float | None]]:
        names = [name for name in rows[-1] if name.startswith(prefix)]
        return {name.removeprefix(prefix): [finite(row.get(name)) for row in rows] for name in names}

    return BearingTrack(
        method=method,
        seed=folder.recipe.seed,
        images=rows[-1]["bearing_images"],
        epochs=[row["epoch"] for row in rows],
        learning_rates=[row["lr"] for row in rows],
        dense=[finite(row["bearing_dense"]) for row in rows],
        sparsities=under(SPARSITY),
        bits=under(BITS),
        critical=[finite(row.get("critical_learning_rate")) for row in rows],
        critical_open=[int(row.get("critical_learning_rate_open", 0)) for row in rows],
        cost=folder.info().get("bearing", {}).get("cost"),
    )


@dataclass(frozen=True)
class Fall:
    """How what a state costs changed from where the learning rate was highest to the end, over the seeds of a method.

    Attributes:
        method: its label.
        state: "80 %" or "4 bits".
        early: quality that the state loses against dense at the point of the highest learning rate; positive is a loss.
        late: the same at the last point.
        change: late minus early, paired over seeds: above zero the network bears less at the end.
    """

    method: str
    state: str
    early: float
    late: float
    change: Estimate


def lost(track: BearingTrack, values: Sequence[float | None], metric: Metric) -> list[float | None]:
    """Per point: how much worse than dense; positive is a loss."""
    return [
        None if one is None or dense is None else -metric.gain(one - dense)
        for one, dense in zip(values, track.dense, strict=True)
    ]


def states_of(track: BearingTrack) -> dict[str, list[float | None]]:
    """Every state by its name in words."""
    pruned = {f"{100 * float(name):g} %": values for name, values in track.sparsities.items()}
    return pruned | {f"{name} bits": values for name, values in track.bits.items()}


def falls(tracks: Sequence[BearingTrack], metric: Metric) -> list[Fall]:
    """For each method and state, whether the decay of the learning rate lowered what the network bears (arXiv 2510.06213).

    The first point counts that has the highest learning rate of those measured. Runs whose point of highest rate is their last
    say nothing and are left out, as are those with a number that is not finite.

    Args:
        tracks: of the runs of a study.
        metric: what their quality is.
    """
    found: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for track in tracks:
        rates = track.learning_rates[: len(track.epochs)]
        start = rates.index(max(rates))
        for state, values in states_of(track).items():
            own = lost(track, values, metric)
            early, late = own[start], own[-1]
            if start < len(own) - 1 and early is not None and late is not None:
                found.setdefault((track.method, state), []).append((early, late))
    return [
        Fall(
            method, state, math.fsum(early for early, _ in pairs) / len(pairs),
            math.fsum(late for _, late in pairs) / len(pairs), estimate(late - early for early, late in pairs),
        )
        for (method, state), pairs in found.items()
    ]  # fmt: skip
