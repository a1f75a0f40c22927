"""What a tracker and a meter have in common: the steps they look at, and rows that are fetched, read and saved."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from trimtab.checks import whole
from trimtab.frames import framed, html_table
from trimtab.tables.rows import Rows

if TYPE_CHECKING:
    import pyarrow as pa

LAST = 12
"""Rows that a notebook shows of a table that grows."""
R = TypeVar("R", bound=Rows)


class Logged(ABC, Generic[R]):
    """Looks at some steps and keeps rows of them.

    Args:
        every: each k-th step from 0 on, or those for which a function of the step is true.
        rows: where they go.

    Raises:
        ValueError: `every` is neither a whole number of 1 or more nor a function.
    """

    def __init__(self, every: int | Callable[[int], bool], rows: R) -> None:
        self.every = every if callable(every) else whole("every", every, 1)
        self._rows = rows

    def due(self, step: int) -> bool:
        """Whether `step` is looked at."""
        return bool(self.every(step)) if callable(self.every) else step % self.every == 0

    def flush(self) -> None:
        """Fetch what lies on the device and append it to the tables; one synchronisation."""
        self._rows.flush()

    @abstractmethod
    def table(self) -> pa.Table:
        """All rows so far, flushed."""

    def to_pandas(self) -> Any:
        """`table()` as a pandas frame; ImportError where pandas (extra `frames`) is not installed."""
        return framed(self.table())

    def _repr_html_(self) -> str:
        table = self.table()
        last = table.slice(max(0, table.num_rows - LAST)).to_pylist()
        return html_table(last, f"{type(self).__name__}: the last {len(last)} of {table.num_rows:,} rows")

    def _checked_state(self, state: Mapping[str, Any], *keys: str) -> None:
        """Refuse the state of something else."""
        if set(state) != set(keys):
            raise ValueError(f"the saved state has {sorted(state)}, not what a {type(self).__name__} saves")

    def _every_in_words(self) -> str:
        return getattr(self.every, "__name__", "function") if callable(self.every) else str(self.every)
