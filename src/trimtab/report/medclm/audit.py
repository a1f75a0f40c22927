"""The page of an audit: what is right on which pictures, whether the answers hang on them, examples."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trimtab.inputs import named
from trimtab.medclm.audit.measures import claim, value
from trimtab.medclm.audit.run import FILE
from trimtab.report.medclm.evaluation import (
    legend_table,
    percent_cell,
    reaches,
    rule_words,
    rules_figure,
    rules_table,
    system_words,
)
from trimtab.report.medclm.examples import examples_in
from trimtab.report.medclm.records import mapping_in
from trimtab.report.page import as_yaml, render_sections
from trimtab.report.palette import look
from trimtab.report.parts import MINUS, Cell, Figure, Section, Table, Tile, Verdict, series_of
from trimtab.report.traces import dots, holding, whiskers

LOOKS = {"real": look("model"), "shuffled": look("text only"), "blank": look("blank"), "majority": look("majority")}
"""As on the page of an evaluation."""
SHOWN = ("accuracy", "closed", "f1", "iou", "iou50", "lateral", "agrees")
"""Rules of the figure, by their id without its number."""
SHORT = {
    "vrs": "VRS", "is": "IS", "blank-is": "IS, grey", "kept": "kept, grey", "claims": "claims", "hvrr": "HVRR",
    "ungrounded": "of claims",
}  # fmt: skip
"""What the axis calls a measure; the table below the figure has its name."""
ANSWERS = {"real": "on its own image", "shuffled": "on another's", "blank": "on a grey one"}
"""Heads of the examples' columns."""


def render_audit(folder: Path, path: Path | None = None) -> Path:
    """Write FOLDER/audit.html from the `audit.json` and `predictions.jsonl` of `trimtab medclm audit`.

    Args:
        folder: where they lie.
        path: the file to write; default `audit.html` beside them.

    Raises:
        FileNotFoundError: the folder holds no audit.
        ValueError: a file is damaged; names it.
    """
    file = folder / FILE
    if not file.is_file():
        raise FileNotFoundError(f"{folder} has no {FILE}; `trimtab medclm audit` writes one")
    summary = mapping_in(file)
    with named(file):
        sections = [_pictures(summary), _measures(summary)]
        lead, facts = _verdict(summary), _facts(summary)
        rows = [{"system": name, **row} for name, one in summary["systems"].items() for row in one["rows"]]
        rows += [{"system": "compared", **row} for row in summary["measures"]]
        asked = {
            name: summary[name] for name in ("model", "server", "data", "questions", "split", "form", "ask", "boxes")
        }
        drawn = {system_words(name): LOOKS[name] for name in summary["systems"]}
        unmeasured = [
            Section(f"without-{place}", what, missing=f"{why}.")
            for place, (what, why) in enumerate(summary["left_out"].items())
        ]
        name = f"Audit: {_short(summary['model'])} on {_short(summary['data'])}"
    sections.append(examples_in(folder / "predictions.jsonl", ANSWERS))
    data = {"schema": summary.get("schema"), "rows": rows, "audit": summary}
    return render_sections(
        [*sections, *unmeasured], path or folder / "audit.html", name=name, verdict=lead, series=series_of(drawn), facts=facts,
        recipe=as_yaml(asked), data=json.dumps(data), file=FILE, notes=_notes(summary),
    )  # fmt: skip


def _short(path: str) -> str:
    return Path(path).name or path


def _pictures(summary: Mapping[str, Any]) -> Section:
    rules = [rule for rule in summary["rules"] if rule.split(".")[0] in SHOWN]
    rules.sort(key=lambda rule: SHOWN.index(rule.split(".")[0]))
    caption = "The same questions with their own images, with images of others and with grey ones"
    what = [f"{system_words(name)}: {one['what']}." for name, one in summary["systems"].items()]
    tables = [
        rules_table(summary, "all", "All questions", folded=False, first="real"),
        rules_table(summary, "stage", "By stage", folded=True, first="real"),
        rules_table(summary, "kind", "By kind of question", folded=True, first="real"),
        rules_table(summary, "domain", "By domain", folded=True, first="real"),
    ]
    return Section(
        "pictures", f"Right answers by picture: {summary['n']:,} questions, split {summary['split']}",
        ["In percent, with 95 % bootstrap intervals that draw whole patients.", *what],
        [rules_figure(summary, LOOKS, rules, caption)], [table for table in tables if table is not None],
    )  # fmt: skip


def _measures(summary: Mapping[str, Any]) -> Section:
    rows = [row for row in summary["measures"] if row["group"] == "all"]
    look_of = LOOKS["real"]
    highs, lows = reaches(rows)
    values = [100 * row["value"] for row in rows]
    trace = dots(
        "", look_of, list(range(len(rows))), values, "%{customdata}: %{y:.1f}", size=10, showlegend=False,
        customdata=[rule_words(row["rule"]) for row in rows], error_y=whiskers(look_of, highs, lows),
    )  # fmt: skip
    ends = [value + more for value, more in zip(values, highs, strict=True)]
    ends += [value - less for value, less in zip(values, lows, strict=True)]
    ticks = [SHORT[row["rule"].split(".")[0]] for row in rows]
    figure = Figure(
        "measures", "What hangs on the picture; whiskers are 95 % bootstrap intervals over patients.", {"": [trace]},
        {"yaxis": {"title": {"text": "%"}, "range": holding(ends, -4, 104)}, "height": 340,
         "xaxis": {"tickvals": list(range(len(rows))), "ticktext": ticks, "keep": True,
                   "range": [-0.5, len(rows) - 0.5], "zeroline": False, "showgrid": False}},
    )  # fmt: skip
    tables = [
        Table(
            "measures-all", "All questions", ["measure", "n", "%", "what it is"],
            [[Cell(rule_words(row["rule"])), Cell(f"{row['n']:,}", row["n"]), percent_cell(row),
              Cell(summary["rules"][row["rule"]])] for row in rows], prose=True,
        ),
        *(_grouped(summary, group) for group in ("stage", "kind", "domain")),
        legend_table(summary["rules"]),
    ]  # fmt: skip
    return Section(
        "measures", "Do the answers hang on the pictures?",
        ["A model that looks is right more often on the real image (Visual Reliance Score), changes its answer with the image "
         "(Image Sensitivity), and does not describe what changes nothing (HVRR). Definitions: arXiv 2603.03437; what counts "
         "as the same answer and as a claim to see is this tool's rule."],
        [figure], [table for table in tables if table is not None],
    )  # fmt: skip


def _grouped(summary: Mapping[str, Any], group: str) -> Table | None:
    rows = [row for row in summary["measures"] if row["group"] == group]
    cells = [
        [Cell(rule_words(row["rule"])), Cell(row["name"]), Cell(f"{row['n']:,}", row["n"]), percent_cell(row)]
        for row in rows
    ]
    return Table(f"measures-{group}", f"By {group}", ["measure", group, "n", "%"], cells, folded=True) if rows else None


def _verdict(summary: Mapping[str, Any]) -> Verdict:
    tiles = []
    for name, one in summary["systems"].items():
        row = value(one["rows"], "accuracy.1")
        if row is not None and name != "majority":
            claimed = summary.get("claimed") if name == "real" else None
            note = _bounds(row) + ("" if claimed is None else f"; claimed {100 * claimed:.1f} %")
            tiles.append(Tile(system_words(name), f"{100 * row['value']:.0f} %", note, look=LOOKS[name]))
    for rule in ("vrs.1", "is.1", "hvrr.1"):
        row = value(summary["measures"], rule)
        if row is not None:
            shown = f"{100 * row['value']:+.0f} points" if rule == "vrs.1" else f"{100 * row['value']:.0f} %"
            tiles.append(Tile(rule_words(rule), shown.replace("-", MINUS), _bounds(row)))
    return Verdict(f"{claim(summary)}.", tiles)


def _bounds(row: Mapping[str, Any]) -> str:
    return "" if row["low"] is None else f"{100 * row['low']:.0f} to {100 * row['high']:.0f}".replace("-", MINUS)


def _facts(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    found = [
        ("model", str(summary["model"])), ("questions", f"{summary['n']:,} of {_short(summary['data'])}, {summary['split']}"),
        ("form of the prompt", str(summary["form"])),
        *((name, f"{number:,}") for name, number in summary["replies"].items() if number),
    ]  # fmt: skip
    return found + ([("server", str(summary["server"]))] if summary.get("server") else [])


def _notes(summary: Mapping[str, Any]) -> list[str]:
    notes = ["No box is drawn on any picture. Which patient's image stands in for which is drawn with a fixed seed."]
    if summary.get("claimed") is not None:
        notes.append(
            "Published accuracies differ by 7 to 19 points between harnesses: compare only what one harness measured."
        )
    if summary["failed"]:
        names = ", ".join(list(summary["failed"])[:5])
        notes.append(f"{len(summary['failed']):,} questions could not be asked and are left out: {names}.")
    return notes
