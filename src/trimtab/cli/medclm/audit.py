"""`trimtab medclm audit`."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from rich.table import Table

from trimtab.checks import number
from trimtab.cli.arguments import Output, parse
from trimtab.cli.console import console, print_json
from trimtab.cli.medclm.evaluate import SetName, data_of, held_out
from trimtab.cli.medclm.source_flags import pairs
from trimtab.cli.progress import counting_progress
from trimtab.files import alone
from trimtab.medclm.audit import AuditOptions, FolderModel, ServedModel, Subject
from trimtab.medclm.audit import audit as audit_model
from trimtab.medclm.audit.foresee import foresee_audit
from trimtab.medclm.audit.measures import verdict
from trimtab.medclm.audit.options import UNIT
from trimtab.medclm.audit.run import FILE
from trimtab.medclm.audit.subjects import folder_identity
from trimtab.medclm.boxes.formats import FormatName
from trimtab.medclm.boxes.models import ModelBoxes, boxes_of
from trimtab.medclm.boxes.resizing import resizing_of
from trimtab.medclm.evaluation.evaluate import write
from trimtab.medclm.evaluation.questions import Question
from trimtab.medclm.records import SplitName, Stage
from trimtab.medclm.texts.server import ChatServer
from trimtab.report.medclm.audit import render_audit


@dataclass(frozen=True)
class AuditArguments:
    """Asks a vision-language model every question with its own image, with one of another patient and with a grey one, and
    says whether its answers hang on the picture. Each reply is kept; interrupted, the same command goes on.

    Examples:
        trimtab medclm audit RUN
        trimtab medclm audit FOLDER --data VQA --questions vqa_rad --out AUDIT
        trimtab medclm audit NAME --server URL --data SET --out AUDIT
    """

    model: tyro.conf.Positional[str]
    """Folder of `trimtab medclm train`, any folder or hub name that transformers reads, or with --server the name there."""
    data: Path | None = None
    """Built set, or folder of a question set; default what the run was trained on."""
    questions: SetName = "medclm"
    """medclm, or a question set as its authors ship it."""
    split: SplitName = "test"
    """Which part."""
    stages: tuple[Stage, ...] = ("medium", "hard")
    """Of a built set; questions of the stage easy quote the box, which tells where to look without looking."""
    limit: int = 0
    """At most so many questions, spread evenly; 0 takes all."""
    out: Path | None = None
    """Folder for replies, results and page; default audit in the run."""
    server: str | None = None
    """Address of an OpenAI-compatible server; its key is read from the environment variable OPENAI_API_KEY."""
    concurrency: int = 4
    """Requests to the server at a time."""
    timeout: float = 120.0
    """Seconds to wait for one reply of the server."""
    tries: int = 4
    """Tries at most until the server replies."""
    fields: tuple[str, ...] = ()
    """Fields of a request to the server as KEY=VALUE (YAML), such as temperature=1; null leaves one out."""
    batch: int = 32
    """Questions at a time, of a model in a folder."""
    form: Literal["auto", "taught", "explained"] = "auto"
    """taught: as `trimtab medclm train` asks; explained: the form of the reply is spelled out; auto: by whether it is a run."""
    ask: Literal["set", "reasoning", "answer"] = "set"
    """For reasoning where a built set has it, and for all question sets of others; always; or for the answer alone."""
    boxes: Literal[FormatName, "auto", "none"] = "auto"
    """How reasoning shall give a known box: a format by name, that of the folder's family, or (unknown, or served) unit, which
    is fractions; none: boxes are neither asked for nor measured."""
    tokens: int = 0
    """Of a reply with reasoning; 0: 192 in the form taught, 1024 in the form explained."""
    claimed: float | None = None
    """Accuracy that the model's makers publish for this set, 0 to 1: printed beside ours."""
    dry_run: bool = False
    """Say how many requests there would be and how many replies are kept already; asks nothing, writes nothing."""
    output: Annotated[Output, tyro.conf.arg(name="")] = Output()


def audit(arguments: Sequence[str]) -> int:
    """Parse and audit."""
    given = parse(AuditArguments, arguments, "medclm audit")
    folder = Path(given.model)
    run = given.server is None and (folder / "run.json").is_file()
    if given.claimed is not None:
        number("--claimed", given.claimed, least=0, most=1)
    if given.out is None and not run:
        raise ValueError(f"{given.model} is no run of `trimtab medclm train`, so say with --out where the results go")
    if given.data is None and not run:
        raise ValueError(f"{given.model} is no run of `trimtab medclm train`, so say with --data what to ask it")
    out = given.out or folder / "audit"
    data = given.data or data_of(folder)
    form = given.form if given.form != "auto" else "taught" if run else "explained"
    ask = "reasoning" if given.ask == "set" and given.questions != "medclm" else given.ask
    boxes = _boxes(given, folder, form)
    options = AuditOptions(form, ask, boxes, given.tokens, given.limit)
    asked, training = held_out(given.questions, data, given.split, given.stages, quiet=given.output.silent, alone=True)
    if given.dry_run:
        return _foreseen(given, asked, out, options)
    subject = _subject(given)
    with alone(out, "auditing into"), counting_progress("audit", quiet=given.output.silent) as progress:
        found = audit_model(subject, asked, out / "replies", options, training, progress)
        about = {
            "model": subject.name, "server": given.server, "data": str(data), "questions": given.questions,
            "split": given.split, "form": form, "ask": ask,
            "boxes": "none" if boxes is None else boxes.format.name, "claimed": given.claimed,
        }  # fmt: skip
        write(found, out, about, FILE)
        page = render_audit(out)
    summary = {**about, **found.summary}
    if given.output.json:
        print_json(summary)
        return 0
    for table in (conditions_table(summary), measures_table(summary)):
        console.print(table)
    for what, why in summary["left_out"].items():
        console.print(f"not measured: {what}: {why}", highlight=False, markup=False)
    for name, why in list(summary["failed"].items())[:5]:
        console.print(f"not asked: question {name}: {why}", highlight=False, markup=False)
    console.print(verdict(summary), highlight=False, markup=False)
    console.print(f"report: {page} (open it in a browser)", soft_wrap=True)
    console.print(f"results: {out / FILE}, replies: {out / 'predictions.jsonl'}", soft_wrap=True)
    return 0


def _foreseen(given: AuditArguments, asked: Sequence[Question], out: Path, options: AuditOptions) -> int:
    folder = Path(given.model)
    identity = folder_identity(folder) if given.server is None else _served(given).identity
    found = foresee_audit(identity, asked, out / "replies", options)
    left = found.requests - found.kept
    if given.output.json:
        print_json({**asdict(found), "left": left, "writes": str(out)})
        return 0
    pictures = "its own, another patient's and a grey picture"
    lines = [
        f"{found.questions:,} questions on {pictures}: {found.requests:,} different requests to {given.model}",
        f"{found.kept:,} replies are kept in {out / 'replies'}; {left:,} would be asked for: {found.tokens:,} tokens at most",
        f"would write {out}; nothing was asked or written",
    ]
    for line in lines:
        console.print(line, soft_wrap=True, markup=False, highlight=False)
    return 0


def _served(given: AuditArguments) -> ServedModel:
    assert given.server is not None
    key = os.environ.get("OPENAI_API_KEY") or "none"  # servers of one's own want none
    server = ChatServer(given.server, key, given.tries, given.timeout)
    return ServedModel(given.model, server, given.concurrency, pairs(given.fields, "--fields"))


def _subject(given: AuditArguments) -> Subject:
    if given.server is None:
        return FolderModel(Path(given.model), given.batch)
    return _served(given)


def _boxes(given: AuditArguments, folder: Path, form: str) -> ModelBoxes | None:
    """How boxes are written: as named, or for "auto" as the model of the folder does, if that is known."""
    if given.boxes == "none":
        return None
    own = given.server is None and folder.is_dir()
    if given.boxes == "auto":
        if own and form == "explained":
            with suppress(ValueError):  # a family whose boxes are not known
                return boxes_of(folder)
        return UNIT
    return ModelBoxes.named(given.boxes, resizing_of(folder) if own and given.boxes == "qwen2.5" else None)


def conditions_table(summary: Mapping[str, Any]) -> Table:
    """Rules of single replies, the pictures side by side."""
    systems = summary["systems"]
    rows = {(name, row["rule"]): row for name, one in systems.items() for row in one["rows"] if row["group"] == "all"}
    table = Table(title=f"{summary['n']:,} questions, in percent; 95 % bootstrap intervals over patients")
    for column in ("rule", "n", *systems, *(["claimed"] if summary["claimed"] is not None else [])):
        table.add_column(column, justify="left" if column == "rule" else "right")
    for rule in dict.fromkeys(rule for _, rule in rows):
        first = rows["real", rule]
        claimed = [f"{100 * summary['claimed']:.1f}"] if rule == "accuracy.1" and summary["claimed"] is not None else []
        table.add_row(rule, f"{first['n']:,}", *(_cell(rows.get((name, rule))) for name in systems), *claimed)
    return table


def measures_table(summary: Mapping[str, Any]) -> Table:
    """What hangs on the picture."""
    table = Table(title="does the answer hang on the picture?")
    for column in ("measure", "n", "%", "what it is"):
        table.add_column(column, justify="right" if column in ("n", "%") else "left")
    for row in summary["measures"]:
        if row["group"] == "all":
            table.add_row(row["rule"], f"{row['n']:,}", _cell(row), summary["rules"][row["rule"]])
    return table


def _cell(row: Mapping[str, Any] | None) -> str:
    if row is None:
        return ""
    bounds = "" if row["low"] is None else f" ({100 * row['low']:.0f} to {100 * row['high']:.0f})"
    return f"{100 * row['value']:.1f}{bounds}"
