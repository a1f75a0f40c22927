"""`trimtab new`: a recipe file to edit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

import tyro

from trimtab.cli.arguments import Output
from trimtab.cli.console import console, print_json
from trimtab.cli.recipe_arguments import Fields, parse_with_recipe
from trimtab.files import write_text
from trimtab.runs.commented import commented

ENDINGS = {".yaml", ".yml"}


@dataclass(frozen=True)
class NewArguments:
    """Writes a recipe with a sentence on each field, from a shipped one (default digits) and the flags given. An existing
    file stays as it is.

    Examples:
        trimtab new photos.yaml own-images --data.root PHOTOS --epochs 20
        trimtab new study.yaml cifar10-resnet20 --method l1+cram+
        trimtab new small.yaml
    """

    WORDS: ClassVar = ("FILE.yaml", "[RECIPE]")
    recipe: tyro.conf.Positional[str]
    """What to start from, after the file: a shipped name (trimtab list recipes), a YAML file, or a run folder."""
    fields: Fields
    out: Path = Path("recipe.yaml")
    """The file to write; it comes first, the recipe behind it."""
    output: Annotated[Output, tyro.conf.arg(name="")] = Output()


def run(arguments: Sequence[str]) -> int:
    """Parse and write."""
    words = list(arguments)
    if not {"-h", "--help", "-H", "--help-all"} & set(words):
        if not words or Path(words[0]).suffix not in ENDINGS:
            raise ValueError("the file comes first: trimtab new FILE.yaml [RECIPE] [options]")
        file, *rest = words
        source = rest.pop(0) if rest and not rest[0].startswith("-") else "digits"
        words = [source, "--out", file, *rest]
    given = parse_with_recipe(NewArguments, words, "new")
    if given.out.exists():
        raise ValueError(f"{given.out} is there already; choose another name, or delete it first")
    write_text(given.out, commented(given.fields))
    if given.output.json:
        print_json({"recipe": str(given.out)})
    else:
        console.print(f"written: {given.out}   next: trimtab train {given.out}", soft_wrap=True)
    return 0
