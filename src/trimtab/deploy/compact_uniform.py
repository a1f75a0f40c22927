"""The plain alternative to a choice for each weight: the same bits for all, zeros by global magnitude."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from trimtab.deploy.compact_choice import Layer
from trimtab.deploy.compact_job import Job
from trimtab.deploy.compact_quantise import Quantised
from trimtab.tensors.selection import kth_threshold, removed_count, smallest_masks

WIDTHS = (4, 5, 6)  # [ours] bits that are tried
ZEROS = (*(at / 20 for at in range(17)), *(at / 100 for at in range(82, 99)))  # [ours] of all weights, to 0.98


@dataclass(frozen=True)
class Uniform:
    """All weights in so many bits with so many zeros, and the bytes of its file but for what `prepare` changes."""

    weights: dict[str, Quantised]
    size: int


def shares(layers: Sequence[Layer], zeros: float) -> dict[str, float]:
    """The zeros of each weight when the smallest magnitudes of all weights together go; each keeps one at least."""
    flat = [layer.weight.detach().float().reshape(-1) for layer in layers]
    (threshold,) = kth_threshold(flat, [removed_count(zeros, sum(one.numel() for one in flat))], absolute=True)
    gone = [int(mask.sum()) for mask in smallest_masks(flat, threshold, absolute=True)]
    return {
        layer.name: min(count, one.numel() - 1) / one.numel()
        for layer, count, one in zip(layers, gone, flat, strict=True)
    }


def widths(layers: Sequence[Layer]) -> list[int]:
    """Of `WIDTHS`, those that every weight may get."""
    return [bits for bits in WIDTHS if all(any(option.bits == bits for option in one.options) for one in layers)]


def weights_of(job: Job, layers: Sequence[Layer], bits: int, zeros: float) -> dict[str, Quantised]:
    """All weights so."""
    return job.quantised({name: (bits, share) for name, share in shares(layers, zeros).items()})


def uniform(job: Job, layers: Sequence[Layer], bits: int, zeros: float) -> Uniform:
    """All weights so, and their file."""
    weights = weights_of(job, layers, bits, zeros)
    return Uniform(weights, len(job.file(weights, prepared=False).content))


def below(job: Job, layers: Sequence[Layer], size: int) -> Iterator[tuple[int, list[float]]]:
    """For each width the zeros of `ZEROS` from the least on whose file is smaller than `size`; found by halving."""
    for bits in widths(layers):

        def fits(zeros: float, bits: int = bits) -> bool:
            return uniform(job, layers, bits, zeros).size < size

        first = bisect_left(ZEROS, 1, key=fits)
        if first < len(ZEROS):
            yield bits, list(ZEROS[first:])


def most_zeros(
    job: Job, layers: Sequence[Layer], bits: int, zeros: Sequence[float], holds: Callable[[dict[str, Quantised]], bool]
) -> Uniform | None:
    """The most of these zeros with which the network still holds, by halving; None where the least does not hold."""
    best = uniform(job, layers, bits, zeros[0])
    if not holds(best.weights):
        return None
    low, high = 0, len(zeros)
    while high - low > 1:
        middle = (low + high) // 2
        one = uniform(job, layers, bits, zeros[middle])
        if holds(one.weights):
            best, low = one, middle
        else:
            high = middle
    return best
