"""Gradients: transforms that change them in place, just before the optimizer's step, and that compose."""

from __future__ import annotations

from trimtab.gradients.ada_gc import AdaGC
from trimtab.gradients.adaptive_clip import AdaptiveClip
from trimtab.gradients.autoscale import Autoscale
from trimtab.gradients.base import GradientTransform
from trimtab.gradients.centralize import Centralize
from trimtab.gradients.chain import Chain
from trimtab.gradients.clip_norm import ClipNorm
from trimtab.gradients.norm_growth import NormGrowthLimiter
from trimtab.gradients.norm_match import NormMatch
from trimtab.gradients.perpendicular import PerpendicularGradient
from trimtab.gradients.reversal import GradientReversal
from trimtab.gradients.routed_parts import forget_heads, forget_units
from trimtab.gradients.routing import RouteByLabel
from trimtab.gradients.tract import TrAct, first_layer
from trimtab.gradients.vector_clip import ActivationClip, clip_vectors_
from trimtab.gradients.z_score import ZScore
from trimtab.gradients.zclip import ZClip

__all__ = [
    "ActivationClip",
    "clip_vectors_",
    "AdaGC",
    "AdaptiveClip",
    "Autoscale",
    "Centralize",
    "Chain",
    "ClipNorm",
    "GradientReversal",
    "GradientTransform",
    "NormGrowthLimiter",
    "NormMatch",
    "PerpendicularGradient",
    "RouteByLabel",
    "TrAct",
    "ZClip",
    "ZScore",
    "first_layer",
    "forget_heads",
    "forget_units",
]
