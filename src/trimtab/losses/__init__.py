"""Losses: functions of a network's outputs and targets, one file each."""

from trimtab.losses import policy
from trimtab.losses.align import align
from trimtab.losses.balance import balance
from trimtab.losses.occurrence import DynamicsWeights, occurrence_weights
from trimtab.losses.pseudo_huber import pseudo_huber
from trimtab.losses.stable_max import StableMaxCrossEntropy, stable_log_softmax, stable_max_cross_entropy
from trimtab.losses.z_loss import ZLossCrossEntropy, z_loss

__all__ = [
    "DynamicsWeights",
    "StableMaxCrossEntropy",
    "ZLossCrossEntropy",
    "align",
    "balance",
    "occurrence_weights",
    "policy",
    "pseudo_huber",
    "stable_log_softmax",
    "stable_max_cross_entropy",
    "z_loss",
]
