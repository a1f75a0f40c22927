"""Meters: what a training run tells of itself step by step, beside its gradients; each is watched by a tracker or a guard."""

from trimtab.observe.meters.activations import ActivationStatistics
from trimtab.observe.meters.attention import AttentionStatistics
from trimtab.observe.meters.effective_rank import EffectiveRank, effective_rank
from trimtab.observe.meters.meter import Meter
from trimtab.observe.meters.nlm_cosine import NLMCosine
from trimtab.observe.meters.noise_scale import GradientNoiseScale
from trimtab.observe.meters.softmax_collapse import SoftmaxCollapse, softmax_collapse
from trimtab.observe.meters.update_ratio import UpdateRatio

__all__ = [
    "ActivationStatistics",
    "AttentionStatistics",
    "EffectiveRank",
    "GradientNoiseScale",
    "Meter",
    "NLMCosine",
    "SoftmaxCollapse",
    "UpdateRatio",
    "effective_rank",
    "softmax_collapse",
]
