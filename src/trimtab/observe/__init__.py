"""Looks at a network and its training and changes nothing: sizes, multiply-adds, weights, gradients and updates over time."""

from trimtab.observe.examples import ExampleScores
from trimtab.observe.gradient_tracker import GradientTracker
from trimtab.observe.meters import (
    ActivationStatistics,
    AttentionStatistics,
    GradientNoiseScale,
    Meter,
    NLMCosine,
    SoftmaxCollapse,
    UpdateRatio,
    softmax_collapse,
)
from trimtab.observe.model_summary import LayerRow, ModelSummary, summary
from trimtab.observe.sinks import Sink, open_sink
from trimtab.observe.tensorboard import TensorBoard
from trimtab.observe.weights import WeightDistribution, weight_distribution
from trimtab.tables.parts import read_table
from trimtab.tables.recorder import Recorder

__all__ = [
    "ActivationStatistics",
    "AttentionStatistics",
    "GradientNoiseScale",
    "ExampleScores",
    "GradientTracker",
    "LayerRow",
    "Meter",
    "ModelSummary",
    "NLMCosine",
    "Recorder",
    "Sink",
    "SoftmaxCollapse",
    "TensorBoard",
    "UpdateRatio",
    "WeightDistribution",
    "open_sink",
    "read_table",
    "softmax_collapse",
    "summary",
    "weight_distribution",
]
