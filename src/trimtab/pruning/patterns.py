"""Which weights go together: single ones, or N kept of every M along the input axis."""

from __future__ import annotations

from trimtab.checks import n_of_m
from trimtab.parameters import Entry, no_axis


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


def reason_without_groups(entry: Entry, group: int) -> str | None:
    """Why `entry` cannot carry the pattern, or None. A ragged end is not padded [ours]: the tensor is left out."""
    if entry.parameter.ndim < 2:
        return "fewer than 2 dimensions: no input axis"
    if (reason := no_axis(entry, "input_axis")) is not None:
        return reason
    size = entry.parameter.shape[input_axis(entry)]
    return f"input axis of {size} is not a multiple of {group}" if size % group else None
