"""Trimtab: small levers on a training run that decide what the trained network can bear, and proof that they work.

The two lines for a loop of your own:

    handle = trimtab.attach(optimizer, trimtab.penalties.VarianceAmplifier(strength=1e-5))
    pruned = trimtab.pruning.one_shot(model, sparsity=0.9)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from trimtab.levers import Handle, Lever, attach

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

_ROOMS = frozenset(__all__) - {"Handle", "Lever", "attach"}


def __getattr__(name: str) -> object:
    """Import a room when it is first used, so that `import trimtab` costs little more than torch."""
    if name in _ROOMS:
        return importlib.import_module(f"trimtab.{name}")
    raise AttributeError(f"module 'trimtab' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
