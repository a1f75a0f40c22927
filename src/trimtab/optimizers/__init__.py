"""Optimizers that take two gradients per step, as wrappers of any `torch.optim` optimizer; Muon, DiffGrad, AdamP, SGDP."""

from trimtab.optimizers.adamp import AdamP
from trimtab.optimizers.alarm import Alarm
from trimtab.optimizers.asam import ASAM
from trimtab.optimizers.classp import CLASSP
from trimtab.optimizers.convergence_radius import ConvergenceRadius
from trimtab.optimizers.cram import CrAM
from trimtab.optimizers.diffgrad import DiffGrad
from trimtab.optimizers.drift import DriftLearningRate
from trimtab.optimizers.fira import Fira, fira_groups
from trimtab.optimizers.grad_norm_smooth import GradNormSmooth
from trimtab.optimizers.learning_rates import SpectralRate, learning_rate_from_spectrum, scale_learning_rate
from trimtab.optimizers.lora_plus import lora_plus_groups
from trimtab.optimizers.momentum_reset import MomentumReset
from trimtab.optimizers.muon import Muon
from trimtab.optimizers.mup import mup_groups, mup_scale_
from trimtab.optimizers.sam import SAM
from trimtab.optimizers.sgdp import SGDP
from trimtab.optimizers.spike_guard import SpikeGuard
from trimtab.optimizers.two_pass import TwoPassOptimizer

__all__ = [
    "ASAM",
    "AdamP",
    "Alarm",
    "CLASSP",
    "ConvergenceRadius",
    "CrAM",
    "DiffGrad",
    "DriftLearningRate",
    "Fira",
    "GradNormSmooth",
    "MomentumReset",
    "Muon",
    "SAM",
    "SGDP",
    "SpectralRate",
    "SpikeGuard",
    "TwoPassOptimizer",
    "fira_groups",
    "learning_rate_from_spectrum",
    "lora_plus_groups",
    "mup_groups",
    "mup_scale_",
    "scale_learning_rate",
]
