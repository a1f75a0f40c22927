"""BatchCoreset: of a large batch the examples whose gradients stand for all."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from trimtab.checks import flag, number, one_of, whole
from trimtab.curricula.coreset_features import Moments, last_layer_features, zeroth_order_features
from trimtab.curricula.facility import METRICS, Metric, facility_location, similarity


class Chosen(NamedTuple):
    """What is trained on.

    Attributes:
        indices: rows of the large batch, rising.
        weights: of their losses; all 1 unless the coreset weighs.
    """

    indices: Tensor
    weights: Tensor


class BatchCoreset:
    """CoLM: from a large batch, the small one whose gradient is nearest to it.

    All examples of the sources in `keep_sources` stay; of every other source the medoids of its examples' gradients
    (`facility_location` on `max distance - distance`), as many as its share of what is left, rounded down, the largest
    sources first for the rest.

    Args:
        ratio: part of the batch that stays, in (0, 1]. Default 0.5 (paper).
        keep_sources: names of small sources that stay whole.
        metric: "l1" (default, paper) or "l2" between gradients.
        top: coordinates of the gradients that are compared. Default 2560 (authors' code).
        weights: give each medoid the number of examples it stands for. Default False (authors' code): all weigh 1.

    Raises:
        ValueError: a setting is out of range; (at the choice) features that are not finite, where the authors' code puts a
            similarity of -0.95.

    Three ways in: `choose` on features of your own, `by_last_layer` (exact gradients of a classifier's last layer, for free
    [ours]) and `by_zeroth_order` (two forward passes, as in the paper).

    Reference: Nguyen et al., CoLM, arXiv 2407.19580, and its code.

    Example:
        >>> chosen = BatchCoreset(ratio=0.5).choose(torch.tensor([[0.0], [0.1], [5.0], [5.2]]))
        >>> len(chosen.indices), chosen.weights
        (2, tensor([1., 1.]))
    """

    def __init__(
        self,
        ratio: float = 0.5,
        keep_sources: Sequence[str] = (),
        metric: Metric = "l1",
        top: int = 2560,
        *,
        weights: bool = False,
    ) -> None:
        if isinstance(keep_sources, str):
            raise TypeError(f"keep_sources must be a list of names, got {keep_sources!r}")
        self.ratio = number("ratio", ratio, above=0, most=1)
        self.keep_sources = tuple(keep_sources)
        one_of("metric", metric, METRICS)
        self.metric: Metric = metric
        self.top, self.weights = whole("top", top, least=1), flag("weights", weights)

    @torch.no_grad()
    def choose(self, features: Tensor, sources: Sequence[str] | None = None) -> Chosen:
        """The examples that stay, by their features (examples, features) and, where there are several, sources.

        Raises:
            ValueError: features are no finite matrix, or there is not one source an example.
        """
        total = len(features)
        if sources is not None and len(sources) != total:
            raise ValueError(f"there are {total} examples and {len(sources)} sources: one each")
        if sources is None and self.keep_sources:
            raise ValueError(f"keep_sources is {self.keep_sources}: give the source of each example")
        places: dict[str, list[int]] = {}
        for at in range(total):
            places.setdefault("" if sources is None else sources[at], []).append(at)
        kept = [at for name in self.keep_sources for at in places.pop(name, [])]
        found = torch.tensor(kept, dtype=torch.int64, device=features.device)
        sizes = torch.ones(len(kept), device=features.device)
        counts = _quotas([len(own) for own in places.values()], max(1, round(self.ratio * total)) - len(kept))
        for own, count in zip(places.values(), counts, strict=True):
            if not count:
                continue
            rows = torch.tensor(own, device=features.device)
            medoids, stands_for = facility_location(similarity(features[rows], self.metric), count)
            found = torch.cat([found, rows[medoids]])
            sizes = torch.cat([sizes, stands_for.to(sizes)])
        order = found.argsort()
        return Chosen(found[order], sizes[order] if self.weights else torch.ones_like(sizes))

    def by_last_layer(
        self,
        logits: Tensor,
        targets: Tensor,
        hidden: Tensor,
        sources: Sequence[str] | None = None,
        moments: Moments | None = None,
    ) -> Chosen:
        """By the gradients of the last layer; arguments as `last_layer_features`."""
        return self.choose(last_layer_features(logits, targets, hidden, self.top, moments), sources)

    def by_zeroth_order(
        self,
        losses: Callable[[], Tensor],
        parameters: Iterable[nn.Parameter],
        sources: Sequence[str] | None = None,
        **settings: Any,
    ) -> Chosen:
        """By gradients along one random direction; arguments as `zeroth_order_features`."""
        return self.choose(zeroth_order_features(losses, parameters, self.top, **settings), sources)

    def __repr__(self) -> str:
        return (
            f"BatchCoreset(ratio={self.ratio}, keep_sources={self.keep_sources}, metric={self.metric!r}, top={self.top}, "
            f"weights={self.weights})"
        )


def _quotas(sizes: Sequence[int], count: int) -> list[int]:
    """How many of each source: its share of `count` rounded down, one more for the largest until all are given."""
    if count <= 0 or not sizes:
        return [0] * len(sizes)
    count = min(count, sum(sizes))
    found = [count * size // sum(sizes) for size in sizes]
    for at in sorted(range(len(sizes)), key=lambda at: -sizes[at]):
        if sum(found) == count:
            break
        found[at] += found[at] < sizes[at]
    return found
