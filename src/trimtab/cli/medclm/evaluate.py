"""`trimtab medclm evaluate` and the export of questions for other harnesses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from rich.table import Table

from trimtab.cli.arguments import Output, parse
from trimtab.cli.console import console, print_json
from trimtab.cli.progress import counting_progress
from trimtab.inputs import named, read_json_mapping
from trimtab.medclm.boxes import ModelBoxes, boxes_of
from trimtab.medclm.building import DataSetFolder
from trimtab.medclm.evaluation.benchmarks import load_benchmark
from trimtab.medclm.evaluation.evaluate import Evaluation, write
from trimtab.medclm.evaluation.evaluate import evaluate as evaluate_model
from trimtab.medclm.evaluation.exports import lmms_eval, vlmevalkit
from trimtab.medclm.evaluation.looking import verdict
from trimtab.medclm.evaluation.questions import Question, in_words_of, questions_of
from trimtab.medclm.records import SplitName, Stage
from trimtab.medclm.training.models import load_finished
from trimtab.report.medclm.run import render_medclm_run

SetName = Literal["medclm", "vqa_rad", "slake", "path_vqa", "pmc_vqa"]


@dataclass(frozen=True)
class EvaluateArguments:
    """Asks the trained model, the same model with images of other patients, the majority guess, and the guess from
    the text with its box numbers, and prints them side by side.

    Examples:
        trimtab medclm evaluate RUN
        trimtab medclm evaluate RUN --split validation --limit 500 --blank
        trimtab medclm evaluate RUN --export lmms-eval --out DIR
    """

    run: tyro.conf.Positional[Path]
    """Folder of `trimtab medclm train`, or of any model that transformers reads (then with --data and --out)."""
    data: Path | None = None
    """Built set, or folder of a question set; default what the run was trained on."""
    questions: SetName = "medclm"
    """medclm, or a question set as its authors ship it."""
    split: SplitName = "test"
    """Which part."""
    stages: tuple[Stage, ...] = ("easy", "medium", "hard")
    """Of a built set."""
    limit: int = 0
    """At most so many questions, spread evenly; 0 takes all."""
    batch: int = 32
    """Questions at a time."""
    out: Path | None = None
    """Folder for the results; default the run."""
    answer_only: bool = False
    """Ask all questions of a built set for the answer alone, without reasoning."""
    blank: bool = False
    """Ask with even grey pictures as well."""
    export: Literal["no", "lmms-eval", "vlmevalkit"] = "no"
    """Write the questions for another harness into --out instead of evaluating."""
    output: Annotated[Output, tyro.conf.arg(name="")] = Output()


def evaluate(arguments: Sequence[str]) -> int:
    """Parse and evaluate."""
    given = parse(EvaluateArguments, arguments, "medclm evaluate")
    out = given.out or given.run
    data = given.data or data_of(given.run)
    asked, training = questions(given, data)
    if given.export != "no":
        written = (
            lmms_eval(asked, out / "lmms_eval")
            if given.export == "lmms-eval"
            else vlmevalkit(asked, out / "MedCLM.tsv")
        )
        console.print(f"{len(asked):,} questions: {written}", soft_wrap=True)
        return 0
    about, found, page = measure(given, data, out, asked, training)
    if given.output.json:
        print_json({**about, **found.summary})
        return 0
    console.print(results_table(found.summary))
    console.print(verdict(found.summary), highlight=False)
    for rule, text in found.summary["rules"].items():
        console.print(f"{rule}: {text}", highlight=False, markup=False)
    if page is not None:
        console.print(f"report: {page} (open it in a browser)", soft_wrap=True)
    console.print(f"results: {out / 'evaluation.json'}, replies: {out / 'predictions.jsonl'}", soft_wrap=True)
    return 0


def measure(
    given: EvaluateArguments, data: Path, out: Path, asked: Sequence[Question], training: Sequence[Question]
) -> tuple[dict[str, str], Evaluation, Path | None]:
    """Evaluate and write; returns (what was evaluated, results, report page of a run)."""
    boxes = boxes_of_run(given.run)
    if boxes is not None and given.questions == "medclm":
        asked = in_words_of(asked, DataSetFolder(data), boxes)
    model, processor = load_finished(given.run)
    with counting_progress("evaluate", quiet=given.output.silent) as progress:
        found = evaluate_model(model, processor, asked, training, given.batch, progress, blank=given.blank, boxes=boxes)
    about = {"data": str(data), "questions": given.questions, "split": given.split, "model": str(given.run)}
    write(found, out, about)
    page = None
    if out == given.run and (given.run / "run.json").is_file():
        page = render_medclm_run(given.run)
    return about, found, page


def questions(given: EvaluateArguments, data: Path) -> tuple[list[Question], list[Question]]:
    """(what is asked, training questions for the majority)."""
    asked, training = held_out(given.questions, data, given.split, given.stages, quiet=given.output.silent)
    if given.answer_only and given.questions == "medclm":
        asked = [replace(one, reason=False) for one in asked]
    if given.limit and given.limit < len(asked):
        asked = [asked[place * len(asked) // given.limit] for place in range(given.limit)]
    return asked, training


def held_out(
    name: SetName, data: Path, split: SplitName, stages: Sequence[Stage], *, quiet: bool, alone: bool = False
) -> tuple[list[Question], list[Question]]:
    """(questions of the split, questions of the training split).

    Args:
        name: "medclm" for a built set, else whose layout the folder has.
        data: the folder.
        split, stages: which questions; stages of a built set only.
        quiet: do not say which rows were rejected.
        alone: do without training questions where their file is not there.
    """
    if name == "medclm":
        folder = DataSetFolder(data)
        asked = [one for one in questions_of(folder, [split]) if one.stage in stages]
        if not asked:
            raise ValueError(f"{data} has no questions of the split {split} and the stages {', '.join(stages)}")
        try:
            return asked, questions_of(folder, ["train"])
        except ValueError:
            if alone:
                return asked, []
            raise
    loaded = load_benchmark(name, data, split)
    if loaded.rejected and not quiet:
        console.print(
            f"{len(loaded.rejected):,} rows rejected, first: {loaded.rejected[0]}", highlight=False, markup=False
        )
    try:
        return loaded.questions, load_benchmark(name, data, "train").questions
    except (FileNotFoundError, ValueError):
        if alone:
            return loaded.questions, []
        raise


def boxes_of_run(run: Path) -> ModelBoxes | None:
    """How the model of a run writes boxes, where it was trained in its own way; None for fractions."""
    if not (run / "run.json").is_file():
        return None
    options = read_json_mapping(run / "run.json").get("options", {})
    return boxes_of(run / "model") if options.get("boxes") == "model" else None


def data_of(run: Path) -> Path:
    """The data set that a run was trained on."""
    file = run / "run.json"
    if not file.is_file():
        raise FileNotFoundError(f"{run} has no run.json, so it is no run of `trimtab medclm train`: say --data")
    with named(file):
        return Path(read_json_mapping(file)["data"])


def results_table(summary: Mapping[str, Any]) -> Table:
    """Rules over all questions and by stage, the systems side by side."""
    systems = summary["systems"]
    found = {
        (row["group"], row["name"], row["rule"], system): row for system, one in systems.items() for row in one["rows"]
    }
    table = Table(title=f"{summary['n']:,} questions; 95 % bootstrap intervals over patients")
    table.add_column("rule")
    table.add_column("questions")
    table.add_column("n", justify="right")
    for system in systems:
        table.add_column(system, justify="right")
    stages = [name for name in ("easy", "medium", "hard") if any(key[:2] == ("stage", name) for key in found)]
    for rule in summary["rules"]:
        for group, name in (("all", "all"), *(("stage", stage) for stage in stages)):
            row = found.get((group, name, rule, "model"))
            if row is not None:
                cells = [_cell(found.get((group, name, rule, system))) for system in systems]
                table.add_row(rule, name, f"{row['n']:,}", *cells)
    return table


def _cell(row: Mapping[str, Any] | None) -> str:
    if row is None:
        return ""
    bounds = "" if row["low"] is None else f" ({100 * row['low']:.0f}-{100 * row['high']:.0f})"
    return f"{100 * row['value']:.1f} %{bounds}"
