"""One self-contained HTML page from one or more summaries."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from trimtab.experiments.summary import Dynamics, Summary
from trimtab.files import write_text
from trimtab.report.accuracy import accuracy_section, controls_section
from trimtab.report.curvature_track import track_section
from trimtab.report.dynamics import dynamics_sections
from trimtab.report.palette import THEMES, looks
from trimtab.report.parts import STATES, Figure, Section
from trimtab.report.records import results_section, runs_section
from trimtab.report.resources import cost_section, latency_section, storage_section
from trimtab.report.study import Study
from trimtab.report.weights import weights_section

BEFORE = (accuracy_section, controls_section, storage_section, latency_section, cost_section, weights_section)
AFTER = (runs_section, results_section)
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


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("trimtab.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["script_json"] = script_json
    return environment


def _figure(figure: Figure) -> dict[str, Any]:
    return {"states": figure.states, "layout": figure.layout, "layouts": figure.layouts, "switch": figure.switch}


def _facts(summary: Summary) -> list[tuple[str, str]]:
    """What was run, in short."""
    methods = list(dict.fromkeys(run.method for run in summary.runs)) or list(
        dict.fromkeys(r.method for r in summary.rows)
    )
    seeds = sorted({run.seed for run in summary.runs} | {row.seed for row in summary.rows})
    facts = [("methods", ", ".join(methods)), ("seeds", f"{len(seeds)} ({', '.join(map(str, seeds))})")]
    for key in ("data", "model"):
        value = summary.recipe.get(key)
        name = value.get("name") if isinstance(value, dict) else value
        if name:
            facts.append((key, str(name)))
    splits = sorted({row.split for row in summary.rows})
    facts += [("measured on", " and ".join(splits) + " split")]
    facts += [("created", summary.created)]
    facts += [
        ("hardware", ", ".join(f"{k} {v}" for k, v in summary.hardware.items() if v is not None) or "not recorded")
    ]
    facts += [("versions", ", ".join(f"{k} {v}" for k, v in summary.versions.items()) or "not recorded")]
    if summary.runs:
        facts.append(
            ("to repeat a run", f"trimtab train {summary.runs[0].folder} --out NEW (folders: table of training runs)")
        )
    return facts


def _article(place: int, sections: Sequence[Section], **parts: Any) -> dict[str, Any]:
    """What the template of one study needs."""
    return {
        "key": f"s{place}",
        "sections": sections,
        "figures": {
            f"s{place}-figure-{figure.name}": _figure(figure) for section in sections for figure in section.figures
        },
        **parts,
    }


def _study(summary: Summary, place: int) -> dict[str, Any]:
    study = Study(summary)
    sections = [build(study) for build in BEFORE]
    sections += dynamics_sections(summary.dynamics, study.looks)
    sections += [track_section(summary.curvature, study.looks)] if summary.curvature else []
    sections += [build(study) for build in AFTER]
    switchable = [
        state for state, recalibrated in (("pruned", False), ("recalibrated", True)) if recalibrated in study.states
    ]
    return _article(
        place,
        sections,
        name=summary.name,
        headline=summary.headline,
        notes=summary.notes,
        facts=_facts(summary),
        recipe=yaml.safe_dump(summary.recipe, sort_keys=False, allow_unicode=True, width=100),
        states={state: STATES[state] for state in switchable},
        data=summary.model_dump_json(by_alias=True),
        file="summary.json",
    )


def _write(articles: Sequence[dict[str, Any]], title: str, path: Path) -> Path:
    from plotly.offline import get_plotlyjs

    text = (
        _environment()
        .get_template("page.html.j2")
        .render(
            studies=articles,
            themes=THEMES,
            page={"themes": THEMES, "figures": {k: v for one in articles for k, v in one["figures"].items()}},
            title=title,
            plotly=Markup(get_plotlyjs()),
        )
    )
    write_text(Path(path), text)
    return Path(path)


def render(summary: Summary | Sequence[Summary], path: Path) -> Path:
    """Write the report of one or more studies: a single HTML file that needs no network.

    plotly's script is inlined once (about 4.8 MB), whatever the number of figures and studies. Labels, notes and recipes
    are escaped wherever they stand. What a summary does not hold is left out with a sentence saying so.

    Args:
        summary: one study, or several to be shown below each other.
        path: the file to write; its folder is made when absent, an earlier file is replaced only by a whole one.

    Returns:
        `path`.

    Raises:
        ValueError: no summary, a summary without rows, or rows that contradict each other.
        OSError: the file could not be written.
    """
    summaries = [summary] if isinstance(summary, Summary) else list(summary)
    if not summaries:
        raise ValueError("a report needs at least one summary, got none")
    for one in summaries:
        if not one.rows:
            raise ValueError(f"the summary {one.name!r} has no rows: there is nothing to report")
    title = summaries[0].name if len(summaries) == 1 else f"{len(summaries)} studies"
    return _write([_study(one, place) for place, one in enumerate(summaries)], title, path)


def render_dynamics(
    found: Sequence[Dynamics], path: Path, *, name: str, headline: str, facts: Sequence[tuple[str, str]], recipe: str
) -> Path:
    """Write the dynamics of tracked runs as one page of the same kind, for runs that need be neither finished nor pruned.

    Args:
        found: the runs; seeds of one label are drawn together.
        path: the file to write.
        name, headline: heading and sentence at the top.
        facts: what was run, as (term, text).
        recipe: YAML shown folded.

    Returns:
        `path`.

    Raises:
        ValueError: no run.
        OSError: the file could not be written.
    """
    if not found:
        raise ValueError("a page of dynamics needs at least one tracked run, got none")
    labels = list(dict.fromkeys(run.method for run in found))
    sections = dynamics_sections(found, looks(labels, labels[0]))
    rows = [
        {"method": run.method, "seed": run.seed, **layer.model_dump(exclude={"log10_std"})}
        for run in found
        for layer in run.layers
    ]
    data = {
        "schema": "trimtab.gradients/1",
        "name": name,
        "rows": rows,
        "dynamics": [run.model_dump(mode="json") for run in found],
    }
    return render_sections(
        sections, path, name=name, headline=headline, facts=facts, recipe=recipe, data=json.dumps(data), file="gradients.json"
    )  # fmt: skip


def render_sections(
    sections: Sequence[Section],
    path: Path,
    *,
    name: str,
    headline: str,
    facts: Sequence[tuple[str, str]],
    recipe: str,
    data: str,
    file: str,
    notes: Sequence[str] = (),
) -> Path:
    """Write sections as one page of the same kind.

    Args:
        sections: what is shown, in this order.
        path: the file to write.
        name, headline: heading and sentence at the top.
        facts: what was run, as (term, text).
        recipe: YAML shown folded.
        data: JSON document that the page carries; its "rows" are what is downloaded as CSV.
        file: name under which the document is downloaded.
        notes: plain sentences under the headline.

    Returns:
        `path`.
    """
    article = _article(
        0, sections, name=name, headline=headline, notes=list(notes), facts=facts, recipe=recipe, states={}, data=data,
        file=file,
    )  # fmt: skip
    return _write([article], name, path)
