"""Penalties: terms added to the loss, or their gradients added just before the step."""

from __future__ import annotations

from trimtab.penalties.base import Penalty
from trimtab.penalties.hoyer_square import HoyerSquare
from trimtab.penalties.l1 import L1
from trimtab.penalties.variance_amplifier import VarianceAmplifier

__all__ = ["HoyerSquare", "L1", "Penalty", "VarianceAmplifier"]
