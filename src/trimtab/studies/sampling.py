"""Settings proposed by Optuna, one after another, each in the light of those before it."""

from __future__ import annotations

import importlib
import importlib.util
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trimtab.checks import whole
from trimtab.studies.study_file import number_or_text

DECADE = 10.0
"""A range that spans so much is searched on a logarithmic scale [ours]."""
DIGITS = 3
"""Digits of a proposed number [ours]: labels and folders hold it."""


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, both ends taken.

    Attributes:
        low, high: the ends; whole numbers only where both are whole.
        log: on a logarithmic scale.
    """

    low: float
    high: float
    log: bool

    @property
    def counted(self) -> bool:
        """Whether only whole numbers are meant."""
        return isinstance(self.low, int) and isinstance(self.high, int)

    def rounded(self, value: float) -> float:
        """To three digits, inside the ends."""
        return value if self.counted else min(max(float(f"{value:.{DIGITS}g}"), self.low), self.high)


Space = dict[str, Range | list[Any]]


def parse_space(items: Sequence[str]) -> Space:
    """`field=LOW..HIGH` items as ranges, `field=value,value` as lists.

    Raises:
        ValueError: neither, ends that are no numbers, or the lower one not below the higher.

    Example:
        >>> parse_space(["l1.strength=1e-6..1e-3", "epochs=2..8", "var.form=variance,relative"])["l1.strength"]
        Range(low=1e-06, high=0.001, log=True)
    """
    found: Space = {}
    for item in items:
        field, equals, text = item.partition("=")
        if not equals or not field or not text:
            raise ValueError(
                f"--vary takes FIELD=LOW..HIGH such as l1.strength=1e-6..1e-3, or FIELD=VALUE,VALUE; got {item!r}"
            )
        ends = [number_or_text(part) for part in text.split("..")] if ".." in text else []
        if not ends:
            found[field] = [number_or_text(part) for part in text.split(",")]
            continue
        numbers = [
            end for end in ends if isinstance(end, int | float) and not isinstance(end, bool) and math.isfinite(end)
        ]
        if len(ends) != 2 or len(numbers) != 2 or numbers[0] >= numbers[1]:
            raise ValueError(
                f"--vary {field}: a range is LOW..HIGH, two numbers of which the first is smaller; got {text!r}"
            )
        low, high = numbers
        found[field] = Range(low, high, log=low > 0 and high / low >= DECADE)
    return found


def has_range(items: Sequence[str]) -> bool:
    """Whether one of the items is a range.

    Example:
        >>> has_range(["l1.strength=1e-6..1e-3"]), has_range(["l1.strength=1e-6,1e-3"])
        (True, False)
    """
    return any(re.search(r"=[^,]+\.\.", item) for item in items)


def search(
    space: Mapping[str, Range | list[Any]], trials: int, seed: int, score: Callable[[dict[str, Any]], float | None]
) -> None:
    """Ask Optuna's TPE sampler for settings and tell it how each scored.

    The same space, seed and scores give the same settings: a search that was stopped is gone through again from its start, at
    no cost where `score` keeps what it has measured.

    Args:
        space: ranges and lists by field.
        trials: how many settings.
        seed: of the sampler.
        score: the settings' score, larger is better; None where they failed.

    Raises:
        ValueError: fewer than one trial.
        ImportError: Optuna is not installed.

    Source:
        Tree-structured Parzen estimator, Bergstra et al., NeurIPS 2011; Optuna, arXiv 1907.10902.
    """
    whole("trials", trials, 1)
    check_sampler()
    optuna = importlib.import_module("optuna")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    kinds = optuna.distributions
    asked = {
        field: kinds.CategoricalDistribution(list(range(len(one))))
        if isinstance(one, list)
        else kinds.IntDistribution(one.low, one.high, log=one.log)
        if one.counted
        else kinds.FloatDistribution(one.low, one.high, log=one.log)
        for field, one in space.items()
    }
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=seed))
    for _ in range(trials):
        trial = study.ask(asked)
        settings = {
            field: one[trial.params[field]] if isinstance(one, list) else one.rounded(trial.params[field])
            for field, one in space.items()
        }
        value = score(settings)
        if value is None:
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
        else:
            study.tell(trial, value)


def check_sampler() -> None:
    """Refuse a search where Optuna is missing.

    Raises:
        ImportError: it is not installed.
    """
    if importlib.util.find_spec("optuna") is None:
        raise ImportError("--sampler optuna needs optuna: pip install 'trimtab[optuna]'")
