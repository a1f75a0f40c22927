"""Gram matrices of what reaches layers; weights that see the same inputs share one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from trimtab.parameters import Entry
from trimtab.pruning.calibration import Calibration
from trimtab.pruning.layer_inputs import CONVOLUTIONS, input_rows


@dataclass(eq=False)
class Gram:
    """`X'X` of the inputs of some weights.

    Attributes:
        entries: the weights, in the order in which the data reach them.
        matrix: (inputs, inputs), in float32 at least.
    """

    entries: list[Entry]
    matrix: Tensor
    samples: int = 0
    calls: int = 0

    @property
    def names(self) -> str:
        """Of the weights, for what is said of them."""
        return ", ".join(entry.name for entry in self.entries)


class _Apart(Exception):  # noqa: N818 - no error
    """Weights whose first inputs were one tensor have other inputs later."""


class _Collected:
    """Takes inputs in; one that is the tensor before, unchanged, is not multiplied a second time."""

    def __init__(self, *, share: bool) -> None:
        self.share = share
        self.found: dict[int, Gram] = {}
        self.calls: dict[int, int] = {}
        self.last: tuple[Tensor, int | None, Gram] | None = None
        """The input that was multiplied last, how often it had been changed, and where it went."""

    def take(self, entry: Entry, owner: nn.Module, inputs: Tensor) -> None:
        """One input of one weight."""
        call = self.calls[id(entry)] = self.calls.get(id(entry), 0) + 1
        gram = self.found.get(id(entry))
        if gram is None and (before := self._same(entry, owner, inputs)) is not None and before.calls == 1:
            gram = self.found[id(entry)] = before
            gram.entries.append(entry)
        elif gram is not None and entry is not gram.entries[0]:
            if self._same(entry, owner, inputs) is not gram:
                raise _Apart
        else:
            self._add(entry, gram, input_rows(owner, inputs)[0], len(inputs))
            self.last = (inputs, _changes(inputs), self.found[id(entry)])
        if call != self.found[id(entry)].calls:
            raise _Apart

    def _same(self, entry: Entry, owner: nn.Module, inputs: Tensor) -> Gram | None:
        """Where the input went, if it is the one before; of linear layers alone, which all make the same rows of it."""
        if self.last is None or not self.share or isinstance(owner, CONVOLUTIONS):
            return None
        before, version, gram = self.last
        alike = before is inputs and version is not None and version == _changes(inputs)
        return gram if alike and gram.entries[0].parameter.dtype == entry.parameter.dtype else None

    def _add(self, entry: Entry, gram: Gram | None, rows: Tensor, samples: int) -> None:
        rows = rows.double() if entry.parameter.dtype == torch.float64 else rows
        if gram is None:
            gram = self.found[id(entry)] = Gram([entry], rows.new_zeros(rows.shape[1], rows.shape[1]))
        gram.matrix.addmm_(rows.T, rows)
        gram.samples += samples
        gram.calls += 1

    def done(self) -> list[Gram]:
        """Every matrix once, as the data reached them."""
        if any(self.calls[id(entry)] != gram.calls for gram in self.found.values() for entry in gram.entries):
            raise _Apart
        return list({id(gram): gram for gram in self.found.values()}.values())


def _changes(inputs: Tensor) -> int | None:
    """How often it was changed in place; None where PyTorch does not count that (inference mode)."""
    return None if inputs.is_inference() else inputs._version


def grams_of(calibration: Calibration, model: nn.Module, step: Sequence[Entry], *, early: bool) -> list[Gram]:
    """`2 / N X'X` of each weight's inputs, N the samples (the first dimension), as published.

    Linear layers to which the network hands one and the same tensor, call by call (queries, keys and values; gate and up),
    share a matrix [ours]. Should they part on the way, all is seen once more and each has its own.

    Raises:
        ValueError: a layer that is not reached (named), or inputs that hold NaN or infinite values.
    """
    try:
        found = _collect(calibration, model, step, share=True, early=early)
    except _Apart:
        found = _collect(calibration, model, step, share=False, early=early)
    for gram in found:
        gram.matrix.mul_(2 / gram.samples)
        if not bool(gram.matrix.isfinite().all()):
            raise ValueError(
                f"the inputs of {gram.entries[0].name} hold NaN or infinite values: nothing can be made up for them"
            )
    return found


def _collect(
    calibration: Calibration, model: nn.Module, step: Sequence[Entry], *, share: bool, early: bool
) -> list[Gram]:
    collected = _Collected(share=share)
    calibration.see(model, step, collected.take, early=early)
    return collected.done()
