"""Looks at a network and its training and changes nothing: sizes, multiply-adds, weights, gradients and updates over time."""

from trimtab.observe.gradient_tracker import GradientTracker
from trimtab.observe.model_summary import LayerRow, ModelSummary, summary
from trimtab.observe.sinks import Sink, open_sink
from trimtab.observe.tensorboard import TensorBoard
from trimtab.observe.weights import WeightDistribution, weight_distribution
from trimtab.tables.parts import read_table
from trimtab.tables.recorder import Recorder

__all__ = [
    "GradientTracker",
    "LayerRow",
    "ModelSummary",
    "Recorder",
    "Sink",
    "TensorBoard",
    "open_sink",
    "WeightDistribution",
    "read_table",
    "summary",
    "weight_distribution",
]
