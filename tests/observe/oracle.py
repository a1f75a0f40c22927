"""A tracker's statistics written out in NumPy float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

EXACT = ("n", "max_abs", "zeros", "nan", "inf", "subnormal")


def expected(tensor: Tensor, smallest_normal: float = 2.0**-14, *, weights: bool = False) -> dict[str, float]:
    values = tensor.detach().double().cpu().numpy().reshape(-1)
    magnitudes = np.abs(values)
    with np.errstate(all="ignore"):
        found = {
            "n": values.size,
            "mean": values.mean(),
            "variance": values.var(),
            "std": values.std(),
            "norm": np.sqrt(np.square(values).sum()),
            "max_abs": magnitudes.max(),
            "zeros": (values == 0).sum(),
            "nan": np.isnan(values).sum(),
            "inf": np.isinf(values).sum(),
            "subnormal": ((magnitudes > 0) & (magnitudes < smallest_normal)).sum(),
        }
        if weights:
            found["magnitude_variance"] = magnitudes.var()
            found["near_zero"] = (magnitudes < 0.1 * np.sqrt(np.square(values).mean())).sum()
    return {name: float(value) for name, value in found.items()}


def assert_row(row: dict[str, object], tensor: Tensor, rel: float = 1e-5, *, weights: bool = False) -> None:
    want = expected(tensor, weights=weights)
    if not torch.isfinite(tensor).all():  # a tensor that is not finite has none of these
        want |= dict.fromkeys(("mean", "variance", "std", "norm"), float("nan"))
    scale = want["std"] + abs(want["mean"])
    for name, value in want.items():
        found = row[name]
        if name in EXACT or name == "near_zero":
            assert found == pytest.approx(value, rel=1e-7, nan_ok=True), name
        elif name == "mean":
            assert found == pytest.approx(value, abs=rel * scale, nan_ok=True), name
        else:
            assert found == pytest.approx(value, rel=rel, abs=1e-60, nan_ok=True), name
