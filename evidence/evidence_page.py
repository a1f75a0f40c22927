"""What the evidence scripts share: Markdown tables, intervals, and the places in a page that they fill."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from trimtab.files import write_text
from trimtab.studies.contrasts import Judged
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


def verdict(found: Judged) -> str:
    """What may be said after the correction."""
    if found.difference is None or not found.shown:
        return "not told apart"
    return "**above**" if found.difference > 0 else "**below**"


def contrast_table(found: Iterable[Judged], name: Callable[[Judged], str] = str) -> str:
    """Contrasts that were written down, in points."""
    lines = []
    for one in found:
        if one.difference is None or one.low is None or one.corrected is None:
            lines.append([name(one), "", "", "not measured"])
            continue
        half = 100 * (one.difference - one.low)
        cells = [f"{100 * one.difference:+.1f} ± {half:.1f} ({one.seeds} seeds)", f"{one.corrected:.2g}"]
        lines.append([name(one), *cells, verdict(one)])
    return table(["difference in points", "paired by seed", "p after Holm", "verdict"], lines)


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
