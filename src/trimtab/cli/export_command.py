"""`trimtab export`: a finished run, pruned, as files that other tools read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.table import Table

from trimtab import deploy
from trimtab.cli.arguments import Output, parse
from trimtab.cli.console import console, print_json
from trimtab.deploy import one_file_reader
from trimtab.files import write_text
from trimtab.observe import summary
from trimtab.runs.run_folder import RunFolder
from trimtab.studies.pruned_network import pruned_network
from trimtab.studies.statistics import sparsity_label
from trimtab.studies.variants import safe_name


@dataclass(frozen=True)
class ExportArguments:
    """Prunes a copy of a finished run's network and writes it; the run is not changed. Says what got smaller, what
    got faster, and what did not. For a file of fewest bytes: trimtab compress.

    Examples:
        trimtab export runs/digits/sgd/seed0 --sparsity 0.9
        trimtab export runs/digits/sgd/seed0 --sparsity 0.9 --to sparse onnx
        trimtab export --to reader > trimtab_reader.py
    """

    run: tyro.conf.Positional[Path | None] = None
    """A finished run folder; not needed for --to reader."""
    sparsity: float | None = None
    """Fraction of the prunable weights to remove; default 0.9, or what the recipe's N:M pattern fixes; 0: dense."""
    to: tuple[Literal["sparse", "onnx", "program", "reader"], ...] = ("sparse",)
    """sparse: small file (load_sparse or the reader opens it); onnx: dense ONNX; program: torch.export; reader: one Python file
    that opens sparse and compact files with NumPy and safetensors alone; compact files themselves: trimtab compress RUN."""
    out: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = None
    """Folder for the files; default RUN/export, and the terminal for the reader alone."""
    recalibrate: bool = True
    """Re-estimate BatchNorm statistics on training images after pruning."""
    batch: int = 64
    """Batch size for the latency figures."""
    root: str | None = None
    """Where the data lie, if not where the recipe says."""
    output: Annotated[Output, tyro.conf.arg(name="")] = Output()


def _write_reader(folder: Path) -> Path:
    file = folder / "trimtab_reader.py"
    write_text(file, Path(one_file_reader.__file__).read_text(encoding="utf-8"))
    return file


def _reader_alone(given: ExportArguments) -> int:
    """The one-file reader, printed or written; it needs no run."""
    if given.to != ("reader",):
        raise ValueError("name a finished run: trimtab export RUN [options]; only --to reader needs none")
    if given.out is None:
        print(Path(one_file_reader.__file__).read_text(encoding="utf-8"), end="")
        return 0
    file = _write_reader(given.out)
    if given.output.json:
        print_json({"files": {"reader": str(file)}})
    else:
        console.print(f"reader: {file}   next: python {file} FILE.safetensors", soft_wrap=True)
    return 0


def run(arguments: Sequence[str]) -> int:
    """Parse and write."""
    given = parse(ExportArguments, arguments, "export")
    if given.run is None:
        return _reader_alone(given)
    if given.batch < 1:
        raise ValueError(f"--batch must be 1 or more, got {given.batch}")
    folder = RunFolder(given.run)
    recipe = folder.recipe
    made = pruned_network(folder, given.sparsity, recalibrate=given.recalibrate, root=given.root)
    model, sparsity = made.model, made.sparsity
    example = made.data.example()
    out = given.out or given.run / "export"
    out.mkdir(parents=True, exist_ok=True)
    shown = sparsity_label(sparsity)
    stem = f"{recipe.name}-{safe_name(recipe.method)}-{shown.replace(' ', '').replace('%', '')}"
    files: dict[str, Path] = {}
    stored = None
    if "sparse" in given.to:
        files["sparse"] = out / f"{stem}.safetensors"
        stored = deploy.save_sparse(
            model, files["sparse"], metadata={"recipe": recipe.name, "method": recipe.method}, with_gzip=True
        )
    if "onnx" in given.to:
        files["onnx"] = out / f"{stem}.onnx"
        deploy.export_onnx(model, files["onnx"], example)
    if "reader" in given.to:
        files["reader"] = _write_reader(out)
    if "program" in given.to:
        files["program"] = out / f"{stem}.pt2"
        deploy.export_program(model, files["program"], example)
    work = summary(model, example)
    rows = deploy.verdict(model, made.data.example(given.batch), stored=stored, work=work)
    if given.output.json:
        print_json({"files": {kind: str(path) for kind, path in files.items()}, "verdict": [vars(row) for row in rows]})
        return 0
    table = Table(title=f"{recipe.method} at {shown}: what got smaller, what got faster, what did not")
    for column in ("what", "before", "after", "ratio", "verdict"):
        table.add_column(column, justify="left" if column in {"what", "verdict"} else "right", overflow="fold")
    for row in rows:
        table.add_row(row.what, row.before, row.after, f"{row.ratio:.2f}x", row.verdict)
    console.print(table)
    for kind, path in files.items():
        console.print(f"{kind}: {path} ({path.stat().st_size:,} bytes)", soft_wrap=True)
    return 0
