"""The curvature of a run over its epochs."""

from __future__ import annotations

from collections.abc import Sequence

from trimtab.runs.run_folder import RunFolder
from trimtab.studies.summary import CurvatureTrack

DECAY = 0.9


def moving_average(values: Sequence[float], decay: float = DECAY) -> list[float]:
    """Exponential moving average: `m_1 = x_1`, `m_t = decay m_(t-1) + (1 - decay) x_t` [decay ours].

    Example:
        >>> moving_average([1.0, 0.0], decay=0.5)
        [1.0, 0.5]
    """
    found: list[float] = []
    for value in values:
        found.append(value if not found else decay * found[-1] + (1 - decay) * value)
    return found


def run_track(folder: RunFolder, method: str) -> CurvatureTrack | None:
    """The curvature of a run over its epochs; None of one that was not tracked."""
    rows = [row for row in folder.metrics() if "top_eigenvalue" in row]
    if not rows:
        return None
    return CurvatureTrack(
        method=method,
        seed=folder.recipe.seed,
        batch=rows[-1]["curvature_batch"],
        epochs=[row["epoch"] for row in rows],
        eigenvalues=[row["top_eigenvalue"] for row in rows],
        residuals=[row["top_eigenvalue_residual"] for row in rows],
        sharpness=[row["sharpness"] for row in rows],
    )
