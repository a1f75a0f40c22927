"""Results as tables: a pandas frame, and HTML for notebooks, from the same rows."""

from __future__ import annotations

import html
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

Record = Mapping[str, Any]
MOST = 40
"""Rows that a notebook shows; the rest is counted."""


def frame(records: Sequence[Record]) -> Any:
    """The records as a pandas frame, a column for each key.

    Raises:
        ImportError: pandas is not installed; says which extra brings it.
    """
    try:
        import pandas
    except ImportError as error:
        raise ImportError("to_pandas() needs pandas: pip install 'trimtab[frames]' (or pandas itself)") from error
    return pandas.DataFrame.from_records(list(records))


def framed(table: Any) -> Any:
    """An Arrow table as a pandas frame, with its types; errors as of `frame`."""
    frame([])
    return table.to_pandas()


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def html_table(records: Sequence[Record], title: str = "", most: int = MOST) -> str:
    """The records as a small HTML table; every text is escaped.

    Example:
        >>> html_table([{"name": "<b>", "weights": 12000}], "one layer")[:57]
        '<table><caption style="text-align:left">one layer</captio'
    """
    caption = f'<caption style="text-align:left">{html.escape(title)}</caption>' if title else ""
    if not records:
        return f"<table>{caption}<tbody><tr><td>nothing</td></tr></tbody></table>"
    head = "".join(f"<th>{html.escape(str(name))}</th>" for name in records[0])
    lines = []
    for record in records[:most]:
        cells = (
            f'<td style="text-align:{"right" if isinstance(value, int | float) else "left"}">{html.escape(_text(value))}</td>'
            for value in record.values()
        )
        lines.append(f"<tr>{''.join(cells)}</tr>")
    if len(records) > most:
        lines.append(f'<tr><td colspan="{len(records[0])}">and {len(records) - most:,} more rows</td></tr>')
    return f"<table>{caption}<thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"


class Tabular(ABC):
    """An object that is a table: `to_pandas()`, and what a notebook shows of it."""

    @abstractmethod
    def records(self) -> list[dict[str, Any]]:
        """Its rows, each a mapping with the same keys."""

    def _title(self) -> str:
        return type(self).__name__

    def to_pandas(self) -> Any:
        """`records()` as a pandas frame; ImportError where pandas (extra `frames`) is not installed."""
        return frame(self.records())

    def _repr_html_(self) -> str:
        return html_table(self.records(), self._title())
