"""`trimtab medclm`: question data sets from detection boxes: build, check, view, export, demo."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from importlib.util import find_spec

from trimtab.checks import hint

COMMANDS = {
    "build": "detection boxes and organ masks -> questions, reasoning and answers",
    "check": "validate a built set: manifest, files, boxes, splits, every row",
    "view": "make the HTML viewer of a built set",
    "reviews": "how far two reviewers of a set agree, from what its viewer exports",
    "export": "write a built set for LLaVA, LLaMA-Factory, TRL, ms-swift, or as COCO",
    "publish": "make a built set ready for others: card, licence, Croissant, Parquet, shards",
    "push": "send what publish wrote to the Hugging Face Hub",
    "rejoin": "put a release of annotations together with local pictures, by their hashes",
    "pretrain": "teach tiny-llava's vision tower the boxes and organs of the training pictures",
    "train": "train a vision-language model on a built set",
    "evaluate": "ask a trained model held-out questions, beside baselines that see no image",
    "audit": "does any model, served or in a folder, look at the picture? real, shuffled and blank images",
    "demo": "all of it on drawn chest X-rays, or on a folder of real data",
}
NEEDED = {
    "build": ("pycocotools", "medclm"),
    "demo": ("pycocotools", "medclm"),
    "pretrain": ("transformers", "training"),
    "train": ("trl", "training"),
    "evaluate": ("transformers", "training"),
    "audit": ("openai", "medclm"),
    "push": ("huggingface_hub", "hub"),
}
"""A package by which a command sees that its extra is there, so that it stops before anything is made."""


def usage() -> str:
    """What `trimtab medclm --help` prints."""
    lines = "\n".join(f"  {name:<10}{text}" for name, text in COMMANDS.items())
    return (
        "usage: trimtab medclm COMMAND ...   (trimtab medclm COMMAND --help says more)\n\n"
        f"{lines}\n\nneeds the extra: pip install 'trimtab[medclm]'\n"
    )


def home(command: str) -> str:
    """The module of a command."""
    homes = {"rejoin": "publish", "push": "publish", **dict.fromkeys(("check", "view", "export"), "use")}
    return homes.get(command, command)


def run(arguments: Sequence[str]) -> int:
    """Parse and run one command."""
    words = list(arguments)
    if not words or words[0] in {"-h", "--help"}:
        print(usage(), end="")
        return 0 if words else 2
    if words[0] not in COMMANDS:
        raise ValueError(f"no command {words[0]!r}; {hint(words[0], COMMANDS, 'commands')}")
    package, extra = NEEDED.get(words[0], ("", ""))
    if extra and not {"-h", "--help", "-H", "--help-all"} & set(words) and find_spec(package) is None:
        raise ImportError(f"{words[0]} needs {package}: pip install 'trimtab[{extra}]'")
    module = importlib.import_module(f"trimtab.cli.medclm.{home(words[0])}")
    code: int = getattr(module, words[0])(words[1:])
    return code
