"""The page of a study of weights: one or more summaries."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trimtab.report.curvature.track import track_section
from trimtab.report.gradients.dynamics import dynamics_sections
from trimtab.report.page import as_article, as_yaml, write_page
from trimtab.report.parts import STATES, Section, listed, series_of
from trimtab.report.weights.accuracy import accuracy_section, controls_section
from trimtab.report.weights.balance import balance_section
from trimtab.report.weights.bearing import bearing_section
from trimtab.report.weights.contrasts import contrasts_section
from trimtab.report.weights.files import files_section
from trimtab.report.weights.finetuned import fine_tuned_sections
from trimtab.report.weights.records import results_section, runs_section
from trimtab.report.weights.resources import cost_section, latency_section, storage_section
from trimtab.report.weights.study import Study
from trimtab.report.weights.verdict import verdict
from trimtab.report.weights.weights import weights_section
from trimtab.studies.summary import Summary

BEFORE = (accuracy_section, controls_section, storage_section, latency_section, cost_section, weights_section)


AFTER = (runs_section, results_section)


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
    facts += [("hardware", listed(summary.hardware)), ("versions", listed(summary.versions))]
    if summary.runs:
        facts.append(
            ("to repeat a run", f"trimtab train {summary.runs[0].folder} --out NEW (folders: table of training runs)")
        )
    return facts


def study_sections(study: Study) -> list[Section]:
    """All that is shown of a study of weights."""
    sections = [build(study) for build in BEFORE]
    sections[1:1] = fine_tuned_sections(study)
    sections[1:1] = [contrasts] if (contrasts := contrasts_section(study)) is not None else []
    sections += dynamics_sections(study.summary.dynamics, study.looks)
    sections += [track_section(study.summary.curvature, study.looks)] if study.summary.curvature else []
    if (files := files_section(study)) is not None:
        sections.insert([section.name for section in sections].index("storage"), files)
    sections += [bearing] if (bearing := bearing_section(study)) is not None else []
    sections += [balance] if (balance := balance_section(study)) is not None else []
    return sections + [build(study) for build in AFTER]


def _study(summary: Summary, place: int) -> dict[str, Any]:
    study = Study(summary)
    sections = study_sections(study)
    switchable = [state for state in STATES if (state == "recalibrated") in study.states]
    return as_article(
        place,
        sections,
        summary.missing,
        len(summary.runs),
        verdict=verdict(study),
        series=series_of(study.looks, study.shown),
        name=summary.name,
        headline=summary.headline,
        notes=summary.notes,
        facts=_facts(summary),
        recipe=as_yaml(summary.recipe),
        states={state: STATES[state] for state in switchable},
        data=summary.model_dump_json(by_alias=True),
        file="summary.json",
    )


def render(summary: Summary | Sequence[Summary], path: Path) -> Path:
    """Write the report of one or more studies: a single HTML file that needs no network.

    plotly's script is packed into it once (about 0.5 MB), whatever the number of figures and studies. Labels,
    notes and recipes are escaped wherever they stand. What a summary does not hold is left out with a sentence saying so.

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
    return write_page([_study(one, place) for place, one in enumerate(summaries)], title, path)
