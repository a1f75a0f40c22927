"""Some questions with their pictures, and what was answered: on the page of an evaluation and of an audit."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from trimtab.inputs import named
from trimtab.medclm.audit.measures import CORRECT
from trimtab.medclm.evaluation.parsing import Reply, parse_reply
from trimtab.report.medclm.records import lines_in
from trimtab.report.palette import Look
from trimtab.report.parts import Cell, Figure, Section, Table
from trimtab.report.traces import dots, line

SIDE = 256
"""Longest side of a picture on the page, in pixels."""
MOST = 12


def examples_in(file: Path, answers: Mapping[str, str]) -> Section:
    """The section of examples of a file of predictions; `answers` as in `examples_section`.

    Raises:
        ValueError: the file is damaged, or a picture is not there; names it.
    """
    predictions = lines_in(file)
    try:
        with named(file):
            return examples_section(predictions, answers)
    except FileNotFoundError as error:
        raise ValueError(f"{file} speaks of a picture that is not there: {error.filename}") from error


def examples_section(predictions: Sequence[Mapping[str, Any]], answers: Mapping[str, str]) -> Section:
    """Some questions with their pictures: right and wrong, with the gold box and the first box of the reasoning.

    Args:
        predictions: the lines of `predictions.jsonl`.
        answers: system -> head of the column with its answers; the first is the one that is judged and whose reasoning stands.
    """
    judged = next(iter(answers))
    chosen = _chosen(predictions, judged)
    if not chosen:
        return Section("examples", "Examples", missing="There are no predictions.")
    figures, rows = [], []
    for number, one in enumerate(chosen, start=1):
        replies = {name: parse_reply(one["replies"][name]) for name in answers}
        verdict = "right" if _right(one, judged) else "wrong"
        kind = one["stage"] or one["kind"]
        figures.append(_picture(number, one, f"{number}: {kind}, {verdict}", _boxes(one, replies[judged])))
        said = [
            Cell(reply.answer or "(none)", note="bad" if name == judged and verdict == "wrong" else "")
            for name, reply in replies.items()
        ]
        rows.append([
            Cell(str(number), number), Cell(kind), Cell(one["question"]), Cell(one["answer"]), *said, Cell(verdict),
            Cell(replies[judged].reasoning),
        ])  # fmt: skip
    head = ["example", "kind", "question", "right answer", *answers.values(), "verdict", "reasoning"]
    return Section(
        "examples", "Examples",
        ["Chosen by rule, not by hand: evenly over the questions, right and wrong ones by turns. Solid: the gold box. Dashed: "
         "the first box that the reasoning quotes."],
        figures, [Table("examples", "What was asked and said", head, rows, prose=True)],
    )  # fmt: skip


def _right(one: Mapping[str, Any], system: str) -> bool:
    found = one["scores"][system]
    return any(found.get(rule) == 1 for rule in CORRECT)


def _chosen(predictions: Sequence[Mapping[str, Any]], system: str, most: int = MOST) -> list[Mapping[str, Any]]:
    """Evenly over the questions, as many right as wrong ones where there are."""
    groups = [[one for one in predictions if _right(one, system) is good] for good in (True, False)]
    found: list[Mapping[str, Any]] = []
    for place, group in enumerate(groups):
        take = min(len(group), most - min(len(groups[1 - place]), most // 2))
        found += [group[number * len(group) // take] for number in range(take)]
    return found


def _boxes(one: Mapping[str, Any], reply: Reply) -> list[tuple[str, tuple[float, ...], str, str]]:
    """What is drawn on the picture of a question: the gold box, and the first that the reply quotes."""
    boxes: list[tuple[str, tuple[float, ...], str, str]] = []
    if one["box"]:
        boxes.append(("gold box", tuple(one["box"]), "@s3", "solid"))
    return [*boxes, *(("quoted by the model", box, "@s2", "dash") for box in reply.boxes[:1])]


def _picture(
    number: int, one: Mapping[str, Any], title: str, boxes: Sequence[tuple[str, tuple[float, ...], str, str]]
) -> Figure:
    """The picture of a question as a small figure."""
    with Image.open(Path(one["image"])) as file:
        shown = file.convert("RGB")
    shown.thumbnail((SIDE, SIDE))
    stream = io.BytesIO()
    shown.save(stream, "JPEG", quality=80)
    source = "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode()
    traces = [
        line(name, Look(colour, dash), [x0, x1, x1, x0, x0], [y0, y0, y1, y1, y0], name, width=3)
        for name, (x0, y0, x1, y1), colour, dash in boxes
    ]  # fmt: skip
    axis = {"visible": False, "range": [0, 1], "fixedrange": True, "constrain": "domain"}
    layout = {
        "images": [
            {
                "source": source, "xref": "x", "yref": "y", "x": 0, "y": 0, "sizex": 1, "sizey": 1, "sizing": "stretch",
                "layer": "below",
            }
        ],
        "xaxis": axis,
        "yaxis": {**axis, "range": [1, 0], "scaleanchor": "x", "scaleratio": shown.height / shown.width},
        "height": 330, "margin": {"l": 8, "r": 8, "t": 8, "b": 8}, "showlegend": True,
    }  # fmt: skip
    caption = f"{one['question']} Right answer: {one['answer']}."
    blank = dots("", Look("@paper/0"), [0.5], [0.5], None, showlegend=False)
    return Figure(f"example-{number}", caption, {"": [blank, *traces]}, layout, small=True, title=title)
