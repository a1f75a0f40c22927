"""`trimtab prune`: measure a finished run at many sparsities."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from trimtab.cli.arguments import Output, parse
from trimtab.cli.console import console, errors, print_json
from trimtab.experiments.assemble import assemble
from trimtab.experiments.comparison import run_folders
from trimtab.experiments.prune_run import prune_run
from trimtab.experiments.recipe import Pruning
from trimtab.experiments.run_folder import RunFolder
from trimtab.report.terminal import terminal_table


@dataclass(frozen=True)
class PruneArguments:
    """`trimtab prune RUN [options]`: prunes a finished run once at each sparsity, without retraining, and measures it with and without BatchNorm recalibration. The run's network is not changed."""  # noqa: E501

    run: tyro.conf.Positional[Path]
    """A finished run folder."""
    pruning: Annotated[Pruning, tyro.conf.arg(name="")] = Pruning()
    split: Literal["validation", "test"] = "test"
    """What to measure on."""
    output: Annotated[Output, tyro.conf.arg(name="")] = Output()


def run(arguments: Sequence[str]) -> int:
    """Parse and measure."""
    words = [word for word in arguments if not word.startswith("-")]
    default = None
    if words and (Path(words[0]) / "recipe.yaml").is_file() and arguments[0] == words[0]:
        default = PruneArguments(Path(words[0]), RunFolder(Path(words[0])).recipe.pruning)
    given = parse(PruneArguments, arguments, "prune", default=default)
    folder = RunFolder(given.run)
    recipe = folder.recipe.model_copy(update={"pruning": given.pruning})
    note = None if given.output.silent else lambda text: errors.print(f"  {text}")
    result = prune_run(folder, recipe=recipe, split=given.split, report=note)
    if given.output.json:
        print_json(result.model_dump(mode="json"))
        return 0
    summary = assemble(run_folders(given.run), given.run, split=given.split)
    for recalibrated in sorted({row.recalibrated for row in summary.rows}):
        console.print(terminal_table(summary, recalibrated=recalibrated))
    for stored in result.storage:
        console.print(
            f"{stored.sparsity:.1%} sparse: {stored.sparse_bytes:,} bytes instead of {stored.dense_bytes:,} "
            f"({stored.dense_bytes / stored.sparse_bytes:.2f}x smaller; gzip {stored.gzip_bytes:,})"
        )
    if result.left_out:
        console.print(
            f"left out of pruning: {len(result.left_out)} tensors, e.g. {next(iter(result.left_out.items()))}"
        )
    console.print(f"next: trimtab export {given.run} --sparsity 0.9", soft_wrap=True)
    return 0
