"""Language models of transformers: a folder is read without running its code, pruned, measured on a text, and written again."""

from trimtab.studies.language.folder import LanguageModel, load_language_model, save_language_model
from trimtab.studies.language.prune import LanguageReport, prune_language_folder
from trimtab.studies.language.pruning import PruneOptions, prune_language_model
from trimtab.studies.language.text import TextQuality, sequences, text_quality, tokens_of

__all__ = [
    "LanguageModel",
    "LanguageReport",
    "PruneOptions",
    "TextQuality",
    "load_language_model",
    "prune_language_folder",
    "prune_language_model",
    "save_language_model",
    "sequences",
    "text_quality",
    "tokens_of",
]
