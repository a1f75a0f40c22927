"""`trimtab prune MODEL`: prune the folder of a causal language model into a new one."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import tyro
from rich.table import Table

from trimtab.cli.arguments import Output, check_first, parse
from trimtab.cli.console import console, errors, print_json
from trimtab.cli.dry_run import Part, show_parts
from trimtab.inputs import CODE_VARIABLE
from trimtab.pruning.layer_sparsity import Sparsity
from trimtab.studies.language.estimate import estimate_language_pruning
from trimtab.studies.language.folder import is_language_folder
from trimtab.studies.language.prune import REPORT, LanguageReport, prune_language_folder
from trimtab.studies.language.pruning import PruneOptions
from trimtab.studies.language.text import TextQuality


@dataclass(frozen=True)
class LanguagePruneArguments:
    """Prunes a causal language model of transformers, measures it on a text before and after, and writes a new folder
    that from_pretrained reads. The model's folder is not changed; its own code does not run without --trust-code.

    Examples:
        trimtab prune MODEL --score wanda --calibrate text.txt
        trimtab prune MODEL --score sparse_gpt --pattern 2:4 --calibrate text.txt
        trimtab prune MODEL --sparsity 0.6 --owl --calibrate text.txt --to sparse
    """

    HELP: ClassVar[str] = "prune MODEL"
    """What the whole help is asked for by."""

    model: tyro.conf.Positional[Path]
    """A folder that save_pretrained wrote: config, safetensors, tokenizer."""
    score: Literal["wanda", "sparse_gpt", "magnitude"] = "wanda"
    """What is small; sparse_gpt also changes the weights that stay."""
    calibrate: Path | None = None
    """Text file to calibrate on; training data. Needed by all but magnitude."""
    measure: Path | None = None
    """Text file to measure on; default the last tenth of --calibrate, then held back."""
    sparsity: tuple[str, ...] = ()
    """Share of each layer's weights that goes, such as 0.5 (default), or one by name for some: "model.layers.0.*=0.6"."""
    pattern: str = "unstructured"
    """unstructured, or N:M such as 2:4 (which fixes the sparsity)."""
    owl: bool = False
    """Layers with many outliers stay denser (OWL), with --sparsity as the mean."""
    quantize: int | None = None
    """Also round what stays to so many bits, in the same pass (sparse_gpt)."""
    out: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = None
    """New folder; default MODEL-pruned."""
    to: tuple[Literal["sparse", "compact", "macko"], ...] = ()
    """Further files in it: sparse (to the bit), compact (of --bits bits), macko (float16 with 4-bit gaps, for a GPU kernel)."""
    bits: int = 8
    """Of a compact file."""
    samples: int = 128
    """Sequences to calibrate on."""
    length: int | None = None
    """Tokens of a sequence; default 2048, or what the model reads at once."""
    windows: int | None = None
    """Measure on the first so many windows of the text; default all."""
    head: bool = False
    """Prune the output layer too, where it is not the embedding's matrix."""
    exclude: tuple[str, ...] = ()
    """Patterns of weights that stay dense, such as "model.layers.0.*"."""
    indivisible: Literal["refuse", "leave_out"] = "refuse"
    """What becomes of weights that an N:M pattern does not divide."""
    damping: float = 0.01
    """Of sparse_gpt."""
    seed: int = 0
    """Of the sequences drawn."""
    device: str | None = None
    """cpu or cuda; default a GPU where there is one."""
    dry_run: bool = False
    """Read everything, say what would be done and what it would cost here, and stop."""
    output: Annotated[Output, tyro.conf.arg(name="")] = Output()


def meant_by(first: Path, words: Sequence[str]) -> bool:
    """Whether a command line means a language model: its folder, or (where no run lies there) help or an option of its own."""
    if is_language_folder(first):
        return True
    asked = {"-h", "--help", "-H", "--help-all"}
    return not (first / "recipe.yaml").is_file() and not asked.union(_OWN).isdisjoint(words)


_OWN = {"--calibrate", "--measure", "--owl", "--sparsity", "--quantize", "--samples", "--windows", "--to"}
"""Options that no run has."""


def parse_sparsity(words: Sequence[str]) -> Sparsity | None:
    """One number for all, or `PATTERN=NUMBER` for each of some layers.

    Raises:
        ValueError: neither; names the word.

    Example:
        >>> parse_sparsity(["0.6"]), parse_sparsity(["layers.0.*=0.5", "layers.1.*=0.7"])
        (0.6, {'layers.0.*': 0.5, 'layers.1.*': 0.7})
    """
    if not words:
        return None
    found: dict[str, float] = {}
    for word in words:
        name, equals, text = word.rpartition("=")
        try:
            value = float(text)
        except ValueError:
            value = None
        if value is None or (not equals and len(words) > 1) or name in found:
            raise ValueError(f"--sparsity takes one number, or PATTERN=NUMBER for each of some layers, got {word!r}")
        found[name] = value
    return found.get("", found)


def _quality(quality: TextQuality) -> str:
    return f"{quality.perplexity:,.4g} ({quality.bits_per_byte:.4f} bits per byte)"


def _show(report: LanguageReport) -> None:
    table = Table(
        title=f"{report.options['score']}: {report.sparsity:.2%} of the chosen weights, {report.sparsity_total:.2%} of all"
    )
    table.add_column("weight", overflow="fold")
    for column in ("shape", "removed", "sparsity"):
        table.add_column(column, justify="right")
    for row in report.layers:
        table.add_row(row.name, " x ".join(map(str, row.shape)), f"{row.removed:,}", f"{row.sparsity:.2%}")
    console.print(table)
    if report.options["quantize"]:
        console.print(f"what stays is rounded to {report.options['quantize']} bits, an even grid of each output")
    for name, reason in list(report.left_out.items())[:5]:
        console.print(f"left dense: {name}: {reason}", soft_wrap=True, markup=False)
    if len(report.left_out) > 5:
        console.print(f"and {len(report.left_out) - 5} more, in {REPORT}")
    if report.before is not None and report.after is not None:
        console.print(f"perplexity {_quality(report.before)} -> {_quality(report.after)}", soft_wrap=True, markup=False)
        console.print(f"measured on {report.after.tokens:,} tokens of {report.text}", soft_wrap=True, markup=False)
    else:
        console.print("perplexity not measured: give --measure FILE or --calibrate FILE")
    for form, quality in report.of_forms.items():
        console.print(f"as the {form} file holds it: {_quality(quality)}", soft_wrap=True, markup=False)
    for name, size in report.files.items():
        if name.endswith(".safetensors"):
            console.print(f"{Path(report.out) / name}: {size:,} bytes", soft_wrap=True, markup=False)
    console.print(f'next: AutoModelForCausalLM.from_pretrained("{report.out}")', soft_wrap=True, markup=False)


def run(arguments: Sequence[str]) -> int:
    """Parse, prune, write."""
    given = parse(LanguagePruneArguments, arguments, "prune")
    check_first(given.model, Path(arguments[0]), "MODEL", "prune")
    options = PruneOptions(
        score=given.score,
        sparsity=parse_sparsity(given.sparsity),
        pattern=given.pattern,
        owl=given.owl,
        quantize=given.quantize,
        damping=given.damping,
        head=given.head,
        exclude=given.exclude,
        indivisible=given.indivisible,
    )
    model = given.model
    out = given.out or model.resolve().with_name(f"{model.resolve().name}-pruned")
    asked: dict[str, Any] = {
        "calibrate": given.calibrate,
        "measure": given.measure,
        "samples": given.samples,
        "length": given.length,
        "windows": given.windows,
        "forms": given.to,
        "bits": given.bits,
        "seed": given.seed,
        "device": given.device,
        "trust_code": os.environ.get(CODE_VARIABLE) == "any",
    }
    if given.dry_run:
        costs = estimate_language_pruning(model, out, options, **asked)
        return show_parts([Part(*astuple(cost)) for cost in costs], out, given.output)
    report = prune_language_folder(
        model,
        out,
        options,
        **asked,
        note=None if given.output.silent else lambda text: errors.print(f"  {text}", markup=False, soft_wrap=True),
    )
    if given.output.json:
        print_json(report.to_json())
    else:
        _show(report)
    return 0
