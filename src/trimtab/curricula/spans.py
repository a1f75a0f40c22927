"""Which tokens count how much: weights from character spans known when the text was written, carried through to the tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from trimtab.checks import shares

IGNORED = -100
"""Label of a position that is not learnt, as in torch and transformers."""

Span = tuple[int, int]


@dataclass(frozen=True)
class Tokens:
    """Token ids with a label and a weight each; the three have one length.

    Attributes:
        ids: token ids.
        labels: the id to be learnt at this place, or -100.
        weights: factor of this token's cross-entropy; 0 where the label is -100.
    """

    ids: tuple[int, ...]
    labels: tuple[int, ...]
    weights: tuple[float, ...]

    def __post_init__(self) -> None:
        if not len(self.ids) == len(self.labels) == len(self.weights):
            raise ValueError(
                f"{len(self.ids)} ids, {len(self.labels)} labels and {len(self.weights)} weights: one of each per token"
            )

    def __len__(self) -> int:
        return len(self.ids)

    def expanded(self, placeholder: int, counts: Sequence[int]) -> Tokens:
        """The i-th `placeholder` id repeated `counts[i]` times, unlearnt; labels and weights move along with their tokens.

        Raises:
            ValueError: the number of placeholders is not that of the counts, a count is below 1, or a placeholder is learnt.

        Example:
            >>> Tokens((9, 5, 6), (-100, -100, 6), (0.0, 0.0, 1.0)).expanded(9, [3])
            Tokens(ids=(9, 9, 9, 5, 6), labels=(-100, -100, -100, -100, 6), weights=(0.0, 0.0, 0.0, 0.0, 1.0))
        """
        places = [place for place, token in enumerate(self.ids) if token == placeholder]
        if len(places) != len(counts) or min(counts, default=1) < 1:
            raise ValueError(
                f"{len(places)} image placeholders (token {placeholder}), but sizes {list(counts)}, each 1 or more"
            )
        repeats = [1] * len(self)
        for place, count in zip(places, counts, strict=True):
            if self.labels[place] != IGNORED:
                raise ValueError(
                    f"the image placeholder at position {place} is a label: images must stand in the prompt"
                )
            repeats[place] = count
        spread = [place for place, count in enumerate(repeats) for _ in range(count)]
        return Tokens(
            tuple(self.ids[i] for i in spread),
            tuple(self.labels[i] for i in spread),
            tuple(self.weights[i] for i in spread),
        )


class SpanWeights:
    """Weights of the named spans of a target text, so that the loss of a row is `sum_s w_s mean CE(tokens of s)`.

    The spans' weights are divided by their sum over the spans that are there, and each span's weight is shared equally by its
    tokens, so the weights of a row sum to 1 and a long span counts no more than a short one. Ours: a heading such as "Answer:"
    belongs to the span that follows it and what comes after the last span, with the end-of-text token, to the last; else a
    model would never learn to write them. A token on the border of two spans counts for the one that holds its last character.

    Args:
        weights: span name -> weight, finite, 0 or more, not all 0. A span of weight 0 is labelled but does not count.

    Raises:
        ValueError: a weight is out of range.

    Source: the split 0.8 / 0.2 of answer and reasoning is that of the public code beside arXiv 2510.04477.

    Example:
        >>> target = "Reasoning: dense. Answer: nodule"
        >>> offsets = [(0, 10), (11, 16), (16, 17), (18, 25), (26, 32)]           # of the tokens, from the tokenizer
        >>> SpanWeights({"answer": 0.8, "reasoning": 0.2}).per_token(offsets, {"reasoning": (11, 17), "answer": (26, 32)})
        [0.06666666666666667, 0.06666666666666667, 0.06666666666666667, 0.4, 0.4]
    """

    def __init__(self, weights: Mapping[str, float]) -> None:
        self.weights = dict(zip(weights, shares("span weights", weights.values()), strict=True))

    def __repr__(self) -> str:
        return f"SpanWeights({self.weights})"

    def per_token(self, offsets: Sequence[Span], spans: Mapping[str, Span], extra: int = 0) -> list[float]:
        """One weight per token of the target and of `extra` tokens after it.

        Args:
            offsets: [start, end) of each token in the target text, in order, as a tokenizer's offset mapping gives it.
            spans: name -> [start, end) in the same text; an empty span (start = end) is not there. They must not overlap.
            extra: end-of-text tokens that follow.

        Raises:
            ValueError: spans overlap or have no weight, offsets are out of order, a span has no token, or the spans that are
                there have weight 0 only.
        """
        there = sorted((span, name) for name, span in spans.items() if span[0] < span[1])
        unknown = sorted(name for _, name in there if name not in self.weights)
        if unknown or not there:
            raise ValueError(f"spans {dict(spans)} need a text and a weight each; weights are {self.weights}")
        for (first, _), (second, name) in pairwise(there):
            if second[0] < first[1]:
                raise ValueError(f"span {name!r} {second} overlaps the one before it, {first}")
        if any(b[0] < a[0] for a, b in pairwise(offsets)):
            raise ValueError("token offsets must not go back: they must be of one text, without a prompt before it")
        owners = []
        for start, end in offsets:
            last = max(end - 1, start)
            owners.append(next((name for (_, stop), name in there if last < stop), there[-1][1]))
        owners += [there[-1][1]] * extra
        counts = {name: owners.count(name) for _, name in there}
        if empty := [name for name, count in counts.items() if not count]:
            raise ValueError(
                f"no token lies in the spans {', '.join(empty)} of {dict(spans)}: are the offsets those of the target?"
            )
        total = sum(self.weights[name] for name in counts)
        if not total:
            raise ValueError(f"the spans {sorted(counts)} have weight 0 in {self.weights}: nothing would be learnt")
        return [self.weights[name] / total / counts[name] for name in owners]

    def tokens(
        self,
        prompt: Sequence[int],
        target: Sequence[int],
        offsets: Sequence[Span],
        spans: Mapping[str, Span],
        end: int | None = None,
    ) -> Tokens:
        """Prompt and target as one row: the labels cover exactly the target and the end-of-text token.

        Args:
            prompt: token ids of the prompt, with image placeholders expanded or not (see `Tokens.expanded`).
            target: token ids of the target, tokenized alone, without special tokens.
            offsets, spans: see `per_token`.
            end: id of the end-of-text token; None adds none.

        Raises:
            ValueError: as `per_token`, or the target has no tokens: a row without labels would make the loss NaN.

        Example:
            >>> SpanWeights({"answer": 1.0}).tokens([1, 2], [7], [(0, 3)], {"answer": (0, 3)}, end=0)
            Tokens(ids=(1, 2, 7, 0), labels=(-100, -100, 7, 0), weights=(0.0, 0.0, 0.5, 0.5))
        """
        if not target or len(target) != len(offsets):
            raise ValueError(
                f"a target of {len(target)} tokens with {len(offsets)} offsets: one offset per token, at least one token"
            )
        tail = [] if end is None else [end]
        weights = self.per_token(offsets, spans, len(tail))
        learnt = [*target, *tail]
        return Tokens((*prompt, *learnt), (*[IGNORED] * len(prompt), *learnt), (*[0.0] * len(prompt), *weights))
