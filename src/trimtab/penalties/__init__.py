"""Penalties: terms added to the loss, their gradients added just before the step, or a pull on the weights after it."""

from __future__ import annotations

from trimtab.penalties.base import Penalty
from trimtab.penalties.concentrate import Concentrate
from trimtab.penalties.decoupled import DecoupledPenalty
from trimtab.penalties.hoyer_square import HoyerSquare
from trimtab.penalties.l1 import L1
from trimtab.penalties.proximal_l1 import ProximalL1
from trimtab.penalties.safe import SAFE
from trimtab.penalties.variance_amplifier import VarianceAmplifier

__all__ = ["Concentrate", "DecoupledPenalty", "HoyerSquare", "L1", "SAFE", "Penalty", "ProximalL1", "VarianceAmplifier"]
