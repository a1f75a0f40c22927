"""Bits and sparsity of each weight: as set, for a budget of bytes, or for a largest drop of the quality."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn

from trimtab.checks import below_one, hint
from trimtab.deploy import compact_choice as choice
from trimtab.deploy import compact_uniform
from trimtab.deploy.compact_choice import Layer, Option
from trimtab.deploy.compact_job import Job
from trimtab.deploy.compact_quantise import Quantised, checked_bits
from trimtab.deploy.compact_uniform import below, most_zeros, weights_of

BITS = (2, 3, 4, 5, 6, 8)
SPARSITIES = (0.0, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.98)
TRIES = 6  # how often the size asked of the choice is corrected by the size of the file
ROUNDS = 2  # [ours] how often what each weight costs is measured among the others
HALVINGS = (6, 4, 3)  # [ours] how often the range of sizes is divided under `max_drop`: at first, after each round
NEAR = 0.5  # [ours] of the size found so far: the smallest size looked at after a round
ABOUT = 1.01  # times the budget: what may fit once its small tensors are prepared
CLOSE = 1.01  # sizes of no more than this ratio are not divided any more

Measure = Callable[[nn.Module], float]


def looks(*, by_drop: bool, free: bool) -> int:
    """How often a search measures the quality at most; with zeros `free` the uniform files' too."""
    own = 1 + sum(HALVINGS) if by_drop else int(free)
    each = 1 + math.ceil(math.log2(len(compact_uniform.ZEROS))) if by_drop else 1
    return own + (len(compact_uniform.WIDTHS) * each if free else 0)


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


def layers_of(job: Job, bits: object, sparsity: object) -> list[Layer]:
    """Every weight with its options, their sizes and, as long as no loss is measured, their squared errors for rises."""
    found = []
    for name, axis in job.axes.items():
        widths, shares = _allowed(name, "bits", bits, BITS), _allowed(name, "sparsity", sparsity, SPARSITIES)
        own = choice.options(name, job.state[name], axis, widths, shares, job.scales)
        found.append(Layer(name, job.state[name], axis, tuple(own), choice.by_error(own)))
    return found


def _quantised(job: Job, layers: Sequence[Layer], options: Sequence[Option]) -> dict[str, Quantised]:
    pairs = zip(layers, options, strict=True)
    return job.quantised({layer.name: (option.bits, option.sparsity) for layer, option in pairs})


def _measured(job: Job, layers: Sequence[Layer], options: Sequence[Option], now: float, loss: Measure) -> list[Layer]:
    """With rises measured where all weights are as in `options`, whose loss is `now`; as they are where that is no number."""
    if not math.isfinite(now):
        return list(layers)
    weights = _quantised(job, layers, options)

    def with_option(place: int, option: Option) -> float:
        name = layers[place].name
        return float(loss(job.candidate(weights | {name: job.one(name, option.bits, option.sparsity)})))

    return choice.among_the_others(layers, options, now, with_option)


def _fitted(job: Job, layers: Sequence[Layer], budget: int, least: Sequence[Option], least_size: int) -> list[Option]:
    """The choice of least expected rise whose file takes at most `budget` bytes; `least` where none is larger."""
    best, best_size, size = list(least), least_size, float(budget)
    seen = set()
    for _ in range(TRIES):
        options = choice.allocate(layers, size)
        key = tuple(options)
        if key in seen:
            break
        seen.add(key)
        got = len(job.file(_quantised(job, layers, options)).content)
        if best_size < got <= budget:
            best, best_size = options, got
        size = choice.total(options) + (budget - got) * (1.0 if got > budget else 0.98)
    return best


def within_budget(
    job: Job,
    layers: Sequence[Layer],
    budget: int,
    loss: Measure | None,
    quality: Measure | None = None,
    *,
    free: bool = True,
) -> dict[str, Quantised]:
    """The choice of least expected rise whose file takes at most `budget` bytes; of those measured the one of least loss.

    With `quality`, and zeros `free` to be any, the uniform files of most bytes within the budget are measured beside it.
    """
    best = _by_price(job, layers, budget, loss)
    if quality is None or not free:
        return best
    reached = float(quality(job.candidate(best)))
    for bits, zeros in below(job, layers, round(budget * ABOUT) + 1):
        for share in zeros:  # the largest first; what `prepare` changes may take some bytes more or less
            one = weights_of(job, layers, bits, share)
            if len(job.file(one).content) <= budget:
                value = float(quality(job.model if job.prepare and job.model else job.candidate(one)))
                if value > reached:
                    best, reached = one, value
                break
    return best


def _by_price(job: Job, layers: Sequence[Layer], budget: int, loss: Measure | None) -> dict[str, Quantised]:
    """As `within_budget`, each weight by itself."""
    least = choice.smallest(layers)
    file = job.file(_quantised(job, layers, least))
    size = len(file.content)
    if size > budget:
        raise ValueError(
            f"budget_bytes = {budget} is too small: the smallest file of these bits and sparsities takes {size} "
            f"bytes, {size - file.code_bytes} of them header, names, scales and tensors that are kept whole"
        )
    best = _fitted(job, layers, budget, least, size)
    if loss is None:
        return _quantised(job, layers, best)
    reached = float(loss(job.candidate(_quantised(job, layers, best))))
    for _ in range(ROUNDS):
        layers = _measured(job, layers, best, reached, loss)
        options = _fitted(job, layers, budget, least, size)
        if options == best:
            break
        value = float(loss(job.candidate(_quantised(job, layers, options))))
        if not value < reached:
            break
        best, reached = options, value
    return _quantised(job, layers, best)


def within_drop(
    job: Job, layers: Sequence[Layer], quality: Measure, least: float, loss: Measure | None, *, free: bool = True
) -> dict[str, Quantised]:
    """The smallest choice found whose network reaches the quality `least`; with zeros `free` a uniform one if it is smaller."""
    best = _halved(job, layers, quality, least, loss)
    if not free:
        return best
    size = len(job.file(best, prepared=False).content)

    def holds(weights: dict[str, Quantised]) -> bool:
        return float(quality(job.candidate(weights))) >= least

    for bits, zeros in below(job, layers, size):
        found = most_zeros(job, layers, bits, zeros, holds)
        if found is not None and found.size < size:
            best, size = found.weights, found.size
    return best


def _halved(
    job: Job, layers: Sequence[Layer], quality: Measure, least: float, loss: Measure | None
) -> dict[str, Quantised]:
    """As `within_drop`, each weight by itself."""
    options = choice.largest(layers)
    best = _quantised(job, layers, options)
    reached = float(quality(job.candidate(best)))
    if not reached >= least:
        raise ValueError(
            f"max_drop is not met: with the least that these bits and sparsities take away the quality is {reached:.4g}, "
            f"below {least:.4g}; allow more bits, a sparsity of 0, or a larger drop"
        )
    low, high = choice.total(choice.smallest(layers)), choice.total(options)
    for after, halvings in enumerate(HALVINGS):
        if after and loss is not None:
            layers = _measured(job, layers, options, float(loss(job.candidate(best))), loss)
            low = max(choice.total(choice.smallest(layers)), NEAR * high)
        for _ in range(halvings):
            if high < CLOSE * low:
                break
            middle = (low * high) ** 0.5
            tried = choice.allocate(layers, middle)
            one = _quantised(job, layers, tried)
            if float(quality(job.candidate(one))) >= least:
                options, best, high = tried, one, middle
            else:
                low = middle
    return best
