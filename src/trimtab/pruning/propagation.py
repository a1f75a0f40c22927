"""Layer after layer: each is decided by the inputs that the pruned ones before it give."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

import torch
from torch import Tensor, nn

from trimtab.parameters import Entry
from trimtab.parameters.reparametrised import Reparametrised
from trimtab.pruning.calibration import stages
from trimtab.pruning.data_scores import DataScore
from trimtab.pruning.scores import check_scores
from trimtab.pruning.undo import Saved, put_back


class _Decided(Protocol):
    @property
    def masks(self) -> list[Tensor]: ...


Decided = TypeVar("Decided", bound=_Decided)


def decided_in_turn(
    model: nn.Module,
    chosen: Sequence[Entry],
    score: DataScore,
    order: tuple[Sequence[Entry], bool],
    decide: Callable[[int, Tensor], Decided],
) -> list[Decided]:
    """What `decide(position, score)` says of each chosen weight, asked in the order in which the data reach them.

    `order` is what `Calibration.order` found of these weights. The weights that were decided are zero where they go while
    later ones are scored; the model is as it was afterwards.
    Beside a copy of each weight, memory does not grow with the number of layers.
    """
    ordered, once = order
    position = {id(entry): number for number, entry in enumerate(chosen)}
    found: dict[int, Decided] = {}
    saved: Saved = []
    computed: list[tuple[Reparametrised, Saved]] = []
    try:
        for step in stages(model, ordered, score.by):
            scores = score.of(model, step, early=once)
            check_scores(step, scores)
            for entry, value in zip(step, scores, strict=True):
                place = position[id(entry)]
                found[place] = decide(place, value)
                (gone,) = found[place].masks
                with torch.no_grad():
                    if entry.computed is None:
                        saved.append((entry.parameter, entry.parameter.detach().clone()))
                        entry.parameter.masked_fill_(gone, 0)
                    else:
                        computed.append((entry.computed, entry.computed.prune_(~gone)))
    finally:
        put_back(saved)
        for weight, undo in reversed(computed):
            weight.restore_(undo)
            weight.refresh()
    return [found[place] for place in range(len(chosen))]
