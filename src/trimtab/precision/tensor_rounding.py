"""What `LowPrecision` does to one tensor after another: round it, with numbers drawn for it alone, and measure that."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from trimtab.checks import whole
from trimtab.collectives import is_sharded, local_part, sum_over_ranks, sum_over_shards
from trimtab.parameters import Entry, no_axis
from trimtab.precision.delayed import Delayed
from trimtab.precision.format import Format, named
from trimtab.precision.meter import ShrinkageMeter
from trimtab.precision.quantize import OverflowPolicy, quantize
from trimtab.precision.randomness import Generators, shard_of
from trimtab.precision.rounding import Rounding
from trimtab.precision.scaling import PerChannel, Scaling
from trimtab.precision.shrinkage import SUMS, Measured, shrinkage_sums


class TensorRounding:
    """Formats by kind of tensor, the one way of rounding, and the number of the step.

    Args:
        formats: of "gradients", "weights", "momentum", "forward" and "backward", None where nothing is rounded.
        rounding, overflow, scaling: as for `quantize`.
        seed: of stochastic rounding.
        meter: measures gradients, weights and momentum where given.
    """

    def __init__(
        self,
        formats: Mapping[str, str | Format | None],
        rounding: Rounding,
        overflow: OverflowPolicy,
        scaling: Scaling | None,
        seed: int,
        meter: ShrinkageMeter | None,
    ) -> None:
        self.formats = {kind: named(each) for kind, each in formats.items() if each is not None}
        for each in self.formats.values():  # bad settings are refused here, not in the first step
            quantize(torch.empty(0, dtype=torch.float64), each, rounding, overflow, scaling)
        if isinstance(scaling, Delayed):
            raise ValueError(
                f"{scaling!r} remembers one tensor; LowPrecision rounds many: use it in `quantize`, one for each"
            )
        if meter is not None and not isinstance(meter, ShrinkageMeter):
            raise TypeError(f"meter must be a ShrinkageMeter or None, got {meter!r}")
        self.rounding, self.overflow, self.scaling = rounding, overflow, scaling
        self.seed, self.meter = whole("seed", seed), meter
        self.step = 0
        self.found: dict[str, Measured] = {}
        self.measure_every: list[int] = []
        self._random = Generators(seed)
        self._calls: dict[tuple[object, ...], int] = {}
        self._own_sums: dict[str, Tensor] = {}

    def go_to(self, step: int) -> None:
        """Begin a step."""
        self.step = step
        self._calls.clear()
        self._own_sums = {}

    def end_step(self) -> None:
        """Hand what was measured in this step to the meter, and begin the next."""
        if self.meter is not None and self.meters_now:
            self.meter.record(self._of_this_step())
        self.go_to(self.step + 1)

    def _of_this_step(self) -> dict[str, Measured]:
        return {kind: measured for kind, measured in self.found.items() if measured.step == self.step}

    @property
    def meters_now(self) -> bool:
        """Whether the meter wants this step."""
        return self.meter is not None and self.meter.due(self.step)

    def keep(self, found: Mapping[str, Measured]) -> None:
        """What others measured in this step, by kind."""
        self.found |= found

    def check(self, entry: Entry) -> None:
        """ValueError where a format does not fit the dtype, a scaling the shape, or shards would be scaled apart."""
        for kind in ("gradients", "weights", "momentum"):
            format = self.formats.get(kind)
            if format is not None and not format.fits(entry.parameter.dtype):
                raise ValueError(f"{kind}={format.name!r} does not fit into {entry.parameter.dtype} of {entry.name}")
        if self.scaling is not None:
            try:
                self.scaling.lines(torch.empty(entry.parameter.shape, device="meta"))
            except ValueError as error:
                raise ValueError(
                    f"{entry.name}, under {self.scaling!r}: {error}, or leave it out by the rule"
                ) from error
        if self.scaling is not None and is_sharded(entry.parameter):
            raise ValueError(
                f"{entry.name} is sharded over ranks, and {self.scaling!r} would scale each shard by itself; use scaling=None"
            )

    def reason_against(self, entry: Entry) -> str | None:
        """Why the scaling cannot take the entry: a scale for each channel, and no known channels. None where it can."""
        return no_axis(entry) if isinstance(self.scaling, PerChannel) and self.scaling.dim is None else None

    def scaling_of(self, entry: Entry) -> Scaling | None:
        """The scaling of the entry's tensors, channels as its owner tells them."""
        return self.scaling.of(entry) if isinstance(self.scaling, PerChannel) else self.scaling

    def quantize(
        self, tensor: Tensor, kind: str, name: str, *key: object, out: Tensor | None = None, entry: Entry | None = None
    ) -> Tensor:
        """The tensor in the format of its kind, drawing numbers that depend on the seed, the step and the rest."""
        generator = None
        drawn = self.rounding == "stochastic" or (self.scaling is not None and self.scaling.random)
        if drawn and tensor.numel():
            generator = self.generator(tensor.device, kind, name, *key)
        try:
            scaling = self.scaling if entry is None else self.scaling_of(entry)
            return quantize(tensor, self.formats[kind], self.rounding, self.overflow, scaling, generator, out)
        except ValueError as error:
            raise ValueError(f"{kind} of {name} in step {self.step}: {error}") from error

    def quantize_anew(
        self, tensor: Tensor, kind: str, name: str, *key: object, out: Tensor | None = None, entry: Entry | None = None
    ) -> Tensor:
        """The same for what comes several times in a step: each time with other numbers."""
        return self.quantize(tensor, kind, name, *key, self.call(kind, name, *key), out=out, entry=entry)

    def generator(self, device: torch.device, *key: object) -> torch.Generator:
        """Random numbers that depend on the seed, the step and the key."""
        return self._random.begin(device, self.step, *key)

    def generator_anew(self, device: torch.device, *key: object) -> torch.Generator:
        """The same for what comes several times in a step: each time other numbers."""
        return self.generator(device, *key, self.call(*key))

    def call(self, *key: object) -> int:
        """How often this key came in this step before."""
        self._calls[key] = self._calls.get(key, -1) + 1
        return self._calls[key]

    def round_(self, kind: str, tensors: Sequence[tuple[Entry, Tensor]], label: str | None = None) -> None:
        """Round these tensors of entries in place, measuring what it does to them when the step is due.

        Args:
            kind: tells the format.
            tensors: what to round, and whose it is.
            label: what the meter calls them. Default the kind.
        """
        label = kind if label is None else label
        due = self._due(kind)
        rows = []
        for entry, given in tensors:
            tensor = local_part(given)
            original = tensor.clone() if due else None
            self.quantize(tensor, kind, entry.name, label, *shard_of(entry.parameter), out=tensor, entry=entry)
            if original is not None:
                rows.append(shrinkage_sums(original, tensor, self.formats[kind], self.scaling_of(entry)))
        if rows:
            chosen = [entry for entry, _ in tensors]
            sums = torch.stack([row.to(rows[0].device) for row in rows])
            self._keep(label, chosen, sum_over_shards(sums, [entry.parameter for entry in chosen]))

    def round_own_gradient_(self, entry: Entry, gradient: Tensor, rank: int) -> None:
        """Round this rank's gradient before the reduction, in place; its sums wait for `keep_own_sums`."""
        original = gradient.clone() if self._due("gradients") else None
        self.quantize_anew(gradient, "gradients", entry.name, rank, out=gradient, entry=entry)
        if original is not None:
            scaling = self.scaling_of(entry)
            self._own_sums[entry.name] = shrinkage_sums(original, gradient, self.formats["gradients"], scaling)

    def keep_own_sums(self, chosen: Sequence[Entry]) -> None:
        """Add up what the ranks measured before the reduction; every rank calls this in the same steps."""
        if not chosen or not self._due("gradients"):
            return
        device = local_part(chosen[0].parameter).device
        blank = torch.zeros(len(SUMS), dtype=torch.float64, device=device)
        sums = torch.stack([self._own_sums.get(entry.name, blank).to(device) for entry in chosen])
        self._keep("gradients", chosen, sum_over_ranks(sums))

    def _due(self, kind: str) -> bool:
        if self.meters_now:
            return True
        return kind == "gradients" and any(self.step % every == 0 for every in self.measure_every)

    def _keep(self, label: str, chosen: Sequence[Entry], sums: Tensor) -> None:
        self.found[label] = Measured(self.step, [entry.name for entry in chosen], sums)

    def settings(self) -> dict[str, Any]:
        """What changes the result."""
        return {
            "formats": {kind: repr(format) for kind, format in self.formats.items()},
            "rounding": self.rounding,
            "overflow": self.overflow,
            "scaling": repr(self.scaling),
            "seed": self.seed,
        }

    def in_words(self) -> list[str]:
        """The settings that are not defaults, for a repr."""
        parts = [f"{kind}={format.name}" for kind, format in self.formats.items()]
        parts.append(f"rounding={self.rounding}")
        parts += [] if self.overflow == "saturate" else [f"overflow={self.overflow}"]
        return parts + ([] if self.scaling is None else [f"scaling={self.scaling!r}"])

    def state_dict(self) -> dict[str, Any]:
        """Number of the step, and what came in it already: calls by tensor, sums of the weights."""
        return {
            "step": self.step,
            "calls": [[*call, count] for call, count in self._calls.items()],
            "found": {
                kind: {"names": list(found.names), "sums": found.sums} for kind, found in self._of_this_step().items()
            },
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with that step."""
        self.go_to(int(state["step"]))
        self._calls = {tuple(call): int(count) for *call, count in state["calls"]}
        self.found = {
            kind: Measured(self.step, found["names"], found["sums"].clone()) for kind, found in state["found"].items()
        }


def dense_gradients(chosen: Sequence[Entry]) -> list[tuple[Entry, Tensor]]:
    """The entries that have a gradient, with it; TypeError where it is sparse."""
    found = []
    for entry in chosen:
        gradient = entry.parameter.grad
        if gradient is None:
            continue
        if gradient.layout is not torch.strided:
            raise TypeError(
                f"LowPrecision rounds dense gradients, that of {entry.name} has layout {gradient.layout}; leave it out with "
                "rule=Rule(exclude=...) or build the layer with sparse=False"
            )
        found.append((entry, gradient))
    return found
