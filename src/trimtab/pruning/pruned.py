"""What pruning did to a model: masks, counts, and the way back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from trimtab.frames import Tabular
from trimtab.parameters import Entry
from trimtab.pruning.undo import Undo


@dataclass(eq=False, repr=False)
class Pruned(Tabular):
    """Result of `one_shot`, or one state of a `sweep`.

    Attributes:
        masks: per parameter name a bool tensor of its shape, True where the weight was kept. Outside the module: nothing
            in the model's state dict changes.
        thresholds: per name the score up to which weights went: of the whole network with scope "global", of the tensor with
            the other scopes (0.0 when nothing goes); NaN for N:M patterns, which have none.
        removed: per name how many weights were removed.
        prunable: how many weights the rule chose.
        total: elements of all the model's parameters, tied ones once.
        left_out: parameters that were not pruned, each with the reason.
        score, scope, pattern: how it was done. The scope of an N:M pattern is "group", whatever was asked for: it compares
            weights inside each group of M and nowhere else.
    """

    masks: dict[str, Tensor]
    thresholds: dict[str, float]
    removed: dict[str, int]
    prunable: int
    total: int
    left_out: list[tuple[Entry, str]]
    score: str
    scope: str
    pattern: str
    record: Undo | None

    @property
    def count(self) -> int:
        """How many weights were removed."""
        return sum(self.removed.values())

    @property
    def sparsity(self) -> float:
        """Fraction of the prunable weights that was removed."""
        return self.count / self.prunable

    @property
    def sparsity_total(self) -> float:
        """Fraction of all the model's parameters that was removed."""
        return self.count / self.total

    def undo(self) -> None:
        """Put every prunable weight back, in place, to the bits it had before pruning; once.

        Weights trained since then lose their training. BatchNorm statistics are not touched (a sweep puts them back). A
        weight that was replaced in the model since (a new head) is named in a warning, and the others are put back.

        Raises:
            RuntimeError: already undone, or the sweep has gone on: a later state must not be overwritten; a copy of a
                `Pruned`, which has no model; or every pruned weight was replaced.
        """
        if self.record is None:
            raise RuntimeError(
                "nothing to undo: the weights were put back already, by undo() or because the sweep went on, or this is a "
                "copy, which belongs to no model"
            )
        self.record()
        self.record = None

    def __getstate__(self) -> dict[str, Any]:
        """Without the way back: a copy of it would act on tensors that no model uses."""
        return {**vars(self), "record": None}

    def rows(self) -> list[tuple[str, int, int, float]]:
        """(name, removed, elements, threshold) per pruned tensor."""
        return [(name, count, self.masks[name].numel(), self.thresholds[name]) for name, count in self.removed.items()]

    def records(self) -> list[dict[str, Any]]:
        """One per pruned tensor: `name`, `removed`, `weights`, `sparsity`, `threshold`."""
        return [
            {
                "name": name,
                "removed": count,
                "weights": weights,
                "sparsity": count / max(weights, 1),
                "threshold": threshold,
            }
            for name, count, weights, threshold in self.rows()
        ]

    def _title(self) -> str:
        return repr(self)

    def __repr__(self) -> str:
        how = f"scope {self.scope}, {self.pattern}" if self.pattern == "unstructured" else f"pattern {self.pattern}"
        return (
            f"Pruned({self.count:,} of {self.prunable:,} prunable weights = {self.sparsity:.2%}, {self.sparsity_total:.2%} "
            f"of all {self.total:,}; score {self.score}, {how}; {len(self.masks)} tensors, {len(self.left_out)} left out)"
        )

    def table(self) -> str:
        """A line per tensor, the reasons of those left out, and both sparsities, as text."""
        width = max([len(name) for name in self.removed] + [9])
        lines = [
            f"{name:<{width}}  {count:>10,} of {elements:>10,} removed ({count / max(elements, 1):6.1%})  threshold "
            f"{threshold:.4g}"
            for name, count, elements, threshold in self.rows()
        ]
        lines += [f"{entry.name:<{width}}  left out: {reason}" for entry, reason in self.left_out]
        lines.append(
            f"{self.count:,} removed: {self.sparsity:.2%} of the {self.prunable:,} prunable weights, "
            f"{self.sparsity_total:.2%} of all {self.total:,}"
        )
        return "\n".join(lines)
