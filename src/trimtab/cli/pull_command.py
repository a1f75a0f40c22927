"""`trimtab pull`: take a shared run over as a run folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from trimtab.cli.arguments import Output, parse
from trimtab.cli.console import console, print_json
from trimtab.studies.sharing import pull


@dataclass(frozen=True)
class PullArguments:
    """Takes a run that `trimtab push` shared over as a run folder, which prune, export and report read.

    Examples:
        trimtab pull shared --out again
        trimtab pull hf://USER/NAME --out again
        trimtab pull hf://USER/NAME@v1.0 --out again
    """

    source: tyro.conf.Positional[str]
    """hf://USER/NAME, with @REVISION for a commit, branch or tag; or a folder."""
    out: Path
    """Folder for the run; it must be empty or not there yet."""
    output: Annotated[Output, tyro.conf.arg(name="")] = Output()


def run(arguments: Sequence[str]) -> int:
    """Parse and take over."""
    given = parse(PullArguments, arguments, "pull")
    folder = pull(given.source, given.out)
    if given.output.json:
        print_json({"run": str(folder.path), "recipe": folder.recipe.name, "method": folder.recipe.method})
    else:
        console.print(f"run folder: {folder.path}   next: trimtab prune {folder.path}", soft_wrap=True, markup=False)
    return 0
