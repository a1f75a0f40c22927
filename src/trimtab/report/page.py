"""One self-contained HTML page from sections."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from trimtab.files import write_text
from trimtab.report.bundle import packed_script
from trimtab.report.palette import THEMES, swatch
from trimtab.report.parts import Figure, Section, Series, Verdict, aligned, plain
from trimtab.studies.plan import in_words
from trimtab.studies.summary import Missing

_IN_SCRIPT = str.maketrans({"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"})


def script_json(data: Any) -> Markup:
    """JSON that can stand inside a `<script>` element: no text in it can end the element or open a comment.

    Example:
        >>> print(script_json({"label": "</script>"}))
        {"label":"\\u003c/script\\u003e"}
    """
    text = (
        data if isinstance(data, str) else json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    )
    return Markup(text.translate(_IN_SCRIPT))


def environment() -> Environment:
    """Of the templates: everything is escaped, a name that is not given is an error."""
    made = Environment(
        loader=PackageLoader("trimtab.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters["script_json"] = script_json
    made.filters["swatch"] = lambda look: Markup(swatch(look))
    return made


def _figure(figure: Figure) -> dict[str, Any]:
    return {"states": figure.states, "layout": figure.layout, "layouts": figure.layouts, "switch": figure.switch}


def as_yaml(recipe: Mapping[str, Any]) -> str:
    """A recipe as it is shown."""
    text: str = yaml.safe_dump(dict(recipe), sort_keys=False, allow_unicode=True, width=100)
    return text


def _tidied(section: Section) -> Section:
    """The section with tables that have no column of blanks only, the same decimals down each column."""
    tables = []
    for table in section.tables:
        kept = [at for at in range(len(table.head)) if not table.rows or any(row[at].text for row in table.rows)]
        rows = [[row[at] for at in kept] for row in table.rows]
        tables.append(aligned(replace(table, head=[table.head[at] for at in kept], rows=rows)))
    return replace(section, tables=tables)


def _is_empty(section: Section) -> bool:
    return bool(section.missing) and not (section.figures or section.tables)


def as_article(
    place: int,
    sections: Sequence[Section],
    missing: Sequence[Missing],
    done: int,
    *,
    verdict: Verdict,
    series: Sequence[Series] = (),
    **parts: Any,
) -> dict[str, Any]:
    """What the template of one study needs."""
    shown = [_tidied(section) for section in sections if not _is_empty(section)]
    return {
        "key": f"s{place}",
        "alert": in_words(missing, done),
        "missing": list(map(str, missing)),
        "sections": shown,
        "unmeasured": [section for section in sections if _is_empty(section)],
        "figures": {
            f"s{place}-figure-{figure.name}": _figure(figure) for section in shown for figure in section.figures
        },
        "verdict": verdict,
        "series": series,
        "names": {plain(one.name): one.shown for one in series},
        **parts,
    }


def write_page(articles: Sequence[dict[str, Any]], title: str, path: Path) -> Path:
    """Write the page of these articles; its figures are drawn by one script."""
    text = (
        environment()
        .get_template("page.html.j2")
        .render(
            studies=articles,
            themes=THEMES,
            page={
                "themes": THEMES,
                "figures": {k: v for one in articles for k, v in one["figures"].items()},
                "series": {one["key"]: one["names"] for one in articles},
            },
            title=title,
            plotly=packed_script(),
        )
    )
    write_text(Path(path), text)
    return Path(path)


def render_sections(
    sections: Sequence[Section],
    path: Path,
    *,
    name: str,
    verdict: Verdict,
    facts: Sequence[tuple[str, str]],
    recipe: str,
    data: str,
    file: str,
    headline: str = "",
    series: Sequence[Series] = (),
    notes: Sequence[str] = (),
    missing: Sequence[Missing] = (),
    done: int = 0,
) -> Path:
    """Write sections as one page of the same kind.

    Args:
        sections: what is shown, in this order.
        path: the file to write.
        name: heading.
        verdict: what the page decides, at the top.
        facts: what was run, as (term, text).
        recipe: YAML shown folded.
        data: JSON document that the page carries; its "rows" are what is downloaded as CSV.
        file: name under which the document is downloaded.
        headline: a longer sentence, under the first figure.
        series: names that are drawn alike in all figures.
        notes: plain sentences on how it was measured.
        missing, done: runs that should be there and are not, and how many are.

    Returns:
        `path`.
    """
    article = as_article(
        0, sections, missing, done, verdict=verdict, series=series, name=name, headline=headline, notes=list(notes),
        facts=facts, recipe=recipe, states={}, data=data, file=file,
    )  # fmt: skip
    return write_page([article], name, path)
