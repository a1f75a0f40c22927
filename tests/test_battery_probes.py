"""Levers that do not act in training by name: each computes what NumPy does."""

from __future__ import annotations

import numpy as np
import pytest

from tests.battery import PROBES, Probe, flat


@pytest.mark.parametrize("probe", PROBES, ids=str)
def test_equals_numpy_float64(probe: Probe) -> None:
    found, expected = map(flat, probe.compute())
    assert len(found) == len(expected) > 0
    for (place, value), (_, wanted) in zip(found, expected, strict=True):
        if isinstance(wanted, str):
            assert value == wanted, place
        else:
            np.testing.assert_allclose(value, wanted, rtol=1e-6, atol=1e-9, err_msg=place)
