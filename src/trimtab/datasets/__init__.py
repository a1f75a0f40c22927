"""Data sets in memory and their batches: `load("digits")`, then `Batches(data.train, data, 64, seed=0).epoch(0)`."""

from typing import TYPE_CHECKING

from trimtab.lazy import lazily

if TYPE_CHECKING:
    from trimtab.datasets.batches import Batches, Sample
    from trimtab.datasets.catalogue import names
    from trimtab.datasets.dataset import DataSet, Split
    from trimtab.datasets.keeping import keep
    from trimtab.datasets.registry import load
else:
    __getattr__, __dir__ = lazily(
        __name__,
        {
            "Batches": "batches",
            "Sample": "batches",
            "DataSet": "dataset",
            "Split": "dataset",
            "keep": "keeping",
            "load": "registry",
            "names": "catalogue",
        },
    )

__all__ = ["Batches", "DataSet", "Sample", "Split", "keep", "load", "names"]
