"""torchjd's aggregators as combiners of Trimtab, and Trimtab's combiners as aggregators of torchjd.

Needs torchjd: `pip install trimtab[torchjd]`.

Example:
    >>> from torchjd.aggregation import Mean
    >>> from trimtab.multitask import Combine, EqualNorm
    >>> combine = Combine(torch.nn.Linear(2, 1), from_torchjd(Mean()))
    >>> to_torchjd(EqualNorm())(torch.tensor([[3.0, 0.0], [0.0, 1.0]]))
    tensor([2., 2.])
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchjd import Stateful
from torchjd.aggregation import Aggregator, GramianWeightedAggregator, Weighting

from trimtab.adapters.torchjd_state import from_plain, remembered_of
from trimtab.multitask.base import Combiner, Tasks, Weighted


class _Theirs(Combiner):
    """A rule of torchjd's with what it remembers; an aggregator holds its weighting as a module in it."""

    rule: Aggregator | Weighting[Any]
    named: str

    def settings(self) -> dict[str, Any]:
        return {"rule": self.named}

    def memory(self) -> dict[str, Any]:
        parts = self.rule.named_modules()
        return {name: remembered_of(module) for name, module in parts if issubclass(type(module), Stateful)}

    def remember(self, memory: dict[str, Any]) -> None:
        for name, held in memory.items():
            for key, value in held.items():
                setattr(self.rule.get_submodule(name), key, from_plain(value))


class _FromWeighting(_Theirs, Weighted):
    def __init__(self, weighting: Weighting[Any], named: str) -> None:
        self.rule = self.weighting = weighting
        self.named = named

    def weights(self, products: Tensor) -> Tensor:
        return self.weighting(products)


class _FromAggregator(_Theirs):
    def __init__(self, aggregator: Aggregator) -> None:
        self.rule = self.aggregator = aggregator
        self.named = repr(aggregator)

    def combine_(self, tasks: Tasks, products: Tensor) -> list[Tensor]:
        found = self.aggregator(torch.stack([torch.cat([part.flatten() for part in task]) for task in tasks]))
        parts = torch.split(found, [part.numel() for part in tasks[0]])
        return [part.view_as(own).to(own.dtype) for part, own in zip(parts, tasks[0], strict=True)]


class _Aggregator(Aggregator):
    def __init__(self, combiner: Combiner) -> None:
        super().__init__()
        self.combiner = combiner

    def forward(self, matrix: Tensor, /) -> Tensor:
        return self.combiner(matrix)


class _Weighting(Weighting[Any]):
    def __init__(self, combiner: Weighted) -> None:
        super().__init__()
        self.combiner = combiner

    def forward(self, gramian: Tensor, /) -> Tensor:
        return self.combiner.weights(gramian.double().cpu()).to(gramian)


def from_torchjd(rule: Aggregator | Weighting[Any]) -> Combiner:
    """A combiner that does what torchjd's aggregator, or weighting of the Gramian, does; what it remembers is in `state_dict`.

    Random rules of torchjd draw from torch's own generator, whose state is not part of it.

    Raises:
        ValueError: (at `state_dict`) the rule remembers something else than numbers and tensors, as NashMTL's solver.
    """
    if isinstance(rule, GramianWeightedAggregator):
        return _FromWeighting(rule.gramian_weighting, repr(rule))
    return _FromWeighting(rule, repr(rule)) if isinstance(rule, Weighting) else _FromAggregator(rule)


def to_torchjd(combiner: Combiner) -> Aggregator:
    """An aggregator that does what the combiner does; by products alone, as `autogram` takes it, where that is enough."""
    return GramianWeightedAggregator(_Weighting(combiner)) if isinstance(combiner, Weighted) else _Aggregator(combiner)
