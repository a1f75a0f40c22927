"""Trimtab: small levers on a training run that decide what the trained network can bear, and proof that they work.

The two lines for a loop of your own:

    handle = trimtab.attach(optimizer, trimtab.penalties.VarianceAmplifier(strength=1e-5))
    pruned = trimtab.pruning.one_shot(model, sparsity=0.9)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from trimtab.lazy import lazily

if TYPE_CHECKING:
    from trimtab import (
        adapters,
        averaging,
        curricula,
        datasets,
        deploy,
        gradients,
        losses,
        medclm,
        models,
        multitask,
        observe,
        optimizers,
        penalties,
        precision,
        pruning,
        report,
        runs,
        schemes,
        studies,
        workers,
    )
    from trimtab.levers import Handle, Lever, attach

__version__ = "0.1.0"
__all__ = [
    "Handle",
    "Lever",
    "attach",
    "adapters",
    "averaging",
    "curricula",
    "datasets",
    "deploy",
    "gradients",
    "losses",
    "medclm",
    "models",
    "multitask",
    "observe",
    "optimizers",
    "penalties",
    "precision",
    "pruning",
    "report",
    "runs",
    "schemes",
    "studies",
    "workers",
]

_FROM_LEVERS = dict.fromkeys(("Handle", "Lever", "attach"), "levers")
if not TYPE_CHECKING:
    __getattr__, __dir__ = lazily(__name__, {name: _FROM_LEVERS.get(name, name) for name in __all__})
