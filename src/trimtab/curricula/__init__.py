"""Data order: which items a model sees when. Stage schedulers, a sampler for any DataLoader, losses weighted by text span.

Needs torch alone; MedCLM is one user of it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from trimtab.curricula.adaptive import Adaptive
from trimtab.curricula.base import STAGES, Decision, StageScheduler
from trimtab.curricula.batch_size import AdaptiveBatchSize, NoiseTest, noise_test
from trimtab.curricula.fixed import EasyOnly, HardOnly, Linear, Mixed, Reverse
from trimtab.curricula.loss import row_losses, weighted_cross_entropy
from trimtab.curricula.released import Released
from trimtab.curricula.sampler import CurriculumSampler
from trimtab.curricula.spans import SpanWeights, Tokens

__all__ = [
    "STAGES",
    "Adaptive",
    "AdaptiveBatchSize",
    "CurriculumSampler",
    "Decision",
    "EasyOnly",
    "HardOnly",
    "Linear",
    "Mixed",
    "NoiseTest",
    "Released",
    "Reverse",
    "SpanWeights",
    "StageScheduler",
    "Tokens",
    "create",
    "names",
    "noise_test",
    "row_losses",
    "weighted_cross_entropy",
]

_BY_NAME: dict[str, Callable[..., StageScheduler]] = {
    one.name: one for one in (Adaptive, Released, Linear, Mixed, EasyOnly, HardOnly, Reverse)
}


def names() -> tuple[str, ...]:
    """The names under which `create` knows the schedulers; the first is the default.

    Example:
        >>> names()
        ('adaptive', 'released', 'linear', 'mixed', 'easy_only', 'hard_only', 'reverse')
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
