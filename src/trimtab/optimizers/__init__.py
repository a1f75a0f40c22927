"""Optimizers that take two gradients per step, as wrappers of any `torch.optim` optimizer; Muon with SGD for the rest."""

from trimtab.optimizers.asam import ASAM
from trimtab.optimizers.cram import CrAM
from trimtab.optimizers.muon import Muon
from trimtab.optimizers.sam import SAM
from trimtab.optimizers.two_pass import TwoPassOptimizer

__all__ = ["ASAM", "CrAM", "Muon", "SAM", "TwoPassOptimizer"]
