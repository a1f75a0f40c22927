"""The table of docs/evidence/levers.md from the figures beside it, verdicts by one rule.

A claim has one or more figures that must lie above zero (claims.py). Each is tested over the seeds by Student's t, two-sided,
and all tests of the page together by Holm at 5 %; a figure without any spread is compared as it is. All above zero: holds.
Some: in part. None: does not, and "the reverse" where one lies below zero.

python evidence/levers/table.py
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from claims import CLAIMS as FIRST
from claims import SYSTEMS, Claim
from claims_steps import STEP_CLAIMS, STEP_SYSTEMS
from evidence_page import fill, spread, table
from figures import FOLDER, file_of, rows_of
from scipy import stats

from trimtab.studies.statistics import estimate

LEVEL = 0.05
NUMBERS = {**SYSTEMS, **STEP_SYSTEMS}
CLAIMS = tuple(claim for claim in FIRST + STEP_CLAIMS if file_of(claim.file).is_file())
"""Those that were measured."""


def values_of(claim: Claim) -> list[list[float]]:
    """For each figure that must be above zero its value at every seed."""
    rows = rows_of(claim.file)
    return [[number(row) for row in rows] for number in claim.above]


def chance(values: Sequence[float]) -> float:
    """p of Student's t; 0 without spread, but 1 where all are 0 or there is one seed only."""
    if len(values) < 2 or max(values) == min(values):
        return 0.0 if len(values) > 1 and values[0] else 1.0
    return float(stats.ttest_1samp(values, 0.0).pvalue)


def holm(chances: Sequence[float]) -> list[bool]:
    """Which are told apart from chance, all together at LEVEL.

    Example:
        >>> holm([0.04, 0.01])
        [True, True]
        >>> holm([0.04, 0.03])
        [False, False]
    """
    found, order = [False] * len(chances), sorted(range(len(chances)), key=lambda at: chances[at])
    for rank, at in enumerate(order):
        if chances[at] > LEVEL / (len(chances) - rank):
            break
        found[at] = True
    return found


def verdict(values: Sequence[Sequence[float]], told: Sequence[bool]) -> str:
    """Of a claim, by its figures and which of them are told apart from zero.

    Example:
        >>> verdict([[1.0, 2.0], [-1.0, 1.0]], [True, False])
        'in part'
    """
    signs = [sum(one) > 0 for one in values]
    above = [sign and known for sign, known in zip(signs, told, strict=True)]
    if all(above):
        return "holds"
    if any(above):
        return "in part"
    return "does not: the reverse" if any(told) else "does not: not told apart"


def verdicts(claims: Sequence[Claim]) -> list[str]:
    """Of all claims together."""
    every = [values_of(claim) for claim in claims]
    told = iter(holm([chance(values) for one in every for values in one]))
    return [verdict(one, [next(told) for _ in one]) for one in every]


def block() -> str:
    """The table."""
    rows = []
    for claim, found in zip(CLAIMS, verdicts(CLAIMS), strict=True):
        seeds = rows_of(claim.file)
        shown = "; ".join(
            f"{name.strip()} {spread(estimate(number(row) for row in seeds), digits=claim.digits)}"
            for name, number in claim.shown.items()
        )
        rows.append([f"[`{claim.lever}`](../methods/{claim.card}.md)", claim.text, shown, str(len(seeds)), found])
    return table(["lever", "claim", "figure", "seeds", "verdict"], rows)


def costs() -> str:
    """CPU seconds of every experiment."""
    names = dict.fromkeys(claim.file for claim in CLAIMS)
    seconds = {name: json.loads(file_of(name).read_text(encoding="utf-8"))["cpu_seconds"] for name in names}
    rows = [[f"`python evidence/levers/{name}.py`", str(len(rows_of(name))), str(seconds[name])] for name in names]
    return table(["command", "seeds", "CPU seconds"], rows)


def said(claims: Sequence[tuple[Claim, str]]) -> str:
    """Claims with their verdicts, in one sentence."""
    return "; ".join(f"{claim.text}: {found}" for claim, found in claims)


def cards() -> dict[str, str]:
    """What each card says was measured."""
    every: dict[str, list[tuple[Claim, str]]] = {}
    for claim, found in zip(CLAIMS, verdicts(CLAIMS), strict=True):
        every.setdefault(claim.card, []).append((claim, found))
    found = {}
    for card, claims in every.items():
        named = dict.fromkeys(claim.lever for claim, _ in claims)
        parts = [f"`{name}`: {said([pair for pair in claims if pair[0].lever == name])}" for name in named]
        commands = ", ".join(
            f"`python evidence/levers/{name}.py`" for name in dict.fromkeys(claim.file for claim, _ in claims)
        )
        found[card] = f"**Measured on toys** ([evidence](../evidence/levers.md), {commands}). {'. '.join(parts)}."
    return found


def systems() -> dict[int, str]:
    """What the list of systems says we found, by number."""
    every: dict[int, list[tuple[Claim, str]]] = {}
    for claim, found in zip(CLAIMS, verdicts(CLAIMS), strict=True):
        if claim.lever in NUMBERS:
            every.setdefault(NUMBERS[claim.lever], []).append((claim, found))
    return {number: f"on a toy, {said(claims)}" for number, claims in every.items()}


def main() -> None:
    """Fill the page, and the line in every card; print what docs/systems.yaml is to say."""
    fill(FOLDER / "levers.md", {"levers": block(), "commands": costs()})
    for card, line in cards().items():
        fill(FOLDER.parent / "methods" / f"{card}.md", {"measured": line})
    print(json.dumps(systems(), indent=1, ensure_ascii=False))


if __name__ == "__main__":
    main()
