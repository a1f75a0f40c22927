"""Trimtab: small levers on a training run that decide what the trained network can bear, and proof that they work.

The two lines for a loop of your own:

    handle = trimtab.attach(optimizer, trimtab.penalties.VarianceAmplifier(strength=1e-5))
    pruned = trimtab.pruning.one_shot(model, sparsity=0.9)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trimtab import (
        adapters,
        curricula,
        datasets,
        deploy,
        gradients,
        models,
        observe,
        optimizers,
        penalties,
        precision,
        pruning,
        report,
        runs,
        studies,
    )
    from trimtab.levers import Handle, Lever, attach

__version__ = "0.1.0"
__all__ = [
    "Handle",
    "Lever",
    "attach",
    "adapters",
    "curricula",
    "datasets",
    "deploy",
    "gradients",
    "models",
    "observe",
    "optimizers",
    "penalties",
    "precision",
    "pruning",
    "report",
    "runs",
    "studies",
]

_FROM_LEVERS = frozenset({"Handle", "Lever", "attach"})


def __getattr__(name: str) -> object:
    """Import what is asked for when it is first used, so that the command line answers without torch where it can."""
    if name in _FROM_LEVERS:
        return getattr(importlib.import_module("trimtab.levers"), name)
    if name in __all__:
        return importlib.import_module(f"trimtab.{name}")
    raise AttributeError(f"module 'trimtab' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
