"""What the evidence scripts share: Markdown tables, intervals, and the places in a page that they fill."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from trimtab.files import write_text
from trimtab.studies.statistics import Estimate


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows))


def spread(found: Estimate | None, scale: float = 1.0, digits: int = 3, *, signed: bool = False) -> str:
    """`mean ± half the interval`, or the mean alone where one value gives no interval."""
    if found is None:
        return ""
    mean = f"{scale * found.mean:{'+' if signed else ''}.{digits}f}"
    return mean if found.half is None else f"{mean} ± {scale * found.half:.{digits}f}"


def mean_and_range(values: Sequence[float]) -> str:
    """Shares as `mean (least to most)`, in percent."""
    return f"{100 * statistics.mean(values):.1f} ({100 * min(values):.1f} to {100 * max(values):.1f})"


def fill(page: Path, blocks: Mapping[str, str]) -> None:
    """Write each block between `<!-- NAME begins -->` and `<!-- NAME ends -->`."""
    text = page.read_text(encoding="utf-8")
    for name, block in blocks.items():
        before, begins, rest = text.partition(f"<!-- {name} begins -->\n")
        _, ends, after = rest.partition(f"<!-- {name} ends -->")
        if not (begins and ends):
            raise SystemExit(
                f"{page.name}: no place for {name}: the marks <!-- {name} begins --> and <!-- {name} ends -->"
            )
        text = f"{before}{begins}{block}\n{ends}{after}"
    write_text(page, text)
