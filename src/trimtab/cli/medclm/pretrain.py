"""`trimtab medclm pretrain`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.table import Table

from trimtab.cli.arguments import Output, parse
from trimtab.cli.console import console, print_json
from trimtab.cli.progress import measuring_progress
from trimtab.medclm.training.pretrain import PretrainOptions
from trimtab.medclm.training.pretrain import pretrain as pretrain_tower


@dataclass(frozen=True)
class PretrainArguments:
    """Teaches the vision tower of tiny-llava the boxes, organs and places of the training pictures, for
    `trimtab medclm train --tower TOWER`; `train` does the same by itself. Interrupted, the same command goes on.

    Examples:
        trimtab medclm pretrain SET --out TOWER
        trimtab medclm pretrain SET --out TOWER --epochs 20 --seed 1
        trimtab medclm pretrain SET --out TOWER --most 5000 --json
    """

    folder: tyro.conf.Positional[Path]
    """Folder that `trimtab medclm build` wrote."""
    out: Path
    """Folder for the tower and its figures."""
    options: Annotated[PretrainOptions, tyro.conf.arg(name="")] = PretrainOptions()
    output: Annotated[Output, tyro.conf.arg(name="")] = Output()


def pretrain(arguments: Sequence[str]) -> int:
    """Parse and pretrain."""
    given = parse(PretrainArguments, arguments, "medclm pretrain")
    with measuring_progress("pretrain", None, quiet=given.output.silent) as report:

        def progress(epoch: int, epochs: int, loss: float | None) -> None:
            report(epoch, f"epoch {epoch}/{epochs}  loss {loss or 0:.3f}", epochs)

        found = pretrain_tower(given.folder, given.out, given.options, progress)
    if given.output.json:
        print_json(found)
        return 0
    console.print(
        f"{found['pictures']:,} pictures, {given.options.epochs} epochs, {found['cpu_seconds']:.0f} CPU seconds",
        highlight=False,
    )
    console.print(tower_table(found["figures"]))
    console.print(f"next: trimtab medclm train {given.folder} --tower {given.out} --out RUN", soft_wrap=True)
    return 0


def tower_table(figures: Mapping[str, Any]) -> Table:
    """What the tower sees of the validation pictures."""
    table = Table(title=f"the tower on {figures['pictures']:,} validation pictures, area under the curve")
    for name in ("class", "pictures", "which pictures", "which patches"):
        table.add_column(name, justify="left" if name == "class" else "right")
    for label, row in figures["classes"].items():
        table.add_row(label, f"{row['pictures']:,}", _shown(row["auc_pictures"]), _shown(row["auc_patches"]))
    if figures["organs"] is not None:
        table.add_row("organs, mean", "", "", _shown(figures["organs"]))
    return table


def _shown(area: float | None) -> str:
    return "" if area is None else f"{area:.3f}"
