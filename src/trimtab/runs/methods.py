"""Named ways of training: each is a base optimizer, at most one penalty and at most one sharpness-aware wrapper."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    pass


@dataclass(frozen=True)
class Method:
    """What a name stands for."""

    description: str
    penalty: Literal["var", "l1", "hoyer"] | None = None
    wrapper: Literal["sam", "asam", "cram", "cram+"] | None = None
    optimizer: Literal["sgd", "adamw"] | None = None

    @property
    def sections(self) -> tuple[str, ...]:
        """Recipe sections that this method reads beside the base optimizer's."""
        names = (self.penalty, self.wrapper.removesuffix("+") if self.wrapper else None)
        return tuple(name for name in names if name)


METHODS: dict[str, Method] = {
    "sgd": Method("stochastic gradient descent, the baseline", optimizer="sgd"),
    "adamw": Method("Adam with decoupled weight decay", optimizer="adamw"),
    "var": Method("variance amplifying regularizer", penalty="var"),
    "l1": Method("sum of magnitudes", penalty="l1"),
    "hoyer": Method("Hoyer-Square, (sum |w|)^2 / sum w^2 per tensor", penalty="hoyer"),
    "sam": Method("sharpness-aware minimisation", wrapper="sam"),
    "asam": Method("adaptive sharpness-aware minimisation", wrapper="asam"),
    "cram": Method("compression-aware minimisation", wrapper="cram"),
    "cram+": Method("compression-aware minimisation with the plain gradient added", wrapper="cram+"),
    "var+sam": Method("variance amplifying regularizer under SAM", penalty="var", wrapper="sam"),
    "var+asam": Method("variance amplifying regularizer under ASAM", penalty="var", wrapper="asam"),
    "var+cram+": Method("variance amplifying regularizer under CrAM+", penalty="var", wrapper="cram+"),
    "l1+sam": Method("sum of magnitudes under SAM", penalty="l1", wrapper="sam"),
    "hoyer+sam": Method("Hoyer-Square under SAM", penalty="hoyer", wrapper="sam"),
}


TRANSFORMS = ("autoscale", "zscore", "centralize", "adaptive_clip")
"""Gradient transforms that a recipe may name; each has a section of the same name."""


def check_method(name: str) -> str:
    """`name` itself when it is known; ValueError with the nearest names otherwise."""
    if name in METHODS:
        return name
    close = difflib.get_close_matches(name, METHODS, n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(close)}?" if close else f"methods are {', '.join(METHODS)}"
    raise ValueError(f"unknown method {name!r}; {hint}")
