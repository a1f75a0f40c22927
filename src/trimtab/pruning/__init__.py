"""Pruning: a score per weight, a scope to compare in, a pattern, exact counts; and what follows it."""

from trimtab.pruning.ac_dc import ACDC
from trimtab.pruning.decompose import Decomposed, decompose
from trimtab.pruning.depth import DepthPlan, depth_plan
from trimtab.pruning.dynamic_sparse import DynamicSparse
from trimtab.pruning.gates import Gates, gate_channels, gate_heads
from trimtab.pruning.gradient_scores import GraSP, Snip, Taylor
from trimtab.pruning.gradual import GradualPruning
from trimtab.pruning.hard_concrete import HardConcreteGate, match_output_loss
from trimtab.pruning.kept import KeepMasks, keep_masks
from trimtab.pruning.lora import merge_lora
from trimtab.pruning.low_rank import LowRankProjection
from trimtab.pruning.mask_file import load_masks, save_masks
from trimtab.pruning.mask_tuning import MaskTuning, layers_by_mask_gradient
from trimtab.pruning.movement import MovementPruning
from trimtab.pruning.nm_decay import NMDecay
from trimtab.pruning.one_shot import one_shot, sweep
from trimtab.pruning.owl import owl
from trimtab.pruning.own_zeros import apply_masks, masks_of
from trimtab.pruning.pruned import Pruned
from trimtab.pruning.recalibration import Recalibration, recalibrate
from trimtab.pruning.scopes import SCOPES, erk_densities
from trimtab.pruning.scores import SCORES
from trimtab.pruning.selection_plan import DEFAULT_RULE
from trimtab.pruning.soft_threshold import SoftThreshold
from trimtab.pruning.sparse_gpt import sparse_gpt
from trimtab.pruning.wanda import Wanda

__all__ = [
    "ACDC",
    "DEFAULT_RULE",
    "SCOPES",
    "SCORES",
    "Decomposed",
    "DepthPlan",
    "DynamicSparse",
    "Gates",
    "GraSP",
    "GradualPruning",
    "HardConcreteGate",
    "KeepMasks",
    "LowRankProjection",
    "MaskTuning",
    "MovementPruning",
    "NMDecay",
    "Pruned",
    "Recalibration",
    "Snip",
    "SoftThreshold",
    "Taylor",
    "Wanda",
    "apply_masks",
    "decompose",
    "depth_plan",
    "erk_densities",
    "gate_channels",
    "gate_heads",
    "keep_masks",
    "layers_by_mask_gradient",
    "load_masks",
    "masks_of",
    "match_output_loss",
    "merge_lora",
    "one_shot",
    "owl",
    "recalibrate",
    "save_masks",
    "sparse_gpt",
    "sweep",
]
