"""`trimtab medclm reviews`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.table import Table

from trimtab.cli.arguments import Output, parse
from trimtab.cli.console import console, print_json
from trimtab.medclm.building import DataSetFolder
from trimtab.medclm.reviews import MARKS, Agreement, Review, check_same_set, load_review
from trimtab.medclm.reviews import agreement as agreement_of

SHOWN = 20
"""Disagreements printed at most; --json has all."""


@dataclass(frozen=True)
class ReviewsArguments:
    """Compares two reviews of one set, exported from its viewer: agreement, Cohen's kappa, and the rows that two
    reviewers mark differently with their comments.

    Examples:
        trimtab medclm reviews review-A.json review-B.json
        trimtab medclm reviews review-A.json review-B.json --data SET
        trimtab medclm reviews review-A.json review-B.json --json
    """

    first: tyro.conf.Positional[Path]
    """Review that the viewer exported."""
    second: tyro.conf.Positional[Path]
    """Review of the same set by another reviewer."""
    data: Path | None = None
    """The set: a review of another one, or of an earlier build, is refused."""
    output: Annotated[Output, tyro.conf.arg(name="")] = Output()


def reviews(arguments: Sequence[str]) -> int:
    """Parse and compare."""
    given = parse(ReviewsArguments, arguments, "medclm reviews")
    read = {path: load_review(path) for path in (given.first, given.second)}
    if len(read) < 2:
        raise ValueError(f"{given.first} was given twice: a reviewer agrees with himself")
    check_same_set(read, None if given.data is None else DataSetFolder(given.data))
    first, second = read.values()
    found = agreement_of(first, second)
    judged = [{one.row: one for one in review.judgements} for review in (first, second)]
    differing = [
        {"row": row}
        | {f"mark {n}": ones[row].mark for n, ones in enumerate(judged, 1)}
        | {f"comment {n}": ones[row].comment for n, ones in enumerate(judged, 1)}
        for row in found.disagreements
    ]
    if given.output.json:
        table = {f"{a}, {b}": number for (a, b), number in found.table.items()}
        named = {"title": first.title, "reviewers": [first.reviewer, second.reviewer]}
        print_json({**named, **asdict(found), "table": table, "disagreements": differing})
        return 0
    names = [review.reviewer or path.stem for path, review in read.items()]
    console.print(_counts(found, names))
    console.print(_said(found, first, names), highlight=False, markup=False)
    for one in differing[:SHOWN]:
        says = "; ".join(
            f"{name} {one[f'mark {n}']}" + (f" ({one[f'comment {n}']})" if one[f"comment {n}"] else "")
            for n, name in enumerate(names, 1)
        )
        console.print(f"{one['row']}: {says}", highlight=False, markup=False, soft_wrap=True)
    if len(differing) > SHOWN:
        console.print(f"... and {len(differing) - SHOWN:,} more (--json lists all)")
    return 0


def _counts(found: Agreement, names: Sequence[str]) -> Table:
    table = Table(title=f"{found.rows:,} rows marked by both")
    table.add_column(f"{names[0]} \\ {names[1]}")
    for mark in MARKS:
        table.add_column(mark, justify="right")
    for a in MARKS:
        table.add_row(a, *(f"{found.table[a, b]:,}" for b in MARKS))
    return table


def _said(found: Agreement, review: Review, names: Sequence[Any]) -> str:
    alone = " and ".join(f"{number:,} by {name}" for number, name in zip(found.only, names, strict=True))
    start = f"{review.title}: {100 * found.agreement:.1f} % of marks agree"
    if found.kappa is None:
        value = "Cohen's kappa is not defined, since both gave every row the same mark"
    else:
        bounds = "" if found.low is None else f" ({found.low:.2f} to {found.high:.2f}, 95 % bootstrap over images)"
        value = f"Cohen's kappa {found.kappa:.2f}{bounds}"
    return f"{start}; {value}; marked alone: {alone}."
