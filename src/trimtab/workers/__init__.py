"""Many workers: robust exchange where some lie, codes against slow ones, private gradients.

rule = workers.NearestNeighbourAverage(f=2)
optimizer.step()
rule.exchange_(model)      # on every rank
"""

from trimtab.workers.coding import Scheme, StragglerModel, bursty, coding_plan, simulate_stragglers
from trimtab.workers.gradient_difference import GradientDifference, Release
from trimtab.workers.group_clip import GroupClip, lora_groups
from trimtab.workers.rules import Krum, Mean, Median, NearestNeighbourAverage, Rule, TrimmedMean
from trimtab.workers.simulation import WorkerSimulation, sign_flip

__all__ = [
    "GradientDifference",
    "GroupClip",
    "Krum",
    "Mean",
    "Median",
    "NearestNeighbourAverage",
    "Release",
    "Rule",
    "Scheme",
    "StragglerModel",
    "TrimmedMean",
    "WorkerSimulation",
    "bursty",
    "coding_plan",
    "lora_groups",
    "sign_flip",
    "simulate_stragglers",
]
