"""Folders of causal language models, as transformers' `save_pretrained` writes them; reading one runs none of its code."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from trimtab.files import folder_atomically
from trimtab.inputs import named, read_json_mapping

CODE = "auto_map"
"""Key of a configuration that names Python files of the folder to run."""


@dataclass(frozen=True)
class LanguageModel:
    """What a folder holds.

    Attributes:
        model: a causal language model of transformers, in evaluation mode.
        tokenizer: its tokenizer.
        folder: where it was read.
    """

    model: nn.Module
    tokenizer: Any
    folder: Path

    @property
    def longest(self) -> int | None:
        """How many tokens the model reads at once, where its configuration says so."""
        config: Any = self.model.config
        found = getattr(config.get_text_config(), "max_position_embeddings", None)
        return int(found) if isinstance(found, int) and found > 0 else None


def is_language_folder(folder: Path) -> bool:
    """Whether a folder is a model as transformers saves it, and not a run of ours or one that was shared."""
    return (folder / "config.json").is_file() and not (folder / "recipe.yaml").is_file()


@contextmanager
def _quietly() -> Iterator[None]:
    """Without transformers' bars and warnings: what matters is told by errors."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _check_folder(folder: Path, *, trust_code: bool) -> None:
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is no folder; give one that save_pretrained wrote, nothing is downloaded")
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder} has no config.json: it is no model that save_pretrained wrote")
    for name in ("config.json", "tokenizer_config.json"):
        if not (folder / name).is_file():
            continue
        settings = read_json_mapping(folder / name)
        if CODE in settings and not trust_code:
            raise ValueError(
                f"{folder / name} asks to run Python code of the folder ({CODE}); read it, and give --trust-code "
                "(trust_code=True) if you trust it"
            )
        if "quantization_config" in settings:
            raise ValueError(f"{folder} is quantised (quantization_config); prune the model that it was made from")
    if not any(folder.glob("*.safetensors")):
        raise ValueError(
            f"{folder} holds no .safetensors file; pickled weights can run code and are not read: save the model once more "
            "with save_pretrained"
        )


def _check_kind(folder: Path) -> None:
    """Refuse a kind that transformers does not know as a causal language model; one with code of its own may be any."""
    from transformers import __version__
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    config = read_json_mapping(folder / "config.json")
    kind = config.get("model_type")
    if CODE not in config and kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise ValueError(
            f"{folder / 'config.json'} says model_type {kind!r}, which is no causal language model of transformers "
            f"{__version__}"
        )


def load_language_model(folder: Path | str, *, trust_code: bool = False) -> LanguageModel:
    """Read a causal language model and its tokenizer from a local folder, in the number format it was saved in.

    Args:
        folder: what `save_pretrained` wrote, model and tokenizer. Nothing is downloaded.
        trust_code: let Python files of the folder run, where its configuration asks for it. Default False: refused.

    Raises:
        ImportError: transformers is missing.
        FileNotFoundError: no such folder.
        ValueError: not a model's folder, not a causal language model, weights that are missing or only pickled, a quantised
            model, no tokenizer, or code of its own without `trust_code`.
    """
    folder = Path(folder)
    _check_folder(folder, trust_code=trust_code)
    try:
        from transformers import AutoModelForCausalLM, AutoTokenizer
    except ImportError as error:
        raise ImportError("language models need transformers: pip install 'trimtab[transformers]'") from error
    _check_kind(folder)
    how: dict[str, Any] = {"local_files_only": True, "trust_remote_code": trust_code}
    with _quietly():
        with named(folder, "could not be read as a causal language model"):
            model, told = AutoModelForCausalLM.from_pretrained(
                folder, dtype="auto", use_safetensors=True, output_loading_info=True, **how
            )
        missing = sorted(told["missing_keys"]) + sorted(str(one) for one in told["mismatched_keys"])
        if missing:
            raise ValueError(
                f"{folder} lacks weights of its {type(model).__name__}, such as {', '.join(map(str, missing[:3]))}: "
                "they would be made up at random"
            )
        with named(folder, "has no tokenizer that can be read; save it into the folder with tokenizer.save_pretrained"):
            tokenizer = AutoTokenizer.from_pretrained(folder, **how)
    return LanguageModel(model.eval(), tokenizer, folder)


@contextmanager
def save_language_model(language: LanguageModel, out: Path) -> Iterator[Path]:
    """Write model and tokenizer into a new folder, which is at `out` as a whole once the `with` block ends, or not at all.

    Yields:
        The folder while it is filled, for files of your own beside them.

    Raises:
        ValueError: `out` exists and is not empty.
        OSError: it could not be written.
    """
    with folder_atomically(out) as temporary:
        with _quietly():
            model: Any = language.model
            model.save_pretrained(temporary)
            language.tokenizer.save_pretrained(temporary)
        _readable(temporary)
        yield temporary


def _readable(folder: Path) -> None:
    """Files of safetensors are the owner's alone; here they are as readable as what was written beside them."""
    mode = (folder / "config.json").stat().st_mode
    for file in folder.glob("*.safetensors"):
        file.chmod(mode)
