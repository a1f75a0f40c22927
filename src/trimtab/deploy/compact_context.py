"""Weights of few levels coded by context: what is beside a weight, and its row and column, tell whether it is zero.

Each weight is asked for by questions of yes or no, in the order of the one-file reader's `by_context`, whose walk is taken here
too. The odds of a yes are those of a logistic regression on a few features; its coefficients are found here, on a sample,
rounded to a thirty-second and sent, as changes of those of the weight before [ours]. Context-coded significance, sign and
magnitude are the idea of CABAC for networks (DeepCABAC, arXiv 1907.11900), which adapts one count for each context instead.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from trimtab.deploy import one_file_reader as reader
from trimtab.deploy.rans import Answers

SAMPLE = 1 << 14  # [ours] answers of a kind of question on which its coefficients are found
RIDGE = 1.0  # [ours] strength of the pull to the coefficients of the weight before
STEPS = 16  # of Newton's method, at most
Coefficients = npt.NDArray[np.int8]


@dataclass(frozen=True)
class ByContext:
    """A weight by context.

    Attributes:
        levels: its largest magnitude.
        change: of all coefficients against those of the weight before, by kind of question.
        coefficients: as they are now, for the weight after; (1 + LEVELS, features).
        answers: in the order in which they are decoded.
        bits: what the answers take.
    """

    levels: int
    change: Coefficients
    coefficients: Coefficients
    answers: tuple[Answers, ...]
    bits: float

    @property
    def size(self) -> float:
        """Bytes, with the coefficients about as zlib packs them."""
        return self.bits / 8 + 0.75 * np.count_nonzero(self.change) + 0.1 * self.change.size


def nothing_learned() -> Coefficients:
    """The coefficients before the first weight."""
    return np.zeros((1 + reader.LEVELS, max(reader.FEATURES)), np.int8)


def _bits(answers: npt.NDArray[np.bool_], chances: npt.NDArray[np.int64]) -> float:
    taken = np.where(answers, chances, reader.TOTAL - chances)
    return float((16 - np.log2(taken)).sum())


def _fit(
    features: npt.NDArray[np.float64], answers: npt.NDArray[np.bool_], before: Coefficients, times: float
) -> Coefficients:
    """Coefficients of the most likely logistic regression, pulled to those before; times: answers that one stands for."""
    prior = before.astype(np.float64) / reader.ONE
    best, step, tried, loss = prior, prior, np.zeros_like(prior), math.inf
    for _ in range(STEPS):
        chance = 1 / (1 + np.exp(-np.clip(features @ tried, -12, 12)))
        now = -times * float(np.log(np.where(answers, chance, 1 - chance)).sum())
        now += RIDGE / 2 * float(np.square(tried - prior).sum())
        if now < loss:
            best, gained, loss = tried, loss - now, now
            if gained < 1:
                break
            slope = times * (features.T @ (chance - answers)) + RIDGE * (best - prior)
            curve = times * (features.T * (chance * (1 - chance))) @ features + RIDGE * np.eye(len(best))
            step = np.asarray(-np.linalg.solve(curve, slope), np.float64)
        else:  # too far: a quarter of the way
            step = step / 4
        tried = best + step
    return np.clip(np.rint(best * reader.ONE), -127, 127).astype(np.int8)


class _Sample:
    """Features and answers of each kind of question, at most about `SAMPLE` of each."""

    def __init__(self, numbers: npt.NDArray[np.int16], kinds: int) -> None:
        self.flat, self.size = numbers.reshape(-1), int(np.count_nonzero(numbers))
        self.features: list[list[npt.NDArray[np.float64]]] = [[] for _ in range(kinds)]
        self.answers: list[list[npt.NDArray[np.bool_]]] = [[] for _ in range(kinds)]
        self.seen = [0] * kinds

    def __call__(self, kind: int, features: list[Any], where: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        answers = truth(self.flat, kind, where)
        every = max(1, (self.flat.size if kind == 0 else self.size) // SAMPLE) | 1
        taken = slice(None, None, every)
        rows = [np.broadcast_to(one, where.shape)[taken] for one in features]
        self.features[kind].append(np.stack(rows, 1) / float(reader.ONE))
        self.answers[kind].append(answers[taken])
        self.seen[kind] += where.size
        return answers

    def fitted(self, kind: int, before: Coefficients) -> Coefficients:
        """The coefficients of a kind of question, or those before where they serve as well."""
        if not self.seen[kind]:
            return before
        features, answers = np.concatenate(self.features[kind]), np.concatenate(self.answers[kind])
        times = self.seen[kind] / answers.size
        found = _fit(features, answers, before, times)
        rows = np.rint(features.T * reader.ONE).astype(np.int64)
        costs = [times * _bits(answers, reader.chances(list(rows), own)) for own in (before, found)]
        return found if costs[1] + 6 * np.count_nonzero(found != before) < costs[0] else before


def truth(flat: npt.NDArray[np.int16], kind: int, where: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """The answers to a kind of question: not zero; positive; larger than `kind - 1`."""
    own = flat[where]
    found: npt.NDArray[np.bool_] = own != 0 if kind == 0 else own > 0 if kind == 1 else np.abs(own) > kind - 1
    return found


def by_context(
    numbers: npt.NDArray[np.int16],
    shape: tuple[int, ...],
    axis: int | None,
    scale_bits: npt.NDArray[np.uint16],
    before: Coefficients,
) -> ByContext | None:
    """A weight by context, or None where it is none of two dimensions or has too many levels.

    Args:
        numbers: flat, row-major.
        shape, axis: of the weight and its scales.
        scale_bits: bfloat16 bits of the scales.
        before: coefficients of the weight before.
    """
    levels = int(np.abs(numbers).max(initial=0))
    if len(shape) < 2 or not 1 <= levels <= reader.LEVELS:
        return None
    moved, used, own, sizes = reader.context_shape(shape, axis, scale_bits)
    laid = np.moveaxis(numbers.reshape(shape), axis or 0, 0).reshape(moved[0], moved[1], own[2])[used]
    flat = np.ascontiguousarray(laid.transpose(2, 0, 1)).reshape(-1)
    kinds = reader.questions(levels)
    sample = _Sample(flat, len(kinds))
    reader.by_context(own, sizes, levels, sample)
    now = before.copy()
    for kind, size in enumerate(kinds):
        now[kind, :size] = sample.fitted(kind, before[kind, :size])
    taken: list[Answers] = []

    def ask(kind: int, features: list[Any], where: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        answers = truth(flat, kind, where)
        chances = np.broadcast_to(reader.chances(features, now[kind, : kinds[kind]]), where.shape)
        taken.append(Answers(answers, chances.astype(np.uint16)))
        return answers

    reader.by_context(own, sizes, levels, ask)
    change = np.concatenate([(now - before)[kind, :size] for kind, size in enumerate(kinds)])
    bits = sum(_bits(one.answers, one.chances.astype(np.int64)) for one in taken)
    return ByContext(levels, change, now, tuple(taken), bits)
