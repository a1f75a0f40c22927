"""Data sets in memory and their batches: `load("digits")`, then `Batches(data.train, data, 64, seed=0).epoch(0)`."""

from trimtab.datasets.batches import Batches, Sample
from trimtab.datasets.dataset import DataSet, Split
from trimtab.datasets.registry import load, names

__all__ = ["Batches", "DataSet", "Sample", "Split", "load", "names"]
