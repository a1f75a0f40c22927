"""Whole training procedures, and what they draw."""

from typing import TYPE_CHECKING

from trimtab.lazy import lazily

if TYPE_CHECKING:
    from trimtab.schemes.gbnn import GBNNRegressor
    from trimtab.schemes.noprop import NoProp
    from trimtab.schemes.timesteps import UShapedTimestep
else:
    __getattr__, __dir__ = lazily(
        __name__, {"GBNNRegressor": "gbnn", "NoProp": "noprop", "UShapedTimestep": "timesteps"}
    )

__all__ = ["GBNNRegressor", "NoProp", "UShapedTimestep"]
