"""For libraries of others: callbacks for `lightning` and `hugging_face`, combiners from and for `torchjd`, losses of policies
in `trl`, `verl`, `skyrl` and `prime_rl`.

Each needs its library: `pip install trimtab[lightning]`, `trimtab[transformers]`, `trimtab[torchjd]`, `pip install trl`.
Nothing else in Trimtab imports them.
"""

from __future__ import annotations

import importlib

__all__ = ["hugging_face", "lightning", "prime_rl", "skyrl", "torchjd", "trl", "verl"]


def __getattr__(name: str) -> object:
    """Import an adapter, and with it its library, when it is first used."""
    if name in __all__:
        return importlib.import_module(f"trimtab.adapters.{name}")
    raise AttributeError(f"module 'trimtab.adapters' has no attribute {name!r}")
