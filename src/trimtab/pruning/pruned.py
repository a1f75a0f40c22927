"""What pruning did to a model: masks, counts, and the way back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor

from trimtab.parameters import Entry


@dataclass(frozen=True, eq=False)
class Pruned:
    """Result of `one_shot`, or one state of a `sweep`.

    Attributes:
        masks: per parameter name a bool tensor of its shape, True where the weight was kept. Outside the module: nothing
            in the model's state dict changes.
        thresholds: per name the largest score removed (0.0 where nothing was; NaN for N:M patterns, which have none).
        removed: per name how many weights were removed.
        prunable: how many weights the rule chose.
        total: elements of all the model's parameters, tied ones once.
        left_out: parameters that were not pruned, each with the reason.
        score, scope, pattern: how it was done.
    """

    masks: dict[str, Tensor] = field(repr=False)
    thresholds: dict[str, float] = field(repr=False)
    removed: dict[str, int] = field(repr=False)
    prunable: int
    total: int
    left_out: list[tuple[Entry, str]] = field(repr=False)
    score: str
    scope: str
    pattern: str
    _restore: Callable[[], None] = field(repr=False)

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
        """Put the removed weights back, bit for bit; weights changed since then keep their new values."""
        self._restore()

    def rows(self) -> list[tuple[str, int, int, float]]:
        """(name, removed, elements, threshold) per pruned tensor."""
        return [(name, count, self.masks[name].numel(), self.thresholds[name]) for name, count in self.removed.items()]

    def __str__(self) -> str:
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
