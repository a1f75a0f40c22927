"""Prune the folder of a causal language model into a new one, with what it cost on a text."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from trimtab.deploy import load_compact, save_compact, save_macko, save_sparse
from trimtab.files import write_text
from trimtab.studies.language.folder import LanguageModel, save_language_model
from trimtab.studies.language.pruning import PruneOptions, prune_language_model
from trimtab.studies.language.ready import BITS, Form, Measured, Ready
from trimtab.studies.language.text import TextQuality

REPORT = "pruning.json"


@dataclass(frozen=True)
class LayerRow:
    """One pruned weight: its name, shape, how many weights went, and the share."""

    name: str
    shape: tuple[int, ...]
    removed: int
    sparsity: float


@dataclass(frozen=True)
class LanguageReport:
    """What pruning a folder gave; `pruning.json` of the new one.

    Attributes:
        source, out: the folders.
        options: how it was pruned.
        before, after: quality on the text; None where none was given.
        text: what was measured on, in words; empty where nothing was.
        calibration: the file, sequences and tokens of each; empty where none were needed.
        layers: a row for each pruned weight.
        sparsity, sparsity_total: share of the chosen weights and of all parameters that went.
        left_out: every other matrix, with the reason.
        files: bytes of each file in the new folder.
        of_forms: quality of the network in a file that does not hold it to the bit, by form.
    """

    source: str
    out: str
    options: dict[str, Any]
    before: TextQuality | None
    after: TextQuality | None
    text: str
    calibration: dict[str, Any]
    layers: tuple[LayerRow, ...]
    sparsity: float
    sparsity_total: float
    left_out: dict[str, str]
    files: dict[str, int] = field(default_factory=dict)
    of_forms: dict[str, TextQuality] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """As a document; qualities with their perplexity."""
        found = asdict(self)
        qualities: dict[str, TextQuality | None] = {"before": self.before, "after": self.after}
        for name, quality in qualities.items():
            found[name] = None if quality is None else _told(quality)
        found["of_forms"] = {name: _told(quality) for name, quality in self.of_forms.items()}
        return {**found, "trimtab_version": version("trimtab")}


def _told(quality: TextQuality) -> dict[str, float]:
    return {**asdict(quality), "perplexity": quality.perplexity}


def prune_language_folder(
    folder: Path | str,
    out: Path | str,
    options: PruneOptions | None = None,
    *,
    calibrate: Path | str | None = None,
    measure: Path | str | None = None,
    samples: int = 128,
    length: int | None = None,
    windows: int | None = None,
    forms: tuple[Form, ...] = (),
    bits: int = BITS,
    seed: int = 0,
    device: str | torch.device | None = None,
    trust_code: bool = False,
    note: Callable[[str], object] | None = None,
) -> LanguageReport:
    """Prune a causal language model of transformers and write it as a new folder that `from_pretrained` reads.

    Args:
        folder: what `save_pretrained` wrote, model and tokenizer; it is not changed.
        out: the new folder, empty or not there yet. It holds model, tokenizer and `pruning.json`, and appears as a whole or
            not at all.
        options: how to prune. Default Wanda at 50 %.
        calibrate: text file (UTF-8) whose tokens the score looks at. Training data.
        measure: text file on which the model is measured before and after. Default: the last tenth of `calibrate`, which is
            then left out of the calibration [ours].
        samples: sequences to calibrate on. Default 128 (paper).
        length: tokens of a sequence, to calibrate and to measure. Default 2,048 (paper), or what the model reads at once.
        windows: measure on the first so many windows; default all.
        forms: also write the pruned network as "sparse" (`sparse.safetensors`, to the bit), "compact" (`compact.safetensors`,
            of `bits` bits, entropy-coded) or "macko" (`macko.safetensors`, delta-coded in float16 for a GPU kernel).
        bits: of the compact file. Default 8.
        seed: of the sequences drawn.
        device: where it runs. Default: a GPU where there is one.
        trust_code: let Python files of the folder run. Default False.
        note: called with a short text before each part.

    Raises:
        FileNotFoundError, ValueError, ImportError: as `load_language_model` and `prune_language_model`; a text that is missing,
            empty or shorter than one sequence; `out` is taken. Nothing is written then.
        OSError: the new folder could not be written; nothing is left of it.
    """
    folder, out, options = Path(folder), Path(out), options or PruneOptions()
    note = note or (lambda text: None)
    note(f"reading {folder}")
    ready = Ready.read(
        folder,
        out,
        options,
        calibrate=calibrate,
        measure=measure,
        samples=samples,
        length=length,
        windows=windows,
        forms=forms,
        bits=bits,
        seed=seed,
        device=device,
        trust_code=trust_code,
    )
    language, measured, texts = ready.language, ready.measured, ready.texts
    if measured.tokens is not None:
        note(f"measuring on {texts.where}")
    before = measured()
    note(f"pruning by {options.score}")
    pruned, shares = prune_language_model(language.model, ready.batches, options)
    pruned.record = None  # the way back is the folder
    note("measuring what is left")
    report = LanguageReport(
        source=str(folder),
        out=str(out),
        options={**asdict(options), "shares": shares} if shares else asdict(options),
        before=before,
        after=measured(),
        text=texts.where,
        calibration=ready.told,
        layers=tuple(
            LayerRow(name, tuple(pruned.masks[name].shape), count, count / pruned.masks[name].numel())
            for name, count in pruned.removed.items()
        ),
        sparsity=pruned.sparsity,
        sparsity_total=pruned.sparsity_total,
        left_out={entry.name: reason for entry, reason in pruned.left_out},
    )
    note(f"writing {out}")
    with save_language_model(language, out) as place:
        of_forms = _write_forms(language, forms, bits, place, options, measured)
        files = {
            str(file.relative_to(place)): file.stat().st_size for file in sorted(place.rglob("*")) if file.is_file()
        }
        report = replace(report, files=files, of_forms=of_forms)
        write_text(place / REPORT, json.dumps(report.to_json(), indent=1) + "\n")
    return report


def _write_forms(
    language: LanguageModel,
    forms: tuple[Form, ...],
    bits: int,
    place: Path,
    options: PruneOptions,
    measured: Measured,
) -> dict[str, TextQuality]:
    """The network in each form; what a form does not hold to the bit is measured as read back. Compact comes last."""
    found: dict[str, TextQuality] = {}
    metadata = {"score": options.score, "pattern": options.pattern}
    if "sparse" in forms:
        save_sparse(language.model, place / "sparse.safetensors", metadata=metadata)
    if "macko" in forms:
        save_macko(language.model, place / "macko.safetensors", metadata=metadata)
    if "compact" in forms:
        save_compact(language.model, place / "compact.safetensors", bits=bits, metadata=metadata)
        load_compact(place / "compact.safetensors", language.model)
        if (quality := measured()) is not None:
            found["compact"] = quality
    return found
