"""The pieces a page is made of: figures, tables, sections. Plain data, drawn by the templates and the page's script."""

from __future__ import annotations

import html
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from trimtab.report.numerals import column
from trimtab.report.palette import Look
from trimtab.studies.sizes import UNITS
from trimtab.studies.statistics import Estimate, sparsity_label

MINUS = "\N{MINUS SIGN}"
STATES = {"recalibrated": "BatchNorm recalibrated", "pruned": "as pruned"}
"""States of pruned networks; the first that was measured is what a page opens with."""


def state_of(*, recalibrated: bool) -> str:
    """Name of the state of a row."""
    return "recalibrated" if recalibrated else "pruned"


@dataclass(frozen=True)
class Figure:
    """One plotly figure in one or several states that a switch chooses between.

    Attributes:
        name: unique in its study.
        caption: what is shown, as plain text; also what a screen reader says.
        states: plotly traces by value of the switch; the only key is "" for a figure without a switch.
        layout: plotly layout shared by the states.
        layouts: additions to the layout by state.
        switch: name of the switch, None for a figure without.
        small: one of several side by side.
        title: heading of a small figure.
    """

    name: str
    caption: str
    states: dict[str, list[dict[str, Any]]]
    layout: dict[str, Any]
    layouts: dict[str, dict[str, Any]] = field(default_factory=dict)
    switch: str | None = None
    small: bool = False
    title: str = ""


@dataclass(frozen=True)
class Cell:
    """One cell of a table: what is read, and the bare number for sorting and copying.

    Attributes:
        text: what is read.
        value: the bare number.
        best: set in bold.
        note: class of a text, such as "good" or "bad".
        mark: "gain" or "harm" puts an arrow beside it.
        look: puts the line and marker of a series before it.
        digits: the text is written anew with as many digits for the greatest of the column, 0 for a text as it stands.
        unit: follows the number where the text is written anew.
    """

    text: str
    value: float | int | str | None = None
    best: bool = False
    note: str = ""
    mark: str = ""
    look: Look | None = None
    digits: int = 0
    unit: str = ""


@dataclass(frozen=True)
class Table:
    """A table; `state` names the switch's value under which it is shown, None for always; `prose` lets its texts wrap."""

    name: str
    caption: str
    head: list[str]
    rows: list[list[Cell]]
    state: str | None = None
    folded: bool = False
    prose: bool = False


@dataclass(frozen=True)
class Section:
    """A heading, sentences, figures and tables.

    Where there is nothing else, `missing` says why; the page then names the section in the one line of what was not measured.
    """

    name: str
    title: str
    sentences: list[str] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    switch: str | None = None
    missing: str = ""


@dataclass(frozen=True)
class Tile:
    """One answer of a verdict: a name, what it comes to in two or three words, and what that costs.

    Attributes:
        name: of the method or format.
        value: the answer.
        note: its cost or its evidence.
        tone: "good", "bad" or nothing.
        look: of the name on this page.
    """

    name: str
    value: str
    note: str = ""
    tone: str = ""
    look: Look | None = None


@dataclass(frozen=True)
class Verdict:
    """What the page decides, first on it: one sentence and a few answers side by side."""

    lead: str
    tiles: list[Tile] = field(default_factory=list)


@dataclass(frozen=True)
class Series:
    """A name that is drawn alike in all figures of the page; what is not `shown` is dimmed until it is chosen."""

    name: str
    look: Look
    shown: bool = True


def series_of(looks: Mapping[str, Look], shown: Collection[str] | None = None, most: int = 5) -> list[Series]:
    """The names of a page: those in `shown` first; all are shown where there are at most `most`, or `shown` is None."""
    every = shown is None or len(looks) <= most
    found = [Series(name, look, every or name in (shown or ())) for name, look in looks.items()]
    return sorted(found, key=lambda one: not one.shown)


def plain(text: str) -> str:
    """A user's text for a plotly string, where `<b>` and `<a>` would be read as markup."""
    return html.escape(text, quote=False)


def escaped(text: str) -> str:
    """As `plain`, for a text inside a hover template, where `%{...}` is a variable."""
    return plain(text).replace("%", "&#37;")


def halvings(sparsity: float) -> float:
    """Place on the sparsity axis: -log10(1 - sparsity); dense at 0, 90 % at 1, 99 % at 2.

    Equal steps divide the weights that are left by equal factors.
    """
    return -math.log10(max(1 - sparsity, 1e-6))


def sparsity_axis(
    sparsities: Sequence[float],
    title: str = "sparsity of the prunable weights",
    gap: float = 0.055,
    beside: Sequence[float] = (),
) -> dict[str, Any]:
    """Axis with a tick at each sparsity, left out where it would stand nearer than `gap` of the axis to its right neighbour.

    It holds the sparsities and the places `beside` them with a margin that a marker needs.
    """
    places = sorted({round(halvings(sparsity), 6): sparsity_label(sparsity) for sparsity in sparsities}.items())
    span = (places[-1][0] - places[0][0]) or 1.0
    kept: list[tuple[float, str]] = []
    for place in reversed(places):
        if not kept or kept[-1][0] - place[0] >= gap * span:
            kept.append(place)
    kept.reverse()
    return {
        "title": {"text": title},
        "tickvals": [place for place, _ in kept],
        "ticktext": [text for _, text in kept],
        "range": [min([places[0][0], *beside]) - 0.04 * span, max([places[-1][0], *beside]) + 0.04 * span],
        "zeroline": False,
    }


def percent(value: float, digits: int = 1) -> str:
    """A fraction in percent, without the sign."""
    return f"{100 * value:.{digits}f}"


def spread(estimate: Estimate, *, signed: bool = False, digits: int = 1, scale: float = 100.0) -> str:
    """Mean and half the interval, in percent unless the scale is another; the mean alone with one seed."""
    rounded = round(scale * estimate.mean, digits) + 0.0  # no negative zero
    mean = f"{rounded:{'+' if signed and rounded else ''}.{digits}f}".replace("-", MINUS)
    return mean if estimate.half is None else f"{mean} ± {scale * estimate.half:.{digits}f}"


def number(value: float | None, digits: int = 3, unit: str = "") -> Cell:
    """A number for a table, blank for None; `aligned` gives it the decimals of its column.

    Example:
        >>> number(-0.01234).text, number(None).text
        ('\u22120.0123', '')
    """
    if value is None:
        return Cell("", None)
    return Cell(f"{value:.{digits}g}{unit}".replace("-", MINUS), value, digits=digits, unit=unit)


def aligned(table: Table) -> Table:
    """The table with the same decimals down each column of numbers.

    Example:
        >>> table = aligned(Table("t", "", ["a"], [[number(12.345)], [number(0.5)], [number(None)]]))
        >>> [row[0].text for row in table.rows]
        ['12.35', '0.50', '']
    """
    rows = [list(row) for row in table.rows]
    for at in range(len(table.head)):
        places = [place for place, row in enumerate(rows) if row[at].digits]
        values = [value for place in places if isinstance(value := rows[place][at].value, (int, float))]
        if not places or len(values) < len(places):
            continue
        texts = column(values, max(rows[place][at].digits for place in places))
        for place, text in zip(places, texts, strict=True):
            rows[place][at] = replace(rows[place][at], text=text + rows[place][at].unit)
    return replace(table, rows=rows)


def listed(values: Mapping[str, object]) -> str:
    """Names with their values; without those that are not known.

    Example:
        >>> listed({"cores": 2, "accelerator": None}), listed({})
        ('cores 2', 'not recorded')
    """
    return ", ".join(f"{name} {value}" for name, value in values.items() if value is not None) or "not recorded"


HALVES = "Numbers after ± are half widths of"


def seeds_sentence(counts: Sequence[int], what: str = "Bands are") -> str:
    """How many seeds there are and what the interval is; `what` begins the sentence."""
    numbers = sorted(set(counts))
    if numbers == [1]:
        return "One seed: no interval."
    text = f"{what} 95 % Student's t intervals of the mean over {' or '.join(map(str, numbers))} seeds"
    return text + ("; where there is one seed there is no interval." if numbers[0] == 1 else ".")


def bytes_column(sizes: Sequence[float]) -> list[str]:
    """File sizes of a table in one unit, that of the greatest, with the same decimals.

    Example:
        >>> bytes_column([1_234_000, 56_000])
        ['1.234 MB', '0.056 MB']
    """
    unit, scale = next(((u, s) for u, s in UNITS if max(sizes, default=0) >= s), ("B", 1.0))
    return [f"{text} {unit}" for text in column([size / scale for size in sizes])]


def significant(value: float, digits: int = 3) -> str:
    """A number with that many digits, written out up to a million.

    Example:
        >>> significant(1334.5), significant(0.04567), significant(2.5e9)
        ('1,330', '0.0457', '2.5e+09')
    """
    text = f"{value:.{digits}g}"
    return f"{float(text):,.10g}" if abs(value) < 1e6 else text


def log_ticks(values: Sequence[float]) -> dict[str, Any]:
    """1, 2, 5, 10, ... written out on a logarithmic axis; where fewer than two lie within, the axis chooses its own.

    Example:
        >>> log_ticks([3.0, 24.0])["ticktext"]
        ['5', '10', '20']
    """
    low, high = math.log10(min(values)), math.log10(max(values))
    powers = range(math.floor(low) - 1, math.ceil(high) + 1)
    steps = (1,) if high - low > 3 else (1, 2, 5)
    inside = sorted(
        {f * 10.0**power for power in powers for f in steps if min(values) <= f * 10.0**power <= max(values)}
    )
    return {"tickvals": inside, "ticktext": [f"{value:,.6g}" for value in inside]} if len(inside) > 1 else {}
