"""The page of a MedCLM run: curriculum, evaluation, examples."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trimtab.inputs import named
from trimtab.medclm.evaluation import looking
from trimtab.report.medclm.curriculum import curriculum_sections
from trimtab.report.medclm.evaluation import evaluation_section, system_words
from trimtab.report.medclm.examples import examples_in
from trimtab.report.medclm.records import lines_in, mapping_in
from trimtab.report.page import as_yaml, render_sections
from trimtab.report.palette import Look, looks
from trimtab.report.parts import Section, Tile, Verdict, listed, series_of


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
    about = mapping_in(file)
    with named(file):
        options = dict(about["options"])
        facts = _facts(about, options)
    decided = run / "stages.jsonl"
    decisions = lines_in(decided)
    with named(decided):
        stages = list(decisions[0]["shares"]) if decisions else []
        sections = curriculum_sections(decisions, looks(stages, stages[0]) if stages else {})
    evaluated = run / "evaluation.json"
    summary: dict[str, Any] = {}
    rows: list[dict[str, Any]] = []
    verdict = Verdict(f"{options['schedule']} curriculum, not evaluated yet.")
    systems: dict[str, Look] = {}
    if evaluated.is_file():
        summary = mapping_in(evaluated)
        with named(evaluated):
            systems = looks(list(summary["systems"]), "majority")
            sections.insert(0, evaluation_section(summary, systems))
            rows = [{"system": name, **row} for name, one in summary["systems"].items() for row in one["rows"]]
            verdict = _verdict(summary, systems)
        sections.insert(1, examples_in(run / "predictions.jsonl", {"model": "model's answer"}))
    else:
        sections.append(
            Section("evaluation", "Held-out questions", missing="Not evaluated: trimtab medclm evaluate RUN")
        )
    drawn = {system_words(name): look for name, look in systems.items()}
    data = {"schema": "trimtab.medclm.run/1", "rows": rows, "decisions": decisions, "run": about}
    return render_sections(
        sections, path or run / "report.html", name=f"MedCLM: {options['model']}, {options['schedule']}", verdict=verdict,
        series=series_of(drawn), facts=facts, recipe=as_yaml(options), data=json.dumps(data), file="medclm.json",
        notes=["One run, one seed: a difference to another run may be chance."],
    )  # fmt: skip


def _facts(about: dict[str, Any], options: dict[str, Any]) -> list[tuple[str, str]]:
    return [
        ("model", str(options["model"])), ("schedule", str(options["schedule"])),
        ("steps", f"{about.get('steps', options['steps'])} of {options['batch']} rows"), ("seed", str(options["seed"])),
        ("training rows", f"{about.get('rows', 0):,}"), ("parameters", f"{about.get('parameters', 0):,}"),
        ("data", Path(about["data"]).name), ("created", str(about.get("created", "not recorded"))),
        ("hardware", listed(about.get("hardware", {}))), ("versions", listed(about.get("versions", {}))),
    ]  # fmt: skip


def _values(summary: dict[str, Any], rule: str) -> dict[str, dict[str, Any]]:
    return {
        name: row
        for name, one in summary["systems"].items()
        for row in one["rows"]
        if (row["group"], row["rule"]) == ("all", rule)
    }


def _verdict(summary: dict[str, Any], looks: Mapping[str, Look]) -> Verdict:
    """Does the model see? Its answers beside those with other patients' images and the guesses from the words."""
    rules = [rule for rule in ("closed.1", "f1.1") if "model" in _values(summary, rule)]
    if not rules:
        return Verdict("The evaluation holds no rule on closed or open questions.")
    words = {"closed.1": "closed questions right", "f1.1": "F1 of open answers"}
    parts: list[str] = []
    for rule in rules:
        found = _values(summary, rule)
        others = ", ".join(
            f"{system_words(name)} {100 * row['value']:.0f} %" for name, row in found.items() if name != "model"
        )
        text = f"{words[rule]}: {100 * found['model']['value']:.0f} %" + (f" ({others})" if others else "")
        parts.append(text[0].upper() + text[1:] if not parts else text)
    found = _values(summary, rules[0])
    own, rivals = found["model"], [row["value"] for name, row in found.items() if name != "model"]
    low = own["value"] if own["low"] is None else own["low"]
    if summary.get("looking"):
        claim = f"{looking.verdict(summary).rstrip('. ')}. "
    elif not rivals:
        claim = ""
    elif low > max(rivals):
        claim = "The model sees: it beats the same model with images of others and every guess from the words. "
    elif own["value"] > max(rivals):
        claim = "The model may see: it is ahead of the guesses, but its interval holds the best of them. "
    else:
        claim = "The model has learnt nothing from the images: a guess from the words does as well. "
    tiles = []
    for name, row in found.items():
        between = "" if row["low"] is None else f", {100 * row['low']:.0f} to {100 * row['high']:.0f} %"
        tiles.append(
            Tile(system_words(name), f"{100 * row['value']:.0f} %", words[rules[0]] + between, look=looks.get(name))
        )
    return Verdict(claim + "; ".join(parts) + ".", tiles)
