"""Looks at a network and changes nothing: sizes, multiply-adds, the distribution of its weights."""

from trimtab.observe.model_summary import LayerRow, ModelSummary, summary
from trimtab.observe.weights import WeightDistribution, weight_distribution

__all__ = ["LayerRow", "ModelSummary", "WeightDistribution", "summary", "weight_distribution"]
