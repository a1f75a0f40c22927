"""Values of any range as grey levels of 8 bits."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Window = tuple[float, float]


def to_bytes(
    values: NDArray[np.float64], window: Window | None, seen: NDArray[np.bool_] | None = None
) -> NDArray[np.uint8]:
    """round(255 * (value - low) / (high - low)), cut to [0, 255]; low and high are the window, or the range of `seen` values.

    >>> import numpy as np
    >>> to_bytes(np.array([[-2000.0, 0.0, 100.0]]), None, np.array([[False, True, True]])).tolist()
    [[0, 0, 255]]
    """
    if window is None:
        finite = values[seen] if seen is not None else values
        finite = finite[np.isfinite(finite)]
        window = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    low, high = window
    scaled = (values - low) / max(high - low, np.finfo(np.float64).tiny)
    return np.round(np.clip(np.nan_to_num(scaled), 0.0, 1.0) * 255.0).astype(np.uint8)
