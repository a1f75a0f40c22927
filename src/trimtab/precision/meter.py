"""ShrinkageMeter: what rounding did to every layer, step by step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from trimtab.precision.format import Format, named
from trimtab.precision.scaling import Scaling
from trimtab.precision.shrinkage import SUMS, Measured, Shrinkage, shrinkage, shrinkage_sums

if TYPE_CHECKING:
    import pyarrow as pa

GLOBAL = "(global)"


class ShrinkageMeter:
    """Projection q, norm ratio, noise, cosine, dead and overflowing entries of rounded tensors, per layer and together.

    Give it to the lever, `LowPrecision("e4m3", meter=ShrinkageMeter(every=10))`, or hand over pairs of tensors yourself with
    `observe`. `Shrinkage` has the formulas. Numbers stay on the device until `flush`, which synchronises once.

    Args:
        every: which steps are measured, counted from 0: every so-many, or a function of the step. Default 10 [ours].
        capacity: steps kept on the device before a flush comes by itself. Default 256 [ours]: of 100 layers less than
            2 MB.

    Raises:
        ValueError: `every` or `capacity` is not positive.

    Example:
        >>> meter = ShrinkageMeter()
        >>> meter.observe(0, {"layer": (torch.tensor([3.0, 4.0]), torch.tensor([0.0, 4.0]))})
        >>> [(row["layer"], row["projection"], row["dead"]) for row in meter.rows()]
        [('layer', 0.64, 0.5), ('(global)', 0.64, 0.5)]
    """

    def __init__(self, every: int | Callable[[int], bool] = 10, capacity: int = 256) -> None:
        if not callable(every):
            _positive("every", every)
        self.every, self.capacity = every, _positive("capacity", capacity)
        self._waiting: list[tuple[str, Measured]] = []
        self._done: list[tuple[str, Measured]] = []

    def due(self, step: int) -> bool:
        """Whether `step` is measured."""
        return bool(self.every(step)) if callable(self.every) else step % self.every == 0

    def observe(
        self,
        step: int,
        pairs: Mapping[str, tuple[Tensor, Tensor]],
        format: str | Format | None = None,
        scaling: Scaling | None = None,
        kind: str = "gradients",
    ) -> None:
        """Measure pairs (original, rounded) by name, whether `step` is due or not.

        Args:
            step: number of the step.
            pairs: tensors of one shape each, on one device.
            format, scaling: to which the tensors were rounded; None counts no overflow.
            kind: what they are.
        """
        known = None if format is None else named(format)
        sums = [shrinkage_sums(original, rounded, known, scaling) for original, rounded in pairs.values()]
        if sums:
            self.record(kind, Measured(step, list(pairs), torch.stack(sums)))

    def record(self, kind: str, measured: Measured) -> None:
        """Keep the sums of one step; called by `LowPrecision`."""
        self._waiting.append((kind, measured))
        if len(self._waiting) >= self.capacity:
            self.flush()

    def flush(self) -> None:
        """Bring what waits to the host, with one synchronisation for each device."""
        by_device: dict[torch.device, list[Tensor]] = {}
        for _, measured in self._waiting:
            by_device.setdefault(measured.sums.device, []).append(measured.sums)
        on_host = {}
        for device, sums in by_device.items():
            on_host[device] = iter(torch.split(torch.cat(sums).cpu(), [len(part) for part in sums]))
        self._done += [(kind, each._replace(sums=next(on_host[each.sums.device]))) for kind, each in self._waiting]
        self._waiting = []

    def columns(self) -> dict[str, list[Any]]:
        """The table column by column: step, layer, kind, then the fields of `Shrinkage`; flushes.

        One row for each step, layer and kind, and one of layer "(global)" for all layers together.
        """
        self.flush()
        table: dict[str, list[Any]] = {name: [] for name in ("step", "layer", "kind", *Shrinkage._fields)}
        for kind, measured in self._done:
            names = [*measured.names, GLOBAL]
            table["step"] += [measured.step] * len(names)
            table["layer"] += names
            table["kind"] += [kind] * len(names)
            for field, values in shrinkage(torch.cat([measured.sums, measured.together[None]]))._asdict().items():
                table[field] += map(int, values.tolist()) if field in ("n", "nan", "inf") else values.tolist()
        return table

    def rows(self) -> list[dict[str, Any]]:
        """The table as one dict for each row."""
        table = self.columns()
        return [dict(zip(table, row, strict=True)) for row in zip(*table.values(), strict=True)]

    def table(self) -> pa.Table:
        """The table for Arrow and Parquet; needs pyarrow."""
        import pyarrow as pa

        types = {"step": pa.int64(), "layer": pa.string(), "kind": pa.string()}
        types |= {name: pa.int64() for name in ("n", "nan", "inf")}
        schema = pa.schema(
            [(name, types.get(name, pa.float64())) for name in ("step", "layer", "kind", *Shrinkage._fields)]
        )
        return pa.table(self.columns(), schema=schema)

    def to_pandas(self) -> Any:
        """The table as a `pandas.DataFrame`; needs pandas."""
        return self.table().to_pandas()

    def state_dict(self) -> dict[str, Any]:
        """Everything measured so far; flushes."""
        self.flush()
        return {
            "measured": [
                {"kind": kind, "step": each.step, "names": list(each.names), "sums": each.sums}
                for kind, each in self._done
            ]
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from saved measurements; what this meter held is dropped. ValueError when they are not a meter's."""
        if "measured" not in state or any(each["sums"].shape[-1] != len(SUMS) for each in state["measured"]):
            raise ValueError(f"the saved state, with {sorted(state)}, is not a ShrinkageMeter's")
        self._waiting = []
        self._done = [
            (each["kind"], Measured(each["step"], each["names"], each["sums"].clone())) for each in state["measured"]
        ]

    def __repr__(self) -> str:
        return f"ShrinkageMeter(every={self.every!r}, capacity={self.capacity})"


def _positive(name: str, value: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} must be a whole number of 1 or more, got {value!r}")
    return value
