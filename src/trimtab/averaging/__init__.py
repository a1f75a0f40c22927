"""Averages of the weights along a run, put in their place at its end."""

from __future__ import annotations

from trimtab.averaging.base import WeightAverage
from trimtab.averaging.ema import EMA
from trimtab.averaging.mean import MeanWeights

__all__ = ["EMA", "MeanWeights", "WeightAverage"]
