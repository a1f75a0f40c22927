"""The two tables of a tracker: statistics by step, kind and layer, and signals by step and name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from trimtab.observe.quantities import COUNTS, OF_WEIGHTS, STATISTICS, derived
from trimtab.tables.rows import GLOBAL

if TYPE_CHECKING:
    import pyarrow as pa

KINDS = ("gradients", "weights", "updates")


def gradients_schema(small_format: str) -> pa.Schema:
    """step, layer, kind, n and every statistic; the metadata name the format of `subnormal`."""
    import pyarrow as pa

    columns = [("step", pa.int64()), ("layer", pa.string()), ("kind", pa.string()), ("n", pa.int64())]
    columns += [(name, pa.int64() if name in COUNTS else pa.float64()) for name in STATISTICS]
    return pa.schema(columns, metadata={"small_format": small_format})


def signals_schema() -> pa.Schema:
    """step, name, value."""
    import pyarrow as pa

    return pa.schema([("step", pa.int64()), ("name", pa.string()), ("value", pa.float64())])


def gradients_table(
    steps: Sequence[int],
    raw: Tensor,
    layers: Sequence[str],
    kinds: Sequence[str],
    statistics: Sequence[str],
    small_format: str,
) -> pa.Table:
    """Rows of all steps, kinds and layers, those of absent tensors left out.

    Args:
        steps: of each entry of `raw`.
        raw: shape (steps, kinds, layers, raw columns), on the CPU.
        layers, kinds: names along these dimensions.
        statistics: which columns to fill; the others are null.
        small_format: goes into the schema.
    """
    import pyarrow as pa

    schema = gradients_schema(small_format)
    if not steps:
        return schema.empty_table()
    names = [*layers, GLOBAL]
    shape = (len(steps), len(kinds), len(names))
    found = {name: np.empty(shape) for name in ("n", *STATISTICS)}
    for at in range(len(kinds)):
        for name, values in derived(raw[:, at]).items():
            found[name][:, at] = values.numpy()
    rows = np.flatnonzero(found["n"].reshape(-1) > 0)
    place = np.unravel_index(rows, shape)
    of_weights = np.asarray([kind == "weights" for kind in kinds])[place[1]]
    columns = {
        "step": pa.array(np.asarray(steps, dtype=np.int64)[place[0]]),
        "layer": pa.array(names, pa.string()).take(pa.array(place[2])),
        "kind": pa.array(list(kinds), pa.string()).take(pa.array(place[1])),
    }
    for name in ("n", *STATISTICS):
        entries = found[name].reshape(-1)[rows]
        absent = np.zeros(len(rows), dtype=bool)
        if name in STATISTICS and name not in statistics:
            absent[:] = True
        elif name in OF_WEIGHTS:
            absent = ~of_weights
        if name == "near_zero":
            absent = absent | np.isnan(entries)  # no root mean square to be near to
        if name in ("n", *COUNTS):
            columns[name] = pa.array(np.where(absent, 0, entries).astype(np.int64), mask=absent)
        else:
            columns[name] = pa.array(entries, mask=absent)
    return pa.table(columns, schema=schema)


def signals_table(steps: Sequence[int], values: Tensor, names: Sequence[str]) -> pa.Table:
    """One row per step and signal; `values` of shape (steps, signals)."""
    import pyarrow as pa

    if not steps:
        return signals_schema().empty_table()
    columns = {
        "step": pa.array(np.repeat(np.asarray(steps, dtype=np.int64), len(names))),
        "name": pa.array(list(names) * len(steps), pa.string()),
        "value": pa.array(values.reshape(-1).numpy()),
    }
    return pa.table(columns, schema=signals_schema())
