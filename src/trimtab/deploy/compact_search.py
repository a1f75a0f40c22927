"""Bits and sparsity of each weight: as set, for a budget of bytes, or for a largest drop of the quality."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn

from trimtab.checks import below_one, hint, number
from trimtab.deploy import compact_choice as choice
from trimtab.deploy.compact_choice import Layer, Option
from trimtab.deploy.compact_job import Job
from trimtab.deploy.compact_quantise import Quantised, checked_bits

BITS = (2, 3, 4, 5, 6, 8)
SPARSITIES = (0.0, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98)
TRIES = 6  # how often the size asked of the choice is corrected by the size of the file
HALVINGS = 8  # how often the range of sizes is divided in the search for the most that `max_drop` bears

Measure = Callable[[nn.Module], float]


def fixed(job: Job, bits: object, sparsity: object) -> dict[str, tuple[int, float]]:
    """What the user set for each weight."""
    found: dict[str, list[Any]] = {name: [8, 0.0] for name in job.axes}
    for place, (what, given) in enumerate((("bits", bits), ("sparsity", sparsity))):
        if given is None:
            continue
        if isinstance(given, Mapping):
            for name in given:
                if name not in job.axes:
                    raise ValueError(
                        f"{what} for {name!r}, which is not coded; {hint(name, job.axes, 'coded weights')}"
                    )
        elif isinstance(given, Sequence):
            raise TypeError(f"{what} must be one number or one for each name where nothing is searched, got {given!r}")
        for name in job.axes:
            value = given.get(name) if isinstance(given, Mapping) else given
            if value is not None:
                found[name][place] = (
                    checked_bits(name, value) if what == "bits" else below_one(f"sparsity of {name}", value)
                )
    return {name: (width, share) for name, (width, share) in found.items()}


def _allowed(name: str, what: str, given: object, default: Sequence[Any]) -> list[Any]:
    """The bits or sparsities that a weight may get in a search."""
    own = given.get(name) if isinstance(given, Mapping) else given
    several = list(default) if own is None else list(own) if isinstance(own, Sequence) else [own]
    if not several:
        raise ValueError(f"{what} of {name} must hold at least one number")
    return [checked_bits(name, one) if what == "bits" else below_one(f"sparsity of {name}", one) for one in several]


def layers_of(job: Job, bits: object, sparsity: object, loss: Measure | None) -> list[Layer]:
    """Every weight with its options, their sizes and what they are expected to cost."""
    dense = None
    if loss is not None:
        assert job.model is not None
        dense = number("loss of the network as it is", loss(job.model))
    found = []
    for name, axis in job.axes.items():
        widths, shares = _allowed(name, "bits", bits, BITS), _allowed(name, "sparsity", sparsity, SPARSITIES)
        own = choice.options(name, job.state[name], axis, widths, shares, job.scales)
        if loss is None:
            rises = choice.by_error(own)
        else:

            def rise(option: Option, name: str = name) -> float:
                assert loss is not None
                assert dense is not None
                return float(loss(job.candidate({name: job.one(name, option.bits, option.sparsity)}))) - dense

            rises = choice.by_loss(own, rise)
        found.append(Layer(name, job.state[name], axis, tuple(own), rises))
    return found


def _as_taken(layers: Sequence[Layer], options: Sequence[Option]) -> dict[str, tuple[int, float]]:
    return {layer.name: (option.bits, option.sparsity) for layer, option in zip(layers, options, strict=True)}


def within_budget(job: Job, layers: Sequence[Layer], budget: int) -> dict[str, Quantised]:
    """The choice of least expected rise whose file takes at most `budget` bytes."""
    least = job.quantised(_as_taken(layers, choice.smallest(layers)))
    file = job.file(least)
    if len(file.content) > budget:
        rest = len(file.content) - file.code_bytes
        raise ValueError(
            f"budget_bytes = {budget} is too small: the smallest file of these bits and sparsities takes {len(file.content)} "
            f"bytes, {rest} of them header, names, scales and tensors that are kept whole"
        )
    best, best_size, size = least, len(file.content), float(budget)
    seen = set()
    for _ in range(TRIES):
        options = choice.allocate(layers, size)
        taken = _as_taken(layers, options)
        key = tuple(taken.items())
        if key in seen:
            break
        seen.add(key)
        one = job.quantised(taken)
        got = len(job.file(one).content)
        if best_size < got <= budget:
            best, best_size = one, got
        size = choice.total(options) + (budget - got) * (1.0 if got > budget else 0.98)
    return best


def within_drop(job: Job, layers: Sequence[Layer], quality: Measure, least: float) -> dict[str, Quantised]:
    """The smallest choice found whose network reaches the quality `least`."""
    low, high = choice.total(choice.smallest(layers)), choice.total(choice.largest(layers))
    best = job.quantised(_as_taken(layers, choice.largest(layers)))
    reached = float(quality(job.candidate(best)))
    if not reached >= least:
        raise ValueError(
            f"max_drop is not met: with the least that these bits and sparsities take away the quality is {reached:.4g}, "
            f"below {least:.4g}; allow more bits, a sparsity of 0, or a larger drop"
        )
    for _ in range(HALVINGS):
        middle = (low * high) ** 0.5
        one = job.quantised(_as_taken(layers, choice.allocate(layers, middle)))
        if float(quality(job.candidate(one))) >= least:
            best, high = one, middle
        else:
            low = middle
    return best
