"""Gradients: transforms that change them in place, just before the optimizer's step, and that compose."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from trimtab.gradients.adaptive_clip import AdaptiveClip
from trimtab.gradients.autoscale import Autoscale
from trimtab.gradients.base import GradientTransform
from trimtab.gradients.centralize import Centralize
from trimtab.gradients.chain import Chain
from trimtab.gradients.clip_norm import ClipNorm
from trimtab.gradients.z_score import ZScore

__all__ = [
    "AdaptiveClip",
    "Autoscale",
    "Centralize",
    "Chain",
    "ClipNorm",
    "GradientTransform",
    "ZScore",
    "create",
    "names",
]

_BY_NAME: dict[str, Callable[..., GradientTransform]] = {
    "autoscale": Autoscale,
    "zscore": ZScore,
    "centralize": Centralize,
    "adaptive_clip": AdaptiveClip,
    "clip_norm": ClipNorm,
}


def names() -> tuple[str, ...]:
    """The names under which `create` and recipes know the transforms.

    Example:
        >>> names()
        ('autoscale', 'zscore', 'centralize', 'adaptive_clip', 'clip_norm')
    """
    return tuple(_BY_NAME)


def create(name: str, **settings: Any) -> GradientTransform:
    """The transform of that name with these settings.

    Raises:
        ValueError: the name is unknown, or a setting is out of range.
        TypeError: the transform has no such setting.

    Example:
        >>> create("clip_norm", max_norm=1.0)
        ClipNorm(max_norm=1.0, norm_type=2.0, min_ndim=0)
    """
    if name not in _BY_NAME:
        raise ValueError(f"unknown gradient transform {name!r}; known are {', '.join(_BY_NAME)}")
    return _BY_NAME[name](**settings)
