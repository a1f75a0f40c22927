"""Which weights go together: single ones, or N kept of every M along the input axis."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from trimtab.checks import n_of_m
from trimtab.parameters import Entry, no_axis

Indivisible = Literal["refuse", "leave_out"]
"""What becomes of a weight whose input axis is no multiple of M: an error that names it, or it stays dense."""


def parse_pattern(pattern: str) -> tuple[int, int] | None:
    """None for "unstructured", (N, M) for "N:M": N of every M consecutive weights are kept.

    Raises:
        ValueError: neither of the two, or not 0 < N < M.

    Example:
        >>> parse_pattern("2:4")
        (2, 4)
    """
    return None if pattern == "unstructured" else n_of_m("a pattern other than 'unstructured'", pattern)


def input_axis(entry: Entry) -> int:
    """Dimension that indexes inputs, as the owner says: 1 for Linear, convolutions and Embedding, 0 for transposed convolutions
    and transformers' Conv1D. Without an owner 1, PyTorch's habit, or 0 where outputs are 1."""
    if entry.input_axis is not None:
        return entry.input_axis
    return 0 if entry.output_axis == 1 else 1


def reason_without_axis(entry: Entry) -> str | None:
    """Why groups cannot run along an input axis of `entry`, or None."""
    return "fewer than 2 dimensions: no input axis" if entry.parameter.ndim < 2 else no_axis(entry, "input_axis")


def reason_indivisible(entry: Entry, group: int) -> str | None:
    """Why groups of that size do not fill the input axis, or None. A ragged end is not padded [ours]."""
    size = entry.parameter.shape[input_axis(entry)]
    return f"input axis of {size} is not a multiple of {group}" if size % group else None


def refuse_indivisible(pattern: str, found: Sequence[tuple[Entry, str]]) -> None:
    """ValueError that names the weights which a pattern does not divide, and the ways out.

    Example:
        >>> from trimtab.parameters import entries
        >>> import torch
        >>> refuse_indivisible("2:4", [(entries(torch.nn.Linear(3, 1))[0], "input axis of 3 is not a multiple of 4")])
        Traceback (most recent call last):
        ...
        ValueError: pattern '2:4' does not divide 1 weight(s): weight (input axis of 3 is not a multiple of 4). Leave them ...
    """
    if found:
        names = "; ".join(f"{entry.name} ({reason})" for entry, reason in found[:8])
        more = f" and {len(found) - 8} more" if len(found) > 8 else ""
        raise ValueError(
            f"pattern {pattern!r} does not divide {len(found)} weight(s): {names}{more}. Leave them dense with "
            "indivisible='leave_out' (trimtab prune: --indivisible leave_out; a recipe: --pruning.indivisible leave_out), "
            "or by a rule that excludes them"
        )
