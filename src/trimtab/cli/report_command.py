"""`trimtab report`: HTML and summary from folders that hold runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from trimtab.cli.arguments import Output, parse
from trimtab.cli.console import print_json
from trimtab.cli.study import gathered, show, write_report
from trimtab.report import render
from trimtab.runs.run_folder import RunFolder
from trimtab.studies.plan import planned_runs
from trimtab.studies.records import Records, RunRecord
from trimtab.studies.summary import Cost, Latency
from trimtab.studies.weights.assemble import assemble, kept_measurements


@dataclass(frozen=True)
class ReportArguments:
    """Gathers every finished and pruned run below the folders into one report, and names the runs that are missing.

    Examples:
        trimtab report runs/digits
        trimtab report runs/digits runs/more --out report --name "two studies"
        trimtab report runs/digits --split validation --json
    """

    folders: tyro.conf.Positional[tuple[Path, ...]]
    """Study or run folders of one task, or folders of records (compare --records)."""
    out: Path | None = None
    """Where report.html and summary.json go; default the first folder."""
    name: str | None = None
    """Title; default the recipe's name."""
    split: Literal["validation", "test"] = "test"
    """Which measurements."""
    output: Annotated[Output, tyro.conf.arg(name="")] = Output()


def run(arguments: Sequence[str]) -> int:
    """Parse and write."""
    given = parse(ReportArguments, arguments, "report")
    if not given.folders:
        raise ValueError("name at least one folder: trimtab report DIR [DIR ...]")
    out = given.out or given.folders[0]
    if len(given.folders) == 1:
        summary = write_report(given.folders[0], out, name=given.name, split=given.split)
    else:
        own = next((folder for folder in given.folders if not Records(folder).files), out)
        found: list[RunFolder] = []
        records: dict[Path, RunRecord] = {}
        for folder in given.folders:
            runs, recorded = gathered(folder, study=own)
            found, records = [*found, *runs], {**records, **recorded}
        costs: list[Cost] = []
        latencies: list[Latency] = []
        for folder in given.folders:
            more_costs, more_latencies = kept_measurements(folder)
            costs += [cost for cost in more_costs if cost.method not in {known.method for known in costs}]
            latencies = latencies or more_latencies
        planned = {path: run for folder in given.folders for path, run in planned_runs(folder).items()}
        summary = assemble(
            found, out, name=given.name, split=given.split, costs=costs, latencies=latencies, planned=planned,
            records=records,
        )  # fmt: skip
        out.mkdir(parents=True, exist_ok=True)
        summary.write(out / "summary.json")
        render(summary, out / "report.html")
    if given.output.json:
        print_json(summary.model_dump(mode="json", by_alias=True))
    else:
        show(summary, out)
    return 0
