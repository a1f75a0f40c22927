"""What the curriculum of a MedCLM run did: shares of the stages over time by domain, reasons, smoothed losses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from trimtab.report.palette import Look
from trimtab.report.parts import Cell, Figure, Section, Table
from trimtab.report.traces import line, shortened

EPOCHS = {"title": {"text": "epoch of the scheduler"}, "zeroline": False}


def _domains(decisions: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    found: dict[str, list[Mapping[str, Any]]] = {}
    for one in decisions:
        found.setdefault(one["domain"], []).append(one)
    return found


def _line(name: str, look: Look, points: Sequence[tuple[int, float]], shape: str = "linear") -> dict[str, Any]:
    x, y = [x for x, _ in points], shortened([y for _, y in points])
    hover = "%{fullData.name}, epoch %{x}: %{y:.3g}"
    return line(name, look, x, y, hover, points=True, size=5, shape=shape, group=True)


def check_fractions(found: Mapping[str, Any]) -> None:
    """Raise a ValueError that names the first value that is no number from 0 to 1; None may stand for none."""
    for name, value in found.items():
        if value is not None and not (isinstance(value, int | float) and 0 <= value <= 1):
            raise ValueError(f"{name} must be a number from 0 to 1, got {value!r}")


def curriculum_sections(decisions: Sequence[Mapping[str, Any]], looks: Mapping[str, Look]) -> list[Section]:
    """Shares and losses by domain.

    Args:
        decisions: lines of `stages.jsonl`.
        looks: of the stages.
    """
    if not decisions:
        return [Section("shares", "Stages over time", missing="The run wrote no decisions.")]
    for one in decisions:
        check_fractions(one["shares"])
    shares, losses, rows = [], [], []
    for place, (domain, found) in enumerate(_domains(decisions).items()):
        stages = list(found[0]["shares"])
        lines = [
            _line(stage, looks[stage], [(one["epoch"], 100 * one["shares"][stage]) for one in found], "hv")
            for stage in stages
        ]
        layout = {"xaxis": EPOCHS, "height": 260, "margin": {"l": 48}}
        shares.append(
            Figure(
                f"shares-{place}", f"Share of the draws of {domain} by stage, in percent.", {"": lines},
                {**layout, "yaxis": {"title": {"text": "share, %"}, "range": [-4, 104], "zeroline": False}},
                small=True, title=domain,
            )
        )  # fmt: skip
        curves = [
            _line(stage, looks[stage], points)
            for stage in stages
            if (points := [(one["epoch"], one["losses"][stage]) for one in found if one["losses"][stage] is not None])
        ]
        if curves:
            losses.append(
                Figure(
                    f"losses-{place}", f"Smoothed loss of {domain} by stage.", {"": curves},
                    {**layout, "yaxis": {"title": {"text": "loss"}, "rangemode": "tozero"}}, small=True, title=domain,
                )
            )  # fmt: skip
        before: tuple[Any, str] = (None, "")
        for one in found:
            now = (one["shares"], one["reason"].split(":")[0])
            if now != before:
                text = ", ".join(f"{stage} {100 * share:.0f} %" for stage, share in one["shares"].items())
                rows.append([Cell(domain), Cell(str(one["epoch"]), one["epoch"]), Cell(text), Cell(one["reason"])])
            before = now
    reasons = Table("reasons", "Decisions that changed something, and why", ["domain", "epoch", "shares", "reason"], rows,
                    folded=len(rows) > 40)  # fmt: skip
    return [
        Section("shares", "Stages over time", ["Which share of a domain's draws came from which stage, by epoch of the "
                "scheduler."], shares, [reasons]),
        Section("losses", "Losses by stage", ["As the scheduler saw them when it decided; a stage has no point before it was "
                "measured. Stages that are not shown are measured by probe batches where the scheduler asks for them."], losses,
                missing="" if losses else "The scheduler looks at no losses, or none was measured."),
    ]  # fmt: skip
