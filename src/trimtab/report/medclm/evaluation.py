"""What a MedCLM model answered: rules by stage beside the baselines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from trimtab.medclm.evaluation.looking import verdict
from trimtab.report.medclm.curriculum import check_fractions
from trimtab.report.palette import Look
from trimtab.report.parts import MINUS, Cell, Figure, Section, Table
from trimtab.report.traces import dots, whiskers

SYSTEMS = {
    "blank": "grey images", "text only": "images of others", "text with box numbers": "words and box numbers",
    "real": "own images", "shuffled": "images of others",
}  # fmt: skip
"""What the page calls a system where its name in the file does not say it: not without images, but with another patient's."""
RULES = {
    "closed": "closed questions", "named": "closed, named", "exact": "open, exact", "f1": "open, F1 of words",
    "recall": "open, recall of words", "box-given": "quotes a box", "iou": "box overlap (IoU)", "iou50": "IoU above half",
    "organ": "names the organ", "side": "names the side", "quotes": "quotes the gold box", "agrees": "reasoning agrees",
    "accuracy": "right answers", "lateral": "answers the right side", "mirrored": "answers the other side",
    "vrs": "Visual Reliance Score", "is": "Image Sensitivity", "blank-is": "changes on grey images",
    "kept": "accuracy kept on grey images", "claims": "claims to see", "hvrr": "claims to see, same answer (HVRR)",
    "ungrounded": "of claims, same answer",
}  # fmt: skip
"""Short words for the rules, by their id without its number."""
STAGES = ("easy", "medium", "hard")


def system_words(name: str) -> str:
    """What the page calls a system."""
    return SYSTEMS.get(name, name)


def rule_words(rule: str) -> str:
    """A rule in words.

    Example:
        >>> rule_words("closed.1"), rule_words("mine.2")
        ('closed questions', 'mine.2')
    """
    return RULES.get(rule.rpartition(".")[0], rule)


def percent_cell(row: Mapping[str, Any] | None) -> Cell:
    """A rule's value in percent with its interval, if it has one; empty for None."""
    if row is None:
        return Cell("", None)
    bounds = "" if row["low"] is None else f" ({100 * row['low']:.0f} to {100 * row['high']:.0f})"
    return Cell(f"{100 * row['value']:.1f}{bounds}".replace("-", MINUS), round(100 * row["value"], 4))


def rules_table(
    summary: Mapping[str, Any], group: str, title: str, *, folded: bool, first: str = "model"
) -> Table | None:
    """Rules of one kind of group, the systems side by side; what the system `first` has no row for is left out."""
    systems = summary["systems"]
    found = {
        (row["name"], row["rule"], system): row
        for system, one in systems.items()
        for row in one["rows"]
        if row["group"] == group
    }
    names = list(dict.fromkeys(name for name, _, system in found if system == first))
    names.sort(key=lambda name: STAGES.index(name) if name in STAGES else len(STAGES))
    rows = [
        [
            Cell(rule_words(rule)),
            Cell(name),
            Cell(f"{row['n']:,}", row["n"]),
            *(percent_cell(found.get((name, rule, system))) for system in systems),
        ]
        for rule in summary["rules"]
        for name in names
        if (row := found.get((name, rule, first))) is not None
    ]
    head = ["rule", group, "n", *(f"{system_words(system)}, %" for system in systems)]
    return Table(f"rules-{group}", title, head, rows, folded=folded) if rows else None


def rules_figure(summary: Mapping[str, Any], looks: Mapping[str, Look], rules: Sequence[str], caption: str) -> Figure:
    """Rules over all questions, the systems side by side, with their intervals."""
    systems = list(summary["systems"])
    traces = []
    for system in systems:
        rows = {row["rule"]: row for row in summary["systems"][system]["rows"] if row["group"] == "all"}
        shown = [rule for rule in rules if rule in rows]
        if not shown:
            continue
        look, beside = looks[system], 0.09 * (systems.index(system) - (len(systems) - 1) / 2)
        highs, lows = reaches([rows[rule] for rule in shown])
        traces.append(
            dots(
                system_words(system), look, [rules.index(rule) + beside for rule in shown],
                [100 * rows[rule]["value"] for rule in shown],
                "%{fullData.name}, %{customdata}: %{y:.1f} %", size=10, customdata=[rule_words(rule) for rule in shown],
                error_y=whiskers(look, highs, lows),
            )
        )  # fmt: skip
    return Figure(
        "rules", f"{caption}; whiskers are 95 % bootstrap intervals over patients.", {"": traces},
        {"yaxis": {"title": {"text": "%"}, "range": [-4, 104], "zeroline": False}, "height": 360,
         "xaxis": {"tickvals": list(range(len(rules))), "ticktext": [rule_words(rule) for rule in rules], "keep": True,
                   "range": [-0.5, len(rules) - 0.5], "zeroline": False, "showgrid": False}},
    )  # fmt: skip


def reaches(rows: Sequence[Mapping[str, Any]]) -> tuple[list[float], list[float]]:
    """How far the intervals reach above and below the values, in percent; 0 where there is none."""
    highs = [0.0 if row["high"] is None else 100 * (row["high"] - row["value"]) for row in rows]
    return highs, [0.0 if row["low"] is None else 100 * (row["value"] - row["low"]) for row in rows]


def legend_table(rules: Mapping[str, str]) -> Table:
    """What each rule measures."""
    rows = [[Cell(rule_words(rule)), Cell(rule), Cell(text)] for rule, text in rules.items()]
    return Table("rule-ids", "The rules", ["rule", "id", "what it measures"], rows, folded=True, prose=True)


def evaluation_section(summary: Mapping[str, Any], looks: Mapping[str, Look]) -> Section:
    """Rules over all questions and by stage, domain and kind, the systems side by side."""
    for row in (row for one in summary["systems"].values() for row in one["rows"]):
        check_fractions({name: row[name] for name in ("value", "low", "high")})
    rules = [rule for rule in summary["rules"] if rule.split(".")[0] in ("closed", "f1", "exact", "iou", "agrees")]
    caption = "The model, the same model with images of other patients, and guesses from the words, over all questions"
    figure = rules_figure(summary, looks, rules, caption)
    what = [f"{system_words(system)}: {one['what']}." for system, one in summary["systems"].items()]
    tables = [
        rules_table(summary, "all", "All questions", folded=False),
        rules_table(summary, "stage", "By stage", folded=False),
        rules_table(summary, "kind", "By kind of question", folded=True),
        rules_table(summary, "domain", "By domain", folded=True),
        legend_table(summary["rules"]),
    ]  # fmt: skip
    return Section(
        "evaluation", f"Held-out questions: {summary['n']:,}, split {summary['split']}",
        ["In percent, with 95 % bootstrap intervals that draw whole patients. A model that does not beat the columns beside "
         "it has learnt nothing from the images.", *what, *_looking(summary)],
        [figure], [table for table in tables if table is not None],
    )  # fmt: skip


def _looking(summary: Mapping[str, Any]) -> list[str]:
    """The verdict, where the evaluation has what it rests on."""
    return [verdict(summary)] if summary.get("looking") else []
