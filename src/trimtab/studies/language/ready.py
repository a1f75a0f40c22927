"""What pruning a language model's folder starts from: every input read and checked, before anything is changed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from trimtab.checks import some_of, whole
from trimtab.files import check_free
from trimtab.studies.language.folder import LanguageModel, is_language_folder, load_language_model
from trimtab.studies.language.pruning import PruneOptions
from trimtab.studies.language.text import HELD_BACK, TextQuality, read_text, sequences, text_quality, tokens_of

Form = Literal["sparse", "compact", "macko"]
FORMS = ("sparse", "compact", "macko")
BITS = 8
"""Of a compact file."""
LONGEST = 2048
"""Tokens of a sequence where nothing else is asked, as published; fewer where the model reads fewer."""


@dataclass(frozen=True)
class Texts:
    """What is calibrated and measured on, before the tokenizer is there."""

    calibrate: Path | None
    calibration: str
    measured: str
    where: str

    @classmethod
    def read(cls, calibrate: Path | None, measure: Path | None, *, needed: str) -> Texts:
        """Both texts; without one to measure on, the end of the other is held back for that."""
        if calibrate is None and needed:
            raise ValueError(f"{needed} needs calibration data: give a text file (--calibrate FILE)")
        calibration = "" if calibrate is None else read_text(calibrate)
        if measure is not None:
            return cls(calibrate, calibration, read_text(measure), str(measure))
        cut = len(calibration) - int(HELD_BACK * len(calibration))
        held = calibration[cut:]
        where = f"the last {HELD_BACK:.0%} of {calibrate}, which was not calibrated on" if held else ""
        return cls(calibrate, calibration[:cut] if held else calibration, held, where)


class Measured:
    """The quality of one model on the text, again and again."""

    def __init__(self, language: LanguageModel, texts: Texts, length: int, windows: int | None) -> None:
        self.model, self.length, self.windows = language.model, length, windows
        self.tokens = tokens_of(texts.measured, language.tokenizer) if texts.measured else None
        self.size = len(texts.measured.encode())

    def __call__(self) -> TextQuality | None:
        """As it is now; None without a text."""
        if self.tokens is None:
            return None
        return text_quality(self.model, self.tokens, self.length, self.size, self.windows)


def length_of(language: LanguageModel, length: int | None) -> int:
    """Tokens of a sequence: what is asked, or the most that is usual and that the model reads at once."""
    longest = language.longest
    if length is None:
        return min(LONGEST, longest or LONGEST)
    if longest is not None and whole("length", length, 2) > longest:
        raise ValueError(f"length {length} is more than the {longest} tokens that {language.folder} reads at once")
    return length


def _refuse_nan(language: LanguageModel) -> None:
    bad = [name for name, weight in language.model.named_parameters() if not bool(weight.detach().isfinite().all())]
    if bad:
        more = f" and {len(bad) - 3} more" if len(bad) > 3 else ""
        raise ValueError(f"{language.folder} holds NaN or infinite weights in {', '.join(bad[:3])}{more}")


@dataclass(frozen=True)
class Ready:
    """A model and what it is pruned by and measured on.

    Attributes:
        language: the model with its tokenizer, where it runs.
        batches: sequences to calibrate on; empty where none are needed.
        told: the calibration in words and numbers, for the report.
        texts: what was read.
        measured: gives the model's quality on the text; None where there is no text.
        length: tokens of a sequence.
    """

    language: LanguageModel
    batches: list[Tensor]
    told: dict[str, Any]
    texts: Texts
    measured: Measured
    length: int

    @classmethod
    def read(
        cls,
        folder: Path | str,
        out: Path | str,
        options: PruneOptions,
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
    ) -> Ready:
        """Read and check; arguments and errors are those of `prune_language_folder`."""
        folder, out = Path(folder), Path(out)
        if forms:
            some_of("forms", forms, FORMS)
        whole("samples", samples, 1)
        if whole("bits", bits, 1, 16) != BITS and "compact" not in forms:
            raise ValueError(f"bits={bits} is of a compact file; ask for one too (--to compact)")
        if windows is not None:
            whole("windows", windows, 1)
        if is_language_folder(folder) and out.resolve().is_relative_to(folder.resolve()):
            raise ValueError(f"{out} lies in {folder}, which is not changed; give a folder outside")
        check_free(out)
        texts = Texts.read(
            None if calibrate is None else Path(calibrate),
            None if measure is None else Path(measure),
            needed=("owl" if options.owl else options.score) if options.needs_data else "",
        )
        language = load_language_model(folder, trust_code=trust_code)
        _refuse_nan(language)
        try:
            language.model.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        except (RuntimeError, AssertionError) as error:
            raise ValueError(f"device {str(device)!r} cannot be used here: {str(error).splitlines()[0]}") from error
        length = length_of(language, length)
        batches: list[Tensor] = []
        told: dict[str, Any] = {}
        if options.needs_data:
            tokens = tokens_of(texts.calibration, language.tokenizer)
            batches = sequences(tokens, length, samples, seed, where=texts.calibrate)
            told = {
                "file": str(texts.calibrate),
                "tokens": len(tokens),
                "sequences": samples,
                "length": length,
                "seed": seed,
            }
        return cls(language, batches, told, texts, Measured(language, texts, length, windows), length)
