"""Exact selection of the k smallest scores over many tensors, without joining them into one.

The bit pattern of a non-negative IEEE number, read as an integer, orders like the number; that of a negative one without
its sign bit, negated, comes before all of them. A histogram of the upper bits over all tensors finds the bucket that holds
the k-th smallest score; a histogram of the lower bits inside that bucket finds the score itself. The passes stream over the
tensors in pieces and serve any number of k at once.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trimtab.tensors.cuda_selection import order_statistics

PIECE = 1 << 17  # elements worked on at a time on a CPU: integers and masks of one piece stay in the cache
PIECE_ON_DEVICE = 1 << 25  # elements at a time elsewhere: few launches, still bounded memory
DIGIT = 16  # bits resolved by one histogram
PAIRED = 24  # groups up to this size are compared pair by pair, which is faster than finding a limit for each
MIDDLE = 1 << (DIGIT - 1)  # where the buckets of scores of 0 and more begin in the first histogram
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Threshold:
    """Where the k smallest scores end.

    Attributes:
        value: the k-th smallest score, exactly (0.0 when k = 0).
        below: how many scores are strictly smaller than `value`.
        ties: how many of the scores equal to `value` belong to the k smallest: the first `ties` of them by position.
    """

    value: float
    below: int
    ties: int

    @property
    def count(self) -> int:
        """k, the number of scores selected."""
        return self.below + self.ties


def _checked(scores: Sequence[Tensor]) -> list[Tensor]:
    for position, score in enumerate(scores):
        if score.dtype not in DTYPES:
            raise TypeError(f"score {position} has dtype {score.dtype}, allowed are {', '.join(map(str, DTYPES))}")
    return [score.detach() for score in scores]


def _pieces(scores: Sequence[Tensor], dtype: torch.dtype) -> Iterator[Tensor]:
    """Flat pieces in `dtype`: large tensors cut, small neighbours joined (so that few histograms are made)."""
    waiting: list[Tensor] = []
    held = 0
    for score in scores:
        size = PIECE if score.device.type == "cpu" else PIECE_ON_DEVICE
        flat = score.reshape(-1)
        if waiting and (held + flat.numel() > size or waiting[0].device != flat.device):
            yield _joined(waiting)
            waiting, held = [], 0
        if flat.numel() >= size:
            for piece in torch.split(flat, size):
                yield piece.to(dtype)
        elif flat.numel():
            waiting.append(flat.to(dtype))
            held += flat.numel()
    if waiting:
        yield _joined(waiting)


def _joined(pieces: Sequence[Tensor]) -> Tensor:
    return pieces[0] if len(pieces) == 1 else torch.cat(list(pieces))


def _keys(piece: Tensor, *, signed: bool) -> Tensor:
    """Integers that order like the scores (without `signed`: like their sizes), int32 or int64; 0 for either zero."""
    integers, without_sign = (
        (torch.int64, (1 << 63) - 1) if piece.dtype == torch.float64 else (torch.int32, (1 << 31) - 1)
    )
    bits = piece.view(integers)
    sizes = bits & without_sign
    return torch.where(bits < 0, -sizes, sizes) if signed else sizes


def _score(key: int, dtype: torch.dtype) -> float:
    """The score that has this key."""
    integers = torch.int64 if dtype == torch.float64 else torch.int32
    size = float(torch.tensor(abs(key), dtype=integers).view(dtype).item())
    return -size if key < 0 else size


def _raise_for_nan(scores: Sequence[Tensor]) -> None:
    for position, score in enumerate(scores):
        if bool(torch.isnan(score).any()):
            raise ValueError(f"score {position} (shape {tuple(score.shape)}) holds NaN; scores must be numbers")


def _first_histogram(
    scores: Sequence[Tensor], dtype: torch.dtype, shift: int, *, absolute: bool
) -> tuple[Tensor, bool]:
    """The histogram of the leading digit, and whether a score is negative."""
    largest = int(_keys(torch.tensor([torch.inf], dtype=dtype), signed=False).item()) >> shift
    histogram = torch.zeros(1 << DIGIT, dtype=torch.int64)
    signed = False
    for piece in _pieces(scores, dtype):
        if absolute or bool(piece.min() >= 0):
            buckets = _keys(piece, signed=False).bitwise_right_shift_(shift)
            histogram[MIDDLE:] += torch.bincount(buckets, minlength=MIDDLE).cpu()
        else:
            signed = True
            buckets = _keys(piece, signed=True).bitwise_right_shift_(shift).add_(MIDDLE)
            histogram += torch.bincount(buckets, minlength=1 << DIGIT).cpu()
    if bool(histogram[MIDDLE + largest :].any()) or bool(histogram[: MIDDLE - largest].any()):
        _raise_for_nan(scores)
    return histogram, signed


def _inner_histograms(
    scores: Sequence[Tensor], dtype: torch.dtype, prefixes: Sequence[int], shift: int, *, signed: bool
) -> dict[int, Tensor]:
    """For each prefix, the histogram of the next digit over the scores whose keys start with it."""
    histograms = {prefix: torch.zeros(1 << DIGIT, dtype=torch.int64) for prefix in prefixes}
    first_shift = (64 if dtype == torch.float64 else 32) - DIGIT
    base = MIDDLE if signed else 0
    wanted = torch.zeros(1 << DIGIT, dtype=torch.bool)
    wanted[[(prefix >> (first_shift - shift - DIGIT)) + base for prefix in prefixes]] = True
    for piece in _pieces(scores, dtype):
        keys = _keys(piece, signed=signed)
        if len(prefixes) > 1:  # one look-up for all of them leaves little for the comparisons below
            leading = (keys >> first_shift).to(torch.int32)
            leading = leading.add_(base) if base else leading
            keys = _where(keys, wanted.to(keys.device).index_select(0, leading))
        leading = keys >> (shift + DIGIT)
        for prefix, histogram in histograms.items():
            inside = _where(keys, leading == prefix)
            if inside.numel():
                digits = (inside >> shift) & ((1 << DIGIT) - 1)
                histogram += torch.bincount(digits, minlength=1 << DIGIT).cpu()
    return histograms


def _where(values: Tensor, chosen: Tensor) -> Tensor:
    """The chosen values: where they are few, in less memory than `masked_select` takes."""
    return values.index_select(0, chosen.nonzero().view(-1))


def _locate(histogram: Tensor, rank: int) -> tuple[int, int]:
    """The bucket that holds the `rank`-th entry (from 1) and how many entries lie before that bucket."""
    cumulative = histogram.cumsum(0)
    bucket = int(torch.searchsorted(cumulative, rank))
    return bucket, int(cumulative[bucket] - histogram[bucket])


def removed_count(sparsity: float, elements: int) -> int:
    """How many of `elements` weights a sparsity removes: `floor(sparsity * n + 0.5)`.

    Example:
        >>> removed_count(0.5, 5)
        3
    """
    return math.floor(sparsity * elements + 0.5)


def kth_threshold(scores: Sequence[Tensor], counts: Sequence[int], *, absolute: bool = False) -> list[Threshold]:
    """The threshold of the k smallest scores over all tensors together, for each k in `counts`; exact.

    Args:
        scores: tensors of any shape and of dtype float32, float64, bfloat16 or float16, of either sign; also of
            different dtypes and devices. Positions count in the order given, row-major inside a tensor.
        counts: each between 0 and the number of scores.
        absolute: select by |score| (saves the caller a copy of the weights).

    Returns:
        One `Threshold` per count, in the order of `counts`. Time is linear, extra memory a few pieces of 2^17 elements.

    Raises:
        ValueError: a count is out of range, or a tensor holds NaN (its position is named).
        TypeError: a dtype that is not one of the four.

    Example:
        >>> kth_threshold([torch.tensor([3.0, 1.0]), torch.tensor([2.0, 2.0])], [2])
        [Threshold(value=2.0, below=1, ties=1)]
    """
    scores = _checked(scores)
    total = sum(score.numel() for score in scores)
    for count in counts:
        if not 0 <= count <= total:
            raise ValueError(f"count must be between 0 and {total}, the number of scores; got {count}")
    ranks = sorted(set(counts) - {0})
    if ranks and (numbers := order_statistics(scores, ranks, absolute=absolute)) is not None:
        known = {
            rank: Threshold(value, below, rank - below) for rank, (value, below) in zip(ranks, numbers, strict=True)
        }
        return [known.get(count, Threshold(0.0, 0, 0)) for count in counts]
    dtype = torch.float64 if any(score.dtype == torch.float64 for score in scores) else torch.float32
    shift = (64 if dtype == torch.float64 else 32) - DIGIT
    histogram, signed = _first_histogram(scores, dtype, shift, absolute=absolute)
    found = {}
    for count in set(counts) - {0}:
        bucket, before = _locate(histogram, count)
        found[count] = (bucket - MIDDLE, before)
    while shift > 0:
        shift -= DIGIT
        prefixes = sorted({prefix for prefix, _ in found.values()})
        histograms = _inner_histograms(scores, dtype, prefixes, shift, signed=signed)
        for count, (prefix, before) in found.items():
            digit, inside = _locate(histograms[prefix], count - before)
            found[count] = (prefix << DIGIT | digit, before + inside)
    thresholds = {0: Threshold(0.0, 0, 0)}
    for count, (key, below) in found.items():
        thresholds[count] = Threshold(_score(key, dtype), below, count - below)
    return [thresholds[count] for count in counts]


def smallest_masks(scores: Sequence[Tensor], threshold: Threshold, *, absolute: bool = False) -> list[Tensor]:
    """Masks that are True at exactly the `threshold.count` smallest scores; ties go by position, first ones first.

    Args:
        scores: the tensors that `threshold` was computed from, unchanged, in the same order.
        threshold: what `kth_threshold` returned.
        absolute: as given there.

    Returns:
        One contiguous bool tensor per score, of its shape and on its device.

    Raises:
        ValueError: the scores are not those the threshold belongs to.

    Example:
        >>> scores = [torch.tensor([3.0, 1.0]), torch.tensor([2.0, 2.0])]
        >>> smallest_masks(scores, *kth_threshold(scores, [2]))
        [tensor([False,  True]), tensor([ True, False])]
    """
    scores = _checked(scores)
    if threshold.count == 0:
        return [torch.zeros(score.shape, dtype=torch.bool, device=score.device) for score in scores]
    wide = torch.float64 if any(score.dtype == torch.float64 for score in scores) else torch.float32
    masks = [torch.empty(score.shape, dtype=torch.bool, device=score.device) for score in scores]
    places: list[tuple[Tensor, Tensor]] = []
    for score, mask in zip(scores, masks, strict=True):
        size = PIECE if score.device.type == "cpu" else PIECE_ON_DEVICE
        places += zip(torch.split(score.reshape(-1), size), torch.split(mask.view(-1), size), strict=True)

    def values(piece: Tensor) -> Tensor:
        piece = piece.to(wide)
        return piece.abs() if absolute else piece

    equals = []
    for piece, out in places:
        piece = values(piece)
        torch.lt(piece, threshold.value, out=out)
        equals.append((piece == threshold.value).count_nonzero())
    remaining = threshold.ties
    for (piece, out), found in zip(places, _numbers(equals), strict=True):
        if found and remaining:
            equal = values(piece) == threshold.value
            if found > remaining:
                out[equal.nonzero().view(-1)[:remaining]] = True
            else:
                out |= equal
            remaining -= min(found, remaining)
    selected = sum(_numbers([mask.count_nonzero() for mask in masks]))
    if selected != threshold.count:
        raise ValueError(f"the threshold selects {threshold.count} scores, here {selected}: other scores than it is of")
    return masks


def _numbers(counts: Sequence[Tensor]) -> list[int]:
    """Counts of any devices, read with one wait where they share one."""
    if len({count.device for count in counts}) > 1:
        return [int(count) for count in counts]
    return torch.stack(list(counts)).tolist() if counts else []


def smallest_in_groups(scores: Tensor, keep: int, group: int, axis: int) -> Tensor:
    """Mask that is True at the `group - keep` smallest of every `group` consecutive scores along `axis` (N:M pattern).

    Ties go by position along the axis, first ones first. Scores must not be NaN.

    Args:
        scores: any shape; `scores.shape[axis]` must be a multiple of `group`.
        keep: N, between 0 and `group`.
        group: M, 1 or more.
        axis: the dimension along which scores are grouped.

    Raises:
        ValueError: the sizes do not fit.

    Example:
        >>> smallest_in_groups(torch.tensor([[0.1, 0.4, 0.3, 0.2]]), 2, 4, axis=1)
        tensor([[ True, False, False,  True]])
    """
    if group < 1 or not 0 <= keep <= group:
        raise ValueError(f"a pattern keeps N of M with 0 <= N <= M and M >= 1, got {keep}:{group}")
    if scores.shape[axis] % group:
        raise ValueError(f"axis {axis} of shape {tuple(scores.shape)} is not a multiple of {group}")
    moved = scores.movedim(axis, -1)
    if group > PAIRED:
        return (
            smallest_in_rows(moved.reshape(-1, group), group - keep, 0).view(moved.shape).movedim(-1, axis).contiguous()
        )
    members = moved.reshape(*moved.shape[:-1], -1, group).unbind(-1)
    # How many of its group come before each member
    before = [torch.zeros(members[0].shape, dtype=torch.uint8, device=scores.device) for _ in members]
    for later in range(1, group):
        for earlier in range(later):
            first = members[earlier] <= members[later]
            before[later] += first
            before[earlier] += ~first
    mask = torch.stack([count < group - keep for count in before], dim=-1)
    return mask.flatten(-2).movedim(-1, axis).contiguous()


def smallest_in_rows(scores: Tensor, count: int, axis: int) -> Tensor:
    """Mask that is True at exactly the `count` smallest scores of every row: of all that share an index along `axis`.

    Ties go by position, first ones first. Scores must not be NaN.

    Args:
        scores: any shape, of either sign.
        count: between 0 and the number of scores in a row.
        axis: the dimension that indexes rows.

    Raises:
        ValueError: the count is out of range.

    Example:
        >>> smallest_in_rows(torch.tensor([[3.0, 1.0, 1.0], [0.0, -2.0, 5.0]]), 1, axis=0)
        tensor([[False,  True, False],
                [False,  True, False]])
    """
    moved = scores.detach().movedim(axis, 0)
    rows = moved.flatten(1)
    if not 0 <= count <= rows.shape[1]:
        raise ValueError(f"count must be between 0 and {rows.shape[1]}, the scores in a row; got {count}")
    if count == 0 or not rows.numel():
        return torch.zeros_like(scores, dtype=torch.bool, memory_format=torch.contiguous_format)
    limit = rows.kthvalue(count, dim=1, keepdim=True).values
    mask, equal = rows < limit, rows == limit
    room = count - mask.sum(1, keepdim=True)
    crowded = (equal.sum(1, keepdim=True) > room).squeeze(1)
    if bool(crowded.any()):  # more ties than places: the first ones by position
        ties = equal[crowded]
        equal[crowded] = ties & (ties.cumsum(1) <= room[crowded])
    return (mask | equal).view(moved.shape).movedim(0, axis).contiguous()
