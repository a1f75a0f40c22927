"""Choose a setting on the validation split, by what is left after pruning or by the dense network."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from trimtab.runs.metric import METRICS, Metric
from trimtab.runs.recipe import Recipe
from trimtab.studies.summary import Row
from trimtab.studies.variants import Variant

Criterion = Literal["plain", "recalibrated", "both", "dense"]


@dataclass(frozen=True)
class Choice:
    """The best variant of one method and how every candidate scored (label, mean validation quality)."""

    method: str
    best: Variant
    scores: list[tuple[str, float]]


def pruning_score(rows: Sequence[Row], criterion: Criterion, metric: Metric = METRICS["accuracy"]) -> float:
    """Mean validation quality over the pruned sparsities (and over seeds), dense network left out; or of it alone.

    Args:
        rows: rows of one variant on the validation split, main score and scope only.
        criterion: "plain" as pruned, "recalibrated" after BatchNorm recalibration, "both" their mean; "dense" before pruning
            (for a learning rate, say).
        metric: what is averaged.

    Raises:
        ValueError: there is no such row, or one was measured on another split.
    """
    if any(row.split != "validation" for row in rows):
        raise ValueError("settings are chosen on the validation split only")
    if criterion == "dense":
        chosen = [row for row in rows if row.sparsity == 0 and not row.recalibrated and not row.finetuned]
        if not chosen:
            raise ValueError("no row of the dense network")
        return _mean(chosen, metric)
    wanted = {"plain": (False,), "recalibrated": (True,), "both": (False, True)}[criterion]
    chosen = [row for row in rows if row.sparsity > 0 and row.recalibrated in wanted and not row.finetuned]
    if not chosen:
        raise ValueError(f"no pruned row for criterion {criterion!r}")
    return _mean(chosen, metric)


def _mean(rows: Sequence[Row], metric: Metric) -> float:
    """Over the rows; the worst there is where a network gives no finite number, which no luck elsewhere makes good."""
    values = [getattr(row, metric.column) for row in rows]
    if any(value is None for value in values):
        return -metric.gain(math.inf)
    return float(sum(values)) / len(values)


def choose(
    candidates: Sequence[tuple[Variant, Sequence[Row]]], criterion: Criterion, metric: Metric = METRICS["accuracy"]
) -> list[Choice]:
    """The best candidate of each method by the metric; ties go to the one listed first.

    A setting that failed on one of its seeds (fewer rows than the others) is not chosen: it would be judged on its luck.
    """
    by_method: dict[str, list[tuple[Variant, float]]] = {}
    pooled: dict[str, list[Row]] = {}
    first: dict[str, Variant] = {}
    for variant, rows in candidates:
        pooled.setdefault(variant.label, []).extend(rows)
        first.setdefault(variant.label, variant)
    most: dict[str, int] = {}
    for label, rows in pooled.items():
        method = _family(first[label])
        most[method] = max(most.get(method, 0), len(rows))
    for label, rows in pooled.items():
        if len(rows) < most[_family(first[label])]:
            continue
        variant = first[label]
        by_method.setdefault(_family(variant), []).append((variant, pruning_score(rows, criterion, metric)))
    return [
        Choice(
            method,
            max(scored, key=lambda pair: metric.gain(pair[1]))[0],
            [(variant.label, score) for variant, score in scored],
        )
        for method, scored in by_method.items()
    ]


def _family(variant: Variant) -> str:
    return variant.family or variant.recipe.method


def chosen_settings(choices: Sequence[Choice], fields: Sequence[str]) -> dict[str, Any]:
    """The varied fields at their best values, dotted, each from the first listed method that reads it."""
    settings: dict[str, Any] = {}
    for choice in choices:
        for field in fields:
            if field in choice.best.varied and field not in settings:
                settings[field] = setting(choice.best.recipe, field)
    return settings


def setting(recipe: Recipe, field: str) -> Any:
    """The value of a dotted field, JSON's types only."""
    value: Any = recipe.plain(mode="json")
    for part in field.split("."):
        value = value[part]
    return value
