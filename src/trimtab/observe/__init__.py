"""Looks at a network and its training and changes nothing: sizes, multiply-adds, weights, gradients and updates over time."""

from trimtab.observe.attention_entropy import attention_entropy
from trimtab.observe.cka import delta_cka, linear_cka
from trimtab.observe.examples import ExampleScores
from trimtab.observe.gradient_tracker import GradientTracker
from trimtab.observe.inflection import InflectionProbe, InflectionRow, ski
from trimtab.observe.meters import (
    ActivationStatistics,
    AttentionStatistics,
    EffectiveRank,
    GradientNoiseScale,
    Meter,
    NLMCosine,
    SoftmaxCollapse,
    UpdateRatio,
    effective_rank,
    softmax_collapse,
)
from trimtab.observe.model_summary import LayerRow, ModelSummary, summary
from trimtab.observe.sinks import Sink, open_sink
from trimtab.observe.task_cosines import TaskCosines, task_cosines
from trimtab.observe.tensorboard import TensorBoard
from trimtab.observe.weights import WeightDistribution, weight_distribution
from trimtab.tables.parts import read_table
from trimtab.tables.recorder import Recorder

__all__ = [
    "ActivationStatistics",
    "AttentionStatistics",
    "EffectiveRank",
    "GradientNoiseScale",
    "ExampleScores",
    "GradientTracker",
    "InflectionProbe",
    "InflectionRow",
    "LayerRow",
    "Meter",
    "ModelSummary",
    "NLMCosine",
    "Recorder",
    "Sink",
    "SoftmaxCollapse",
    "TaskCosines",
    "TensorBoard",
    "UpdateRatio",
    "WeightDistribution",
    "attention_entropy",
    "delta_cka",
    "effective_rank",
    "linear_cka",
    "open_sink",
    "read_table",
    "ski",
    "softmax_collapse",
    "summary",
    "task_cosines",
    "weight_distribution",
]
