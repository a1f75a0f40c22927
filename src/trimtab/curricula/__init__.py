"""Data order: which items a model sees when. Stage schedulers, a sampler for any DataLoader, losses weighted by text span.

Needs torch alone; MedCLM is one user of it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from trimtab.curricula.adaptive import Adaptive
from trimtab.curricula.base import STAGES, Decision, StageScheduler
from trimtab.curricula.batch_size import AdaptiveBatchSize, NoiseTest, noise_test
from trimtab.curricula.coreset import BatchCoreset, Chosen
from trimtab.curricula.coreset_features import Moments, adam_direction, last_layer_features, zeroth_order_features
from trimtab.curricula.diversity import distinct, edit_diversity, self_bleu_diversity
from trimtab.curricula.facility import facility_location, similarity
from trimtab.curricula.fixed import EasyOnly, HardOnly, Linear, Mixed, Reverse
from trimtab.curricula.loss import row_losses, weighted_cross_entropy
from trimtab.curricula.packing import PackedBatches, pack
from trimtab.curricula.released import Released
from trimtab.curricula.rollout_samplers import BetaDifficultySampler, VarianceSampler
from trimtab.curricula.sampler import CurriculumSampler
from trimtab.curricula.spans import SpanWeights, Tokens

__all__ = [
    "STAGES",
    "Adaptive",
    "AdaptiveBatchSize",
    "BatchCoreset",
    "BetaDifficultySampler",
    "Chosen",
    "CurriculumSampler",
    "Decision",
    "EasyOnly",
    "HardOnly",
    "Linear",
    "Mixed",
    "Moments",
    "NoiseTest",
    "PackedBatches",
    "Released",
    "Reverse",
    "SpanWeights",
    "StageScheduler",
    "Tokens",
    "VarianceSampler",
    "adam_direction",
    "create",
    "distinct",
    "edit_diversity",
    "facility_location",
    "last_layer_features",
    "names",
    "noise_test",
    "pack",
    "row_losses",
    "self_bleu_diversity",
    "similarity",
    "weighted_cross_entropy",
    "zeroth_order_features",
]

_BY_NAME: dict[str, Callable[..., StageScheduler]] = {
    one.name: one for one in (Mixed, Adaptive, Released, Linear, EasyOnly, HardOnly, Reverse)
}


def names() -> tuple[str, ...]:
    """The names under which `create` knows the schedulers; the first is the default.

    Example:
        >>> names()
        ('mixed', 'adaptive', 'released', 'linear', 'easy_only', 'hard_only', 'reverse')
    """
    return tuple(_BY_NAME)


def create(name: str, **settings: Any) -> StageScheduler:
    """The scheduler of that name with these settings.

    Raises:
        ValueError: the name is unknown, or a setting is out of range.
        TypeError: the scheduler has no such setting.

    Example:
        >>> create("linear", epochs=10).stages
        ('easy', 'medium', 'hard')
    """
    if name not in _BY_NAME:
        raise ValueError(f"unknown stage scheduler {name!r}; known are {', '.join(_BY_NAME)}")
    return _BY_NAME[name](**settings)
