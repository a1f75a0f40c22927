"""`trimtab push`: share a finished run and its pruned network, on the Hugging Face Hub or in a folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from trimtab.cli.arguments import Output, parse
from trimtab.cli.console import console, print_json
from trimtab.studies.sharing import push


@dataclass(frozen=True)
class PushArguments:
    """Shares a finished run: the dense network, the pruned one as a sparse file, recipe, metrics and a model card, in the
    layout of the Hugging Face Hub. The run is not changed.

    Examples:
        trimtab push runs/digits/sgd/seed0 --to shared
        trimtab push runs/digits/sgd/seed0 --to shared --sparsity 0.95
        trimtab push runs/digits/sgd/seed0 --to hf://USER/NAME --license apache-2.0
    """

    run: tyro.conf.Positional[Path]
    """A finished run folder."""
    to: str
    """A folder that is empty or not there yet, or hf://USER/NAME (needs trimtab[hub] and a login by `hf auth login`)."""
    sparsity: float | None = None
    """Of the pruned network; default 0.9, or what the recipe's N:M pattern fixes; 0: the dense network alone."""
    root: str | None = None
    """Where the data lie, if not where the recipe says."""
    license: str | None = None
    """The card's licence by its short name, such as apache-2.0; default: none is named."""
    public: bool = False
    """Make a new place on the Hub public."""
    output: Annotated[Output, tyro.conf.arg(name="")] = Output()


def run(arguments: Sequence[str]) -> int:
    """Parse and share."""
    given = parse(PushArguments, arguments, "push")
    place = push(
        given.run, given.to, sparsity=given.sparsity, root=given.root, licence=given.license, private=not given.public
    )
    if given.output.json:
        print_json({"shared": place})
    else:
        console.print(f"shared: {place}   next: trimtab pull {given.to} --out RUN", soft_wrap=True, markup=False)
    return 0
