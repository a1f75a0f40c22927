"""`trimtab gradients`: how the gradients of tracked runs went, as tables and as a page of figures."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich import box
from rich.table import Table
from rich.text import Text

from trimtab.cli.arguments import Output, parse
from trimtab.cli.console import console, print_json
from trimtab.report import render_dynamics
from trimtab.report.parts import listed
from trimtab.runs.run_folder import RunFolder
from trimtab.studies.comparison import run_folders
from trimtab.studies.gradients.dynamics import in_words, run_dynamics
from trimtab.studies.summary import Dynamics
from trimtab.studies.variants import run_label


@dataclass(frozen=True)
class GradientsArguments:
    """Shows how the gradients of tracked runs went, side by side: reads what `trimtab train --track
    gradients,weights,updates` left, also of runs that are not finished.

    Examples:
        trimtab gradients runs/digits/sgd/seed0
        trimtab gradients runs/digits --out gradients
        trimtab gradients runs/digits --json > gradients.json
    """

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Tracked run folders, or folders that hold such."""
    out: Path | None = None
    """Where gradients.html goes; default the first folder."""
    layers: bool = True
    """Print a table of the layers for each run (at most 4 runs)."""
    output: Annotated[Output, tyro.conf.arg(name="")] = Output()


def tracked_runs(folders: Sequence[Path]) -> list[tuple[RunFolder, Dynamics]]:
    """Every tracked run at or below the folders, labelled so that no two are taken for one.

    Raises:
        ValueError: none of them was tracked.
    """
    runs = list({run.path: run for folder in folders for run in run_folders(folder)}.values())
    tracked = [run for run in runs if run.gradients_folder.is_dir()]
    labels = [(run_label(run.recipe), run.recipe.seed) for run in tracked]
    found = []
    for run, label in zip(tracked, labels, strict=True):
        name = label[0] if labels.count(label) == 1 else str(run.path)
        dynamics = run_dynamics(run, name)
        if dynamics is not None:
            found.append((run, dynamics))
    if not found:
        raise ValueError(
            f"no tracked run among {', '.join(map(str, folders))}; train one with --track gradients,weights,updates"
        )
    return found


def _text(value: float | None, times: str = "") -> str:
    return "-" if value is None else f"{value:,.3g}{times}"


def layer_table(run: Dynamics) -> Table:
    """One row per layer, and one for all together."""
    table = Table(
        title=Text(f"{run.method}, seed {run.seed}: standard deviation of each layer's gradient"), box=box.SIMPLE_HEAD,
        padding=(0, 1), pad_edge=False, caption="first, last: tenth of the tracked steps, medians; upd/w: norm of a step's "
        "weight change over norm of the weights",
    )  # fmt: skip
    table.add_column("layer", overflow="fold", min_width=12)
    for name in ("first", "last", "fall", "upd/w", "dead %", "nan/inf"):
        table.add_column(name, justify="right", no_wrap=True)
    for layer in run.layers:
        falls = layer.first is not None and layer.last is not None and layer.last > 0
        fall = layer.first / layer.last if falls and layer.first is not None and layer.last is not None else None
        table.add_row(
            Text(layer.name.removesuffix(".weight")), _text(layer.first), _text(layer.last), _text(fall, "x"),
            _text(layer.update_ratio),
            f"{100 * layer.dead:.3g}", str(layer.non_finite),
            style="red" if layer.non_finite or layer.dead >= 0.5 else None,
        )  # fmt: skip
    return table


def facts_table(found: Sequence[Dynamics]) -> Table:
    """One row per run."""
    table = Table(
        title="gradients of all layers together", box=box.SIMPLE_HEAD, padding=(0, 0), pad_edge=False,
        caption="differ: largest / smallest std of a layer, median over steps; fall: global std, first over last tenth; "
        "rank: Spearman's correlation of the global std with the step; dead: layers with a gradient of zero in half or more "
        "of the steps; nan/inf: entries",
    )  # fmt: skip
    table.add_column("run", overflow="fold", min_width=12)
    for name in ("steps", "differ", "fall", "rank", "upd/w", "alpha", "dead", "nan/inf"):
        table.add_column(name, justify="right", no_wrap=True)
    for run in found:
        facts = run.facts
        alpha = "-" if facts.alpha is None else f"{facts.alpha[0]:.2g}..{facts.alpha[1]:.2g}"
        table.add_row(
            Text(f"{run.method}, seed {run.seed}"), str(run.tracked), _text(facts.heterogeneity, "x"), _text(facts.fall, "x"),
            "-" if facts.trend is None else f"{facts.trend:.2f}", _text(facts.update_ratio), alpha, str(facts.dead),
            str(facts.non_finite),
        )  # fmt: skip
    return table


def records_of(found: Sequence[Dynamics]) -> dict[str, list[dict[str, Any]]]:
    """The same as lists of flat records, for a data frame: one for each run, each layer of a run, each point of a run."""
    runs, layers, steps = [], [], []
    for one in found:
        who: dict[str, Any] = {"method": one.method, "seed": one.seed}
        runs.append({**who, "tracked": one.tracked, **one.facts.model_dump(mode="json")})
        layers += [
            {**who, "layer": layer.name, **layer.model_dump(mode="json", exclude={"name", "log10_std"})}
            for layer in one.layers
        ]
        columns = {
            "step": one.steps, "std": one.std, "dead": one.dead, "non_finite": one.non_finite,
            **({"update_ratio": one.update_ratio} if one.update_ratio else {}), **one.signals,
        }  # fmt: skip
        steps += [{**who, **dict(zip(columns, row, strict=True))} for row in zip(*columns.values(), strict=True)]
    return {"runs": runs, "layers": layers, "steps": steps}


def run(arguments: Sequence[str]) -> int:
    """Parse, read, show."""
    given = parse(GradientsArguments, arguments, "gradients")
    if not given.runs:
        raise ValueError("name at least one tracked run: trimtab gradients RUN [RUN ...]")
    show(given.runs, given.out or given.runs[0], given.output, layers=given.layers)
    return 0


def show(folders: Sequence[Path], out: Path, output: Output, *, layers: bool = True) -> None:
    """Print the tables of the tracked runs at or below the folders, and write their page into `out`."""
    pairs = tracked_runs(folders)
    found = [dynamics for _, dynamics in pairs]
    recipe = pairs[0][0].recipe
    labels = list(dict.fromkeys(dynamics.method for dynamics in found))
    facts = [
        ("runs", ", ".join(labels)),
        ("seeds", ", ".join(sorted({str(dynamics.seed) for dynamics in found}))),
        ("data", recipe.data.name),
        ("model", recipe.model.name),
        ("created", datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")),
        ("hardware", listed(pairs[0][0].info().get("hardware", {}))),
        ("versions", listed(pairs[0][0].info().get("versions", {}))),
        ("status", ", ".join(sorted({str(folder.info().get("status", "unknown")) for folder, _ in pairs}))),
    ]
    headline = in_words(found)
    page = render_dynamics(
        found, out / "gradients.html", name=f"{recipe.name}: gradients", headline=headline, facts=facts,
        recipe=recipe.to_yaml(),
    )  # fmt: skip
    if output.json:
        print_json({"page": str(page), "headline": headline, **records_of(found)})
        return
    if layers and len(found) <= 4:
        for dynamics in found:
            console.print(layer_table(dynamics))
    console.print(facts_table(found))
    console.print(f"page: {page}", soft_wrap=True, markup=False)
    console.print(headline, soft_wrap=True, markup=False)
