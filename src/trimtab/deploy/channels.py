"""Channels taken out of a network for good: a smaller network of the same layers, not one with zeros."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from trimtab.checks import below_one, one_of, whole
from trimtab.deploy.channel_groups import (
    counts_of,
    find_groups,
    importance_of,
    least_count,
    order_of,
    ranked,
    rounded,
    short_of,
    smaller_network,
    taken,
)
from trimtab.deploy.timing import Comparison, compare_twice
from trimtab.frames import Tabular
from trimtab.parameters.kinds import check_finite
from trimtab.pruning.graph import graph_library
from trimtab.tensors.selection import removed_count

Budget = Literal["channels", "parameters", "multiply_adds"]
SCORES = ("magnitude", "bn_scale", "fpgm", "taylor", "random")


@dataclass(eq=False, repr=False)
class SmallerNetwork(Tabular):
    """What `remove_channels` made.

    Attributes:
        model: the smaller network, in the state (train or eval) of the one given.
        groups: per group of channels that go together the layer it is named after, all its layers, channels before and after.
        removed: per group the places of the channels that went.
        left_out: layers whose channels stay, each with the reason.
        kept_up: groups that lost less than their scores asked for, so that `min_kept` channels stay.
        parameters, multiply_adds: before and after; the latter for one example.
    """

    model: nn.Module
    groups: list[tuple[str, list[str], int, int]]
    removed: dict[str, list[int]]
    left_out: list[tuple[str, str]]
    kept_up: list[str]
    parameters: tuple[int, int]
    multiply_adds: tuple[int, int]
    before: nn.Module
    example: Tensor

    def latency(self, batch: int = 64, budget: float = 2.0) -> Comparison:
        """Seconds of both networks on a batch of copies of the example, in turn, with PyTorch's present number of threads.

        A gain is measured twice and the lesser one returned. Neither network is changed.

        Args:
            batch: rows of the batch.
            budget: seconds to spend, once five pairs are done.
        """
        whole("batch", batch, 1)
        rows = self.example[:1].expand(batch, *self.example.shape[1:]).contiguous()
        both = [(net, net.training) for net in (self.before, self.model)]
        try:
            for net, _ in both:
                net.eval()
            with torch.no_grad():
                return compare_twice(lambda: self.before(rows), lambda: self.model(rows), budget)
        finally:
            for net, training in both:
                net.train(training)

    def records(self) -> list[dict[str, Any]]:
        """One per group: `name`, `layers`, `channels`, `left`."""
        return [
            {"name": name, "layers": ", ".join(members), "channels": before, "left": after}
            for name, members, before, after in self.groups
        ]

    def _title(self) -> str:
        return repr(self)

    def describe(self) -> str:
        """A line per group, what stays and why, and the totals, as text."""
        width = max(len(name) for name, *_ in self.groups)
        lines = [
            f"{name:<{width}}  {before:>5} -> {left:<5} {', '.join(layers)}"
            for name, layers, before, left in self.groups
        ]
        lines += [f"{name:<{width}}  stays: {reason}" for name, reason in self.left_out]
        return "\n".join([*lines, repr(self)])

    def __repr__(self) -> str:
        channels = [sum(row[2] for row in self.groups), sum(row[3] for row in self.groups)]
        return (
            f"SmallerNetwork({channels[0]:,} -> {channels[1]:,} channels in {len(self.groups)} groups; "
            f"{self.parameters[0]:,} -> {self.parameters[1]:,} parameters, "
            f"{self.multiply_adds[0]:,} -> {self.multiply_adds[1]:,} multiply-adds)"
        )


def remove_channels(
    model: nn.Module,
    example: Tensor,
    sparsity: float = 0.5,
    *,
    budget: Budget = "channels",
    score: str | Callable[[Any], Tensor] = "magnitude",
    scope: Literal["global", "layer"] = "global",
    min_kept: int = 1,
    on_collapse: Literal["keep", "raise"] = "keep",
    round_to: int = 1,
    ignore: Sequence[str] = (),
) -> SmallerNetwork:
    """A copy of `model` without its least important channels; the copy is smaller and faster, the model stays as it is.

    Which layers lose a channel together (a convolution, its BatchNorm, the inputs of all that reads it, everything along a
    residual sum) is found by torch-pruning from one forward pass. A group whose removal breaks the forward pass or changes the
    shape of the output stays, with the reason; that is tried on a copy, not assumed.

    Args:
        model: a network of convolutions, Linear layers and norms, float, on one device.
        example: an input with at least one row.
        sparsity: fraction of `budget` that goes, in [0, 1). Default 0.5.
        budget: "channels" (default): exactly `floor(sparsity n + 0.5)` of the n channels that can go. "parameters" or
            "multiply_adds": channels go in the order of their scores until at most `(1 - sparsity)` of the whole network's
            count is left, and not one more.
        score: "magnitude" (default: squared norms of a channel's weights, mean over the group's layers, over the group's mean),
            "bn_scale" (|gamma|), "fpgm" (distance from the other filters), "taylor" (w g; call backward before), "random", or a
            callable that takes torch-pruning's group and gives a number per channel.
        scope: "global" (default): all groups compared; "layer": each group loses its fraction (with budget "channels").
        min_kept: channels that every group keeps. Default 1 [ours].
        on_collapse: "keep" (default): where scores would take more, others go instead, said in a warning; "raise": an error
            that names the groups.
        round_to: channels left in each group are rounded up to a multiple. Default 1; above it the budget is not exact.
        ignore: shell patterns of layers whose channels stay.

    Returns:
        A `SmallerNetwork`. BatchNorm statistics of what follows a removed channel no longer fit where that was not zero: train
        on, or `trimtab.pruning.recalibrate`.

    Raises:
        ImportError: torch-pruning is not installed.
        ValueError: a number out of range, no group of channels can go, a score with NaN or a parameter that is NaN, infinite or
            on the meta device (named), or a budget that the groups cannot give. The model is as it was.

    Reference:
        Fang et al., DepGraph: Towards Any Structural Pruning, arXiv 2301.12900; budget and guard are ours.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3))
        >>> smaller = remove_channels(net, torch.randn(1, 3, 8, 8), 0.5)  # doctest: +SKIP
        >>> smaller.model[0].weight.shape, smaller.left_out  # doctest: +SKIP
        (torch.Size([4, 3, 3, 3]), [('3', 'its channels are those of the output')])
    """
    library = graph_library()
    sparsity = below_one("sparsity", sparsity)
    one_of("budget", budget, ("channels", "parameters", "multiply_adds"))
    one_of("scope", scope, ("global", "layer"))
    one_of("on_collapse", on_collapse, ("keep", "raise"))
    whole("min_kept", min_kept, 1)
    whole("round_to", round_to, 1)
    if scope == "layer" and budget != "channels":
        raise ValueError(
            f"scope 'layer' takes its fraction of channels in each group; budget {budget!r} needs scope 'global'"
        )
    if not callable(score):
        one_of("score", score, SCORES)
    if not isinstance(example, Tensor) or example.ndim < 1 or not len(example):
        raise ValueError(f"example must be a tensor with at least one row, got {example!r:.80}")
    check_finite(model)
    groups, left_out = find_groups(library, model, example, importance_of(library, score), ignore)
    if not groups:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in left_out[:5])
        raise ValueError(
            f"{type(model).__name__} has no group of channels that can go ({reasons or 'no layer with channels'})"
        )
    before = counts_of(model, example)
    order = order_of(groups, min_kept)
    total = sum(group.size for group in groups)
    kept_up = (
        short_of(groups, removed_count(sparsity, total), min_kept) if scope == "global" and budget == "channels" else []
    )
    if kept_up and on_collapse == "raise":
        raise ValueError(f"{len(kept_up)} group(s) would keep fewer than {min_kept} channels: {', '.join(kept_up[:8])}")
    if scope == "layer":
        for group in groups:
            group.gone = [at for at, _ in ranked(group)][
                : min(removed_count(sparsity, group.size), group.size - min_kept)
            ]
        smaller = smaller_network(library, model, example, rounded(groups, round_to))
    elif budget == "channels":
        count = removed_count(sparsity, total)
        if count > len(order):
            raise ValueError(
                f"{count} of {total} channels cannot go while each of {len(groups)} groups keeps {min_kept}; at most "
                f"{len(order)}"
            )
        smaller = smaller_network(library, model, example, taken(groups, order[:count], round_to))
    else:
        place = 0 if budget == "parameters" else 1
        limit = (1 - sparsity) * before[place]
        count = least_count(library, model, example, groups, order, limit, place, round_to)
        smaller = smaller_network(library, model, example, taken(groups, order[:count], round_to))
    if kept_up:
        warnings.warn(
            f"{', '.join(kept_up[:8])}: the scores would leave fewer than {min_kept} of their channels; others went instead",
            stacklevel=2,
        )
    after = counts_of(smaller, example)
    smaller.train(model.training)
    return SmallerNetwork(
        smaller,
        [(group.name, group.members, group.size, group.size - len(group.gone)) for group in groups],
        {group.name: sorted(group.gone) for group in groups},
        left_out,
        kept_up,
        (before[0], after[0]),
        (before[1], after[1]),
        model,
        example,
    )
