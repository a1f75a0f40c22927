"""The page of a MedCLM run: curriculum, evaluation, examples."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from trimtab.inputs import named, read_json_lines, read_json_mapping
from trimtab.report.medclm.curriculum import curriculum_sections
from trimtab.report.medclm.evaluation import evaluation_section, examples_section
from trimtab.report.page import as_yaml, render_sections
from trimtab.report.palette import looks
from trimtab.report.parts import Section


def _finite(part: Any) -> Any:
    """`part` with None for each number that is not finite: a loss that diverged is a gap in its curve."""
    if isinstance(part, dict):
        return {key: _finite(value) for key, value in part.items()}
    if isinstance(part, list):
        return [_finite(value) for value in part]
    return None if isinstance(part, float) and not math.isfinite(part) else part


def _lines(file: Path) -> list[dict[str, Any]]:
    if not file.is_file():
        return []
    with named(file):
        return [_finite(line) for line in read_json_lines(file)]


def _mapping(file: Path) -> dict[str, Any]:
    with named(file):
        return dict(_finite(read_json_mapping(file)))


def _examples(file: Path) -> Section:
    predictions = _lines(file)
    try:
        with named(file):
            return examples_section(predictions)
    except FileNotFoundError as error:
        raise ValueError(f"{file} speaks of a picture that is not there: {error.filename}") from error


def render_medclm_run(run: Path, path: Path | None = None) -> Path:
    """Write RUN/report.html from what `trimtab medclm train` and `evaluate` left in RUN; what is missing is said.

    Args:
        run: folder of a run.
        path: the file to write; default `report.html` in the run.

    Raises:
        FileNotFoundError: the folder holds no run.
        ValueError: a file of the run is damaged; names it.
    """
    file = run / "run.json"
    if not file.is_file():
        raise FileNotFoundError(f"{run} has no run.json; `trimtab medclm train` writes one")
    about = _mapping(file)
    with named(file):
        options = dict(about["options"])
        facts = _facts(about, options)
    decided = run / "stages.jsonl"
    decisions = _lines(decided)
    with named(decided):
        stages = list(decisions[0]["shares"]) if decisions else []
        sections = curriculum_sections(decisions, looks(stages, stages[0]) if stages else {})
    evaluated = run / "evaluation.json"
    summary: dict[str, Any] = {}
    rows: list[dict[str, Any]] = []
    headline = f"{options['schedule']} curriculum, not evaluated yet."
    if evaluated.is_file():
        summary = _mapping(evaluated)
        with named(evaluated):
            sections.append(evaluation_section(summary, looks(list(summary["systems"]), "majority")))
            rows = [{"system": name, **row} for name, one in summary["systems"].items() for row in one["rows"]]
            headline = _headline(summary)
        sections.append(_examples(run / "predictions.jsonl"))
    else:
        sections.append(
            Section("evaluation", "Held-out questions", missing="Not evaluated: trimtab medclm evaluate RUN")
        )
    data = {"schema": "trimtab.medclm.run/1", "rows": rows, "decisions": decisions, "run": about}
    return render_sections(
        sections, path or run / "report.html", name=f"MedCLM: {options['model']}, {options['schedule']}", headline=headline,
        facts=facts, recipe=as_yaml(options), data=json.dumps(data), file="medclm.json",
        notes=["One run, one seed: a difference to another run may be chance."],
    )  # fmt: skip


def _facts(about: dict[str, Any], options: dict[str, Any]) -> list[tuple[str, str]]:
    return [
        ("model", str(options["model"])), ("schedule", str(options["schedule"])),
        ("steps", f"{about.get('steps', options['steps'])} of {options['batch']} rows"), ("seed", str(options["seed"])),
        ("training rows", f"{about.get('rows', 0):,}"), ("parameters", f"{about.get('parameters', 0):,}"),
        ("data", Path(about["data"]).name),
    ]  # fmt: skip


def _headline(summary: dict[str, Any]) -> str:
    parts = []
    for rule, words in (("closed.1", "closed questions right"), ("f1.1", "F1 of open answers")):
        values = {
            name: row["value"]
            for name, one in summary["systems"].items()
            for row in one["rows"]
            if (row["group"], row["rule"]) == ("all", rule)
        }
        if "model" in values:
            others = ", ".join(f"{name} {100 * value:.0f} %" for name, value in values.items() if name != "model")
            parts.append(f"{words}: {100 * values['model']:.0f} % ({others})")
    return "; ".join(parts)[:1].upper() + "; ".join(parts)[1:] + "."
