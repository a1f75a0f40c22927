"""Which channels depend on each other, which may go, and a copy of the network without them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from trimtab.observe.multiply_adds import MultiplyAdds
from trimtab.observe.untouched import unfused, untouched
from trimtab.pruning.graph import dependency_graph, groups_of, outputs_of, take_channels, twin_of


@dataclass(eq=False)
class Group:
    """Channels that go together: of a layer, and of all that follows from them."""

    name: str
    scores: list[float]
    members: list[str]
    gone: list[int] = field(default_factory=list)

    @property
    def size(self) -> int:
        """How many channels it has."""
        return len(self.scores)


# groups and their scores


def importance_of(library: Any, score: str | Callable[[Any], Tensor]) -> Callable[[Any], Tensor | None]:
    """What gives a number per channel of a group."""
    if callable(score):
        return score
    kinds = library.importance
    found: Callable[[Any], Tensor | None] = {
        "magnitude": lambda: kinds.GroupMagnitudeImportance(p=2),
        "bn_scale": lambda: kinds.BNScaleImportance(),
        "fpgm": lambda: kinds.FPGMImportance(),
        "taylor": lambda: kinds.GroupTaylorImportance(),
        "random": lambda: kinds.RandomImportance(),
    }[score]()
    return found


def _shapes(model: nn.Module, example: Tensor) -> list[torch.Size]:
    return [leaf.shape for leaf in outputs_of(model, example)]


def find_groups(
    library: Any, model: nn.Module, example: Tensor, importance: Callable[[Any], Tensor | None], ignore: Sequence[str]
) -> tuple[list[Group], list[tuple[str, str]]]:
    """Groups of channels that can go, with their scores, and layers whose channels stay, with the reasons."""
    twin = twin_of(model)
    names = {id(module): name for name, module in twin.named_modules()}
    held = _holders(twin)
    expected = _shapes(twin, example)
    graph = dependency_graph(library, twin, example)
    found, left_out = [], []
    for root, group in groups_of(graph):
        name = names[id(root)]
        if isinstance(group, str):
            left_out.append((name, group))
            continue
        modules = [dep.target.module for dep, _ in group]
        members = list(dict.fromkeys(names[id(module)] for module in modules if id(module) in names))
        reason = _reason(library, model, example, name, expected)
        if any(fnmatchcase(member, pattern) for member in members for pattern in ignore):
            reason = "named in ignore"
        if any(getattr(module, "groups", 1) not in (1, getattr(module, "in_channels", 1)) for module in modules):
            reason = "a grouped convolution in it: whole groups would have to go"
        own = [one for module in modules if isinstance(module, nn.Module) for one in module.parameters(recurse=False)]
        if (tied := next((held[id(one)] for one in own if len(held[id(one)]) > 1), None)) is not None:
            reason = f"tied weights: {' and '.join(tied)} are one, and what one layer loses the other would lose"
        if reason is not None:
            left_out.append((name, reason))
            continue
        scores = importance(group)
        if scores is None:
            left_out.append((name, "the score says nothing of its layers"))
            continue
        if scores.ndim != 1 or len(scores) != len(group[0].idxs):
            raise ValueError(
                f"the score of {name} must be one number for each of {len(group[0].idxs)} channels, got shape "
                f"{tuple(scores.shape)}"
            )
        if bool(scores.isnan().any()):
            raise ValueError(f"the score of {name} holds NaN in {int(scores.isnan().sum())} of {len(scores)} channels")
        found.append(Group(name, scores.detach().double().tolist(), members))
    return found, left_out


def _holders(model: nn.Module) -> dict[int, list[str]]:
    """The names under which each parameter is held."""
    found: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        found.setdefault(id(parameter), []).append(name)
    return found


def _reason(library: Any, model: nn.Module, example: Tensor, name: str, expected: list[torch.Size]) -> str | None:
    """Why a group must stay: one channel is taken from a copy, and what then happens says it."""
    twin = twin_of(model)
    layer: Any = twin.get_submodule(name)
    if (layer.out_channels if hasattr(layer, "out_channels") else layer.out_features) < 2:
        return "it has one channel only"
    try:
        take_channels(library, twin, example, name, [0])
        shapes = _shapes(twin, example)
    except (RuntimeError, ValueError, IndexError, TypeError, AssertionError) as error:
        return f"the network breaks without one of its channels ({str(error).splitlines()[0][:120]})"
    return None if shapes == expected else "its channels are those of the output"


# which channels go


def ranked(group: Group) -> list[tuple[int, float]]:
    """Places and scores, smallest first, ties by position."""
    return sorted(enumerate(group.scores), key=lambda pair: (pair[1], pair[0]))


def order_of(groups: list[Group], min_kept: int) -> list[tuple[int, int]]:
    """(group, channel) in the order in which they may go: all but the `min_kept` largest of each group."""
    free = [
        (score, at, place)
        for at, group in enumerate(groups)
        for place, score in ranked(group)[: max(0, group.size - min_kept)]
    ]
    return [(at, place) for _, at, place in sorted(free)]


def short_of(groups: list[Group], count: int, min_kept: int) -> list[str]:
    """Names of groups that would keep fewer than `min_kept` channels, were it by scores alone."""
    every = sorted((score, at, place) for at, group in enumerate(groups) for place, score in enumerate(group.scores))
    lost = [0] * len(groups)
    for _, at, _ in every[:count]:
        lost[at] += 1
    return [group.name for group, gone in zip(groups, lost, strict=True) if group.size - gone < min_kept]


def taken(groups: list[Group], order: list[tuple[int, int]], round_to: int) -> list[Group]:
    """The groups, with these channels gone."""
    for group in groups:
        group.gone = []
    for at, place in order:
        groups[at].gone.append(place)
    return rounded(groups, round_to)


def rounded(groups: list[Group], round_to: int) -> list[Group]:
    """Give channels back, last ones first, until what is left is a multiple."""
    for group in groups:
        left = group.size - len(group.gone)
        wanted = min(group.size, -(-left // round_to) * round_to)
        group.gone = group.gone[: group.size - wanted]
    return groups


def least_count(
    library: Any, model: nn.Module, example: Tensor, groups: list[Group], order: list[tuple[int, int]], limit: float,
    place: int, round_to: int,
) -> int:  # fmt: skip
    """How many channels of `order` must go at least for the count to be at most `limit`; by halving, each tried on a copy."""

    def count(number: int) -> int:
        return counts_of(smaller_network(library, model, example, taken(groups, order[:number], round_to)), example)[
            place
        ]

    low, high = 0, len(order)
    if count(high) > limit:
        what = ("parameters", "multiply-adds")[place]
        raise ValueError(
            f"at most {limit:,.0f} {what} are asked for, and {count(high):,} stay when all {high} channels that may go are gone"
        )
    while low < high:
        middle = (low + high) // 2
        if count(middle) <= limit:
            high = middle
        else:
            low = middle + 1
    return high


# the smaller network


def smaller_network(library: Any, model: nn.Module, example: Tensor, groups: list[Group]) -> nn.Module:
    """A copy without the channels that are gone."""
    twin = twin_of(model)
    graph = dependency_graph(library, twin, example)
    for group in groups:
        if group.gone:
            take_channels(library, twin, example, group.name, group.gone, graph)
    for parameter, original in zip(twin.parameters(), model.parameters(), strict=True):
        parameter.requires_grad_(original.requires_grad)
        parameter.grad = None
    return twin


def counts_of(model: nn.Module, example: Tensor) -> tuple[int, int]:
    """Parameters, and multiply-adds for one example."""
    counter = MultiplyAdds(model)
    with untouched(model), unfused(model), torch.no_grad(), counter:
        model(example[:1])
    return sum(p.numel() for p in model.parameters()), sum(count.dense for count in counter.booked.values())
