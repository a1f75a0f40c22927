"""Which tensors a lever touches: the one place where parameters are selected.

Every lever, score and observer asks here. A parameter is named, counted once however many modules share it,
and left out with a reason that can be printed. What it is to its owner, and which way it lies, `layouts` knows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Generic, TypeVar

from torch import nn

from trimtab.checks import one_of, whole
from trimtab.parameters.kinds import (
    PACKED,
    check_has_shape,
    packed_weights,
    reason_against_dtype,
)
from trimtab.parameters.layouts import NO_WEIGHT, Layout, register_layout
from trimtab.parameters.listing import (
    Entry,
    Source,
    computed_weights,
    entries,
    group_places,
    no_axis,
    output_axis,
    with_names,
)
from trimtab.parameters.wrappers import unwrapped

__all__ = [
    "PRUNABLE",
    "Entry",
    "Judged",
    "Layout",
    "Rule",
    "Selection",
    "Source",
    "computed_weights",
    "entries",
    "group_places",
    "no_axis",
    "output_axis",
    "register_layout",
    "rule_or",
    "select",
    "total_elements",
    "unwrapped",
    "with_names",
]


Found = TypeVar("Found")


@dataclass(frozen=True)
class Rule:
    """Says which parameters count: enough dimensions, trainable, weights by their owner's word, names that match.

    Args:
        min_ndim: least number of dimensions. Default 2 [ours]: biases and norm scales are left out.
        include: shell patterns; when given, a name must match one of them, and what matches counts whatever its role.
        exclude: shell patterns; a name must match none of them.
        frozen: whether parameters with `requires_grad=False` count. Default False.
        role: "weight": only weights of products and tables of embeddings, as the owner says; tables of positions, scales and
            parameters of unknown modules are left out. "any": whatever the parameter is. Default None: "weight" where
            `min_ndim` is 2 or more, else "any" [ours].

    Raises:
        ValueError: `min_ndim` is negative, or an unknown role.

    Example:
        >>> import torch
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3))
        >>> [entry.name for entry in select(net, Rule()).chosen]
        ['0.weight']
    """

    min_ndim: int = 2
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    frozen: bool = False
    role: str | None = None

    def __post_init__(self) -> None:
        if self.role is not None:
            one_of("role", self.role, ("weight", "any"))
        whole("min_ndim", self.min_ndim, 0)
        for label in ("include", "exclude"):
            if isinstance(getattr(self, label), str):
                raise TypeError(f"{label} must be a tuple of patterns, got the string {getattr(self, label)!r}")

    def reason_against(self, entry: Entry) -> str | None:
        """Why `entry` is left out, or None when it counts."""
        if (self.include or self.exclude) and not entry.named:
            raise ValueError(
                f"parameter {entry.name} has no name, so include={self.include} and exclude={self.exclude} cannot be "
                "applied; pass model=... or build the optimizer from model.named_parameters()"
            )
        check_has_shape(entry.name, entry.parameter)
        if (reason := reason_against_dtype(entry.parameter)) is not None:
            return reason
        if entry.parameter.ndim < self.min_ndim:
            return f"{entry.parameter.ndim} dimension(s), fewer than {self.min_ndim}"
        if not self.frozen and not entry.parameter.requires_grad:
            return "frozen (requires_grad=False)"
        names = (entry.name, *entry.aliases)
        for pattern in self.exclude:
            if any(fnmatchcase(name, pattern) for name in names):
                return f"name matches exclude pattern {pattern!r}"
        if self.include and not any(fnmatchcase(name, pattern) for name in names for pattern in self.include):
            return f"name matches no include pattern of {self.include}"
        if self.role == "any" or (self.role is None and self.min_ndim < 2):
            return None
        if entry.view_of is not None:
            return f"a view of the memory of {entry.view_of}, which counts for it"
        return None if self.include or entry.role == "weight" else entry.why or NO_WEIGHT["other"]


PRUNABLE = Rule(exclude=("*cls_token", "*pos_embed*"), frozen=True)
"""What counts as prunable by default: weights of two dimensions or more, without class tokens and position embeddings [ours],
trainable or not."""


@dataclass(frozen=True)
class Selection:
    """What a rule chose and what it left out, each with its reason."""

    chosen: list[Entry]
    left_out: list[tuple[Entry, str]]


def select(source: Source, rule: Rule | None = None, *, computed: bool = False) -> Selection:
    """Apply `rule` (default `Rule()`) to the parameters of `source`.

    With `computed`, weights that a module computes from others (weight_norm, spectral_norm, orthogonal) are judged as the one
    weight that the product uses, see `computed_weights`; otherwise their parts are judged one by one.

    Example:
        >>> import torch
        >>> selection = select(torch.nn.Linear(2, 2))
        >>> [entry.name for entry in selection.chosen], [reason for _, reason in selection.left_out]
        (['weight'], ['1 dimension(s), fewer than 2'])
    """
    rule = Rule() if rule is None else rule
    chosen: list[Entry] = []
    left_out: list[tuple[Entry, str]] = []
    listed = entries(source)
    for entry in computed_weights(listed) if computed else listed:
        reason = rule.reason_against(entry)
        if reason is None:
            chosen.append(entry)
        else:
            left_out.append((entry, reason))
    if isinstance(source, nn.Module):
        for name, weight, owner in packed_weights(source):
            left_out.append((Entry(name, weight, owner=owner), PACKED))
    return Selection(chosen, left_out)


def rule_or(rule: Rule | None, default: Rule) -> Rule:
    """The rule that was given, `default` for None; TypeError when it is none.

    Example:
        >>> rule_or(None, Rule(min_ndim=0)).min_ndim
        0
    """
    if rule is not None and not isinstance(rule, Rule):
        raise TypeError(f"rule must be a trimtab.parameters.Rule or None, got {rule!r}")
    return default if rule is None else rule


class Judged(Generic[Found]):
    """What was found of a list of parameters; asked again only when the list is another one, or has grown.

    `attach` hands over the same list until parameters change, so that a rule's patterns need not be matched every step.

    Example:
        >>> import torch
        >>> judged, listed = Judged(), entries(torch.nn.Linear(2, 2))
        >>> judged(listed, len), judged(listed, sum)  # the second is not asked
        (2, 2)
    """

    def __init__(self) -> None:
        self._kept: tuple[Sequence[Entry], int, Found] | None = None

    def __call__(self, parameters: Sequence[Entry], find: Callable[[Sequence[Entry]], Found]) -> Found:
        """What `find` says of these parameters; kept unless it raises."""
        if self._kept is None or self._kept[0] is not parameters or self._kept[1] != len(parameters):
            self._kept = (parameters, len(parameters), find(parameters))
        return self._kept[2]


def total_elements(chosen: Sequence[Entry]) -> int:
    """Number of elements over all entries (of the whole tensors, also when they are sharded); memory that two share once."""
    return sum(entry.parameter.numel() for entry in chosen if entry.view_of is None)
