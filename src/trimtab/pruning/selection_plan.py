"""From a model and the three axes (score, scope, pattern) to masks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from trimtab.checks import below_one, one_of
from trimtab.collectives import is_sharded
from trimtab.parameters import PRUNABLE, Entry, Rule, entries, no_axis, select, total_elements
from trimtab.parameters.kinds import check_has_values, check_no_nan
from trimtab.parameters.wrappers import is_sharding_wrapper
from trimtab.pruning.data_scores import DataScore
from trimtab.pruning.layer_sparsity import Sparsity, by_layer
from trimtab.pruning.patterns import (
    Indivisible,
    input_axis,
    parse_pattern,
    reason_indivisible,
    reason_without_axis,
    refuse_indivisible,
)
from trimtab.pruning.propagation import decided_in_turn
from trimtab.pruning.scopes import IN_GROUPS, ROW, SCOPES, quotas
from trimtab.pruning.scores import Score, checked_score, scores_of
from trimtab.tensors.collapse import OnCollapse, guarded
from trimtab.tensors.selection import (
    Threshold,
    kth_threshold,
    removed_count,
    smallest_in_groups,
    smallest_in_rows,
    smallest_masks,
)

DEFAULT_RULE = PRUNABLE
Wanted = float | list[float]
"""A sparsity for all, or one for each chosen weight."""


@dataclass(frozen=True)
class Removal:
    """One pruned state: True where a weight goes, and the largest score that goes, per tensor."""

    masks: list[Tensor]
    thresholds: list[float]


def _overlaps(tensor: Tensor) -> bool:
    """Whether elements of a tensor lie in one place, as `expand` makes them."""
    return not tensor.is_meta and any(
        step == 0 and size > 1 for step, size in zip(tensor.stride(), tensor.shape, strict=True)
    )


class SelectionPlan:
    """The chosen weights of a model with a rule for choosing among them; serves any number of sparsities.

    Raises:
        ValueError: nothing to prune, NaN weights (named), sharded, lazy or meta weights, an unknown score, scope or pattern.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        score: Score,
        scope: str | None,
        pattern: str,
        rule: Rule | None,
        seed: int | torch.Generator,
        keep_first: bool,
        keep_last: bool,
        indivisible: Indivisible = "refuse",
        on_collapse: OnCollapse = "warn",
        reason_against: Callable[[Entry], str | None] | None = None,
    ) -> None:
        one_of("indivisible", indivisible, ("refuse", "leave_out"))
        self.on_collapse: OnCollapse = one_of("on_collapse", on_collapse, ("warn", "keep", "raise"))  # type: ignore[assignment]
        self.score, self.pattern, self.seed = checked_score(score), pattern, seed
        self.groups = parse_pattern(pattern)
        if scope not in (None, *SCOPES, ROW):
            raise ValueError(f"unknown scope {scope!r}; allowed are {', '.join((*SCOPES, ROW))}")
        self.told_scope = scope is not None
        scope = scope or (self.score.scope if isinstance(self.score, DataScore) else "global")
        self.scope = scope if self.groups is None else IN_GROUPS
        if isinstance(self.score, DataScore) and self.score.propagate and self.scope == "global":
            raise ValueError(
                f"{self.score!r} decides layer by layer, and scope 'global' compares all layers at once; give propagate=False, "
                "or another scope"
            )
        if any(is_sharding_wrapper(module) for module in model.modules()):
            raise ValueError(
                f"{type(model).__name__} holds its parameters as flat parts (FullyShardedDataParallel); gather the model into "
                "one process before pruning"
            )
        self.model = model
        selection = select(model, DEFAULT_RULE if rule is None else rule, computed=True)
        self.chosen, self.left_out = list(selection.chosen), list(selection.left_out)
        if keep_first and self.chosen:
            self._leave_out(min(self.chosen, key=lambda entry: entry.places[0]), "first layer, kept (keep_first)")
        if keep_last and self.chosen:
            self._leave_out(max(self.chosen, key=lambda entry: entry.places[1]), "last layer, kept (keep_last)")
        if self.groups is not None:
            for entry in list(self.chosen):
                if (reason := reason_without_axis(entry)) is not None:
                    self._leave_out(entry, reason)
        judge = self.score.reason_against if isinstance(self.score, DataScore) else reason_against
        for entry in list(self.chosen):
            reason = None if judge is None else judge(entry)
            if self.scope == ROW:
                reason = reason or no_axis(entry)
            if reason is not None:
                self._leave_out(entry, reason)
        for entry in list(self.chosen):
            if entry.parameter.numel() == 0:
                self._leave_out(entry, "empty")
            elif entry.computed is None and _overlaps(entry.parameter):
                self._leave_out(
                    entry, "its elements share memory (an expanded tensor): none can be zero by itself; clone it"
                )
        if self.groups is not None:
            judged = [(entry, reason_indivisible(entry, self.groups[1])) for entry in self.chosen]
            ragged = [(entry, reason) for entry, reason in judged if reason is not None]
            if indivisible == "refuse":
                refuse_indivisible(pattern, ragged)
            for entry, reason in ragged:
                self._leave_out(entry, reason)
        if not self.chosen:
            reasons = "; ".join(f"{entry.name}: {reason}" for entry, reason in self.left_out[:5])
            raise ValueError(f"{type(model).__name__} has nothing to prune ({reasons or 'no parameters'})")
        for entry in self.chosen:
            check_has_values(entry.name, entry.parameter)
            if is_sharded(entry.parameter):
                raise ValueError(f"{entry.name} is sharded (DTensor); gather the model into one process before pruning")
        self._refuse_nan()
        self.prunable = total_elements(self.chosen)
        self.total = total_elements(entries(model))

    def _leave_out(self, entry: Entry, reason: str) -> None:
        self.chosen = [other for other in self.chosen if other is not entry]
        self.left_out.append((entry, reason))

    @property
    def weights(self) -> list[Tensor]:
        """The chosen parameters, and the values of weights that are computed from others."""
        return [entry.parameter if entry.computed is None else entry.parameter.detach() for entry in self.chosen]

    @torch.no_grad()
    def _refuse_nan(self) -> None:
        for entry in self.chosen:
            weight = entry.parameter
            # A finite sum proves that no weight is NaN, in one pass without extra memory.
            if not bool(weight.sum().isfinite()):
                check_no_nan(entry.name, weight)

    def check_sparsity(self, sparsity: Sparsity | None) -> Wanted:
        """The sparsity to use; ValueError when it is out of [0, 1) or contradicts the pattern or scope."""
        if isinstance(sparsity, Mapping):
            if self.groups is not None:
                raise ValueError(f"pattern {self.pattern!r} fixes the sparsity of every layer; leave sparsity out")
            if self.scope == "global" and not self.told_scope:
                self.scope = "layer"
            if self.scope not in ("layer", ROW):
                raise ValueError(f"a sparsity for each layer needs scope 'layer' or 'row', got {self.scope!r}")
            return by_layer(self.chosen, sparsity)
        if self.groups is None:
            return below_one("sparsity", sparsity)
        fixed = 1 - self.groups[0] / self.groups[1]
        if (
            sparsity is not None and abs(below_one("sparsity", sparsity) - fixed) > 1e-6
        ):  # float32 scalars are that far off
            raise ValueError(
                f"pattern {self.pattern!r} fixes the sparsity at {fixed:g}; leave sparsity out, got {sparsity}"
            )
        return fixed

    def removals(self, sparsities: Sequence[Wanted], weights: Sequence[Tensor]) -> Removals:
        """Prepare the removals of all sparsities in shared passes over `weights` (those of the model or a copy)."""
        if isinstance(self.score, DataScore) and self.score.propagate:
            order = self.score.calibration.order(self.model, self.chosen)  # a layer not reached is told at once
            return InTurn(self, self.score, list(sparsities), order)
        scores, absolute = scores_of(self.model, self.chosen, weights, self.score, self.seed)
        return self.of_scores(scores, sparsities, absolute=absolute)

    def of_scores(
        self, scores: list[Tensor], sparsities: Sequence[Wanted], *, absolute: bool = False
    ) -> RemovalSequence:
        """The removals by these scores of the chosen weights."""
        table: list[list[tuple[list[int], Threshold]]] = [[] for _ in sparsities]
        if self.scope in SCOPES:
            groups = [quotas(scores, sparsity, self.scope) for sparsity in sparsities]
            for number in range(len(groups[0]) if groups else 0):
                positions = groups[0][number][0]
                counts = [group[number][1] for group in groups]
                found = kth_threshold([scores[position] for position in positions], counts, absolute=absolute)
                for row, threshold in zip(table, found, strict=True):
                    row.append((positions, threshold))
        return RemovalSequence(self, scores, absolute, table, list(sparsities))

    def counts(self, wanted: Wanted) -> dict[int, int]:
        """How many go of each chosen weight by position, where nothing is compared across weights."""
        if self.scope not in SCOPES:
            return {}
        found = quotas([entry.parameter for entry in self.chosen], wanted, self.scope)
        return {places[0]: count for places, count in found}

    def alone(self, position: int, score: Tensor, wanted: Wanted, counts: Mapping[int, int]) -> Removal:
        """What goes of one chosen weight, where nothing is compared across weights; `counts` as of the method."""
        if self.scope in SCOPES:
            (threshold,) = kth_threshold([score], [counts[position]])
            return Removal(smallest_masks([score], threshold), [threshold.value])
        return Removal([self.within(position, score, wanted)], [float("nan")])

    def within(self, position: int, score: Tensor, wanted: Wanted) -> Tensor:
        """What goes of one chosen weight by a pattern or inside its rows."""
        entry = self.chosen[position]
        if self.groups is not None:
            return smallest_in_groups(score, *self.groups, input_axis(entry))
        axis = entry.output_axis or 0
        inside = score.numel() // score.shape[axis]
        share = wanted[position] if isinstance(wanted, list) else wanted
        return smallest_in_rows(score, removed_count(share, inside), axis)


class Removals(Protocol):
    """The removals of several sparsities; masks are made one state at a time."""

    def at(self, number: int) -> Removal:
        """Masks of the sparsity at position `number`; the model is dense when it is called."""


@dataclass(frozen=True)
class InTurn:
    """The removals of several sparsities where each layer is scored by the inputs that pruned layers give."""

    plan: SelectionPlan
    score: DataScore
    sparsities: list[Wanted]
    order: tuple[list[Entry], bool]

    def __post_init__(self) -> None:
        assert len(self.order[0]) == len(self.plan.chosen)

    def at(self, number: int) -> Removal:
        """Masks of the sparsity at position `number`."""
        wanted = self.sparsities[number]
        counts = self.plan.counts(wanted)
        found = decided_in_turn(
            self.plan.model,
            self.plan.chosen,
            self.score,
            self.order,
            lambda position, score: self.plan.alone(position, score, wanted, counts),
        )
        return Removal([part.masks[0] for part in found], [part.thresholds[0] for part in found])


@dataclass(frozen=True)
class RemovalSequence:
    """The removals of several sparsities by scores that stay; masks are made one state at a time."""

    plan: SelectionPlan
    scores: list[Tensor]
    absolute: bool
    table: list[list[tuple[list[int], Threshold]]]
    sparsities: list[Wanted]

    def at(self, number: int) -> Removal:
        """Masks of the sparsity at position `number`."""
        if self.plan.scope not in SCOPES:
            masks = [
                self.plan.within(position, score.abs() if self.absolute else score, self.sparsities[number])
                for position, score in enumerate(self.scores)
            ]
            return Removal(masks, [float("nan")] * len(masks))
        found: dict[int, tuple[Tensor, float]] = {}
        for positions, threshold in self.table[number]:
            scores = [self.scores[position] for position in positions]
            masks = smallest_masks(scores, threshold, absolute=self.absolute)
            masks = guarded(
                [self.plan.chosen[position] for position in positions],
                scores,
                masks,
                threshold.count,
                self.plan.on_collapse,
                absolute=self.absolute,
            )
            for position, mask in zip(positions, masks, strict=True):
                found[position] = (mask, threshold.value)
        return Removal([found[p][0] for p in range(len(found))], [found[p][1] for p in range(len(found))])
