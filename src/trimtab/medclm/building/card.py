"""The data card: a README with the header that the Hugging Face hub reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from trimtab.medclm.building.folder import Manifest
from trimtab.medclm.guessing import SYSTEM

_TABLES = (
    "images with lesions", "images by split", "classes by name of the source", "lesions by class", "lesions by organ",
    "lesions by side", "lesions by zone",
    "lesions by flag", "rows by split", "rows by stage", "rows by question type", "rows by domain", "yes and no",
    "rejected by reason", "not asked", "generator",
)  # fmt: skip


def card(
    statistics: Mapping[str, Any],
    manifest: Manifest,
    splits: Sequence[str],
    header: Sequence[str] = (),
    title: str = "Questions, reasoning and answers tied to anatomy",
    terms: str = "Licence and consent are those of the source; this card cannot grant more.",
) -> str:
    """Markdown: what the set is, how it was made, counts, priors, what it is not.

    Args:
        statistics, manifest: of the set.
        splits: which have a Parquet file.
        header: more lines of the YAML header.
        title: first heading.
        terms: a sentence on the licence.
    """
    options = manifest.options
    generator = options["generator"]
    organs = ", ".join(name for name, _ in options["organs"]) or "none"
    files = "\n".join(f"      - split: {split}\n        path: data/{split}.parquet" for split in splits)
    lines = [
        "---",
        "task_categories:\n  - visual-question-answering",
        "language:\n  - en",
        f"configs:\n  - config_name: default\n    data_files:\n{files}",
        *header,
        "---",
        f"# {title}",
        "",
        f"{statistics['rows']:,} rows about {statistics['lesions']:,} lesions in {statistics['images']:,} images, made from "
        f"detection boxes (`{options['format']}`) and organ masks ({organs}) by Trimtab {manifest.trimtab}.",
        "",
        f"* Host organs: rule `{options['rule']}`, preset `{options['preset']}`. Texts: generator `{generator}`, seed "
        f"{options['seed']}.",
        f"* Split: {_split_words(options)}",
        "* Stages: Easy asks about a box that the question quotes, Medium about the whole image (the reasoning states it), "
        "Hard has no reasoning and is the partner of a lesion of another patient (flag `anchor=`).",
        "* Boxes are fractions of the image's size, x0 y0 x1 y1. Images carry no marks. Sides are the patient's.",
        "* `reasoning_span` and `answer_span` are character offsets in `target`, ends exclusive.",
        "* `objects` are the lesions that a row speaks of; `steps` are the sentences of its reasoning, each with the objects "
        "that it is about.",
        f"* {terms}",
        "",
        "## Limits",
        "",
        "The texts say what boxes, classes and masks say, and nothing a clinician did not annotate: no diagnosis, no severity. "
        "A class that the source did not annotate counts as absent. Not for clinical use.",
        "",
        "## How far a guess from the text alone gets",
        "",
        "For each wording of a question the most common answer of the training rows is guessed. Text with box numbers: where "
        "the question quotes a box, the answer that most of the five nearest boxes of such training questions have. What this "
        "reaches a model can reach without looking at the image.",
        "",
        f"| question type | rows | different answers | right on training rows | right on unseen rows | {SYSTEM}, unseen rows |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for kind, prior in statistics["priors"].items():
        lines.append(
            f"| {kind} | {prior['rows']:,} | {prior['answers']:,} | {_percent(prior['train'])} | {_percent(prior['unseen'])} | "
            f"{_percent(prior['unseen, box numbers read'])} |"
        )
    for name in _TABLES:
        counts = statistics.get(name)
        if counts:
            lines += ["", f"## {name[0].upper()}{name[1:]}", "", "| | |", "|---|---:|"]
            lines += [f"| {_cell(key)} | {_number(value)} |" for key, value in counts.items()]
    return "\n".join(lines) + "\n"


def _split_words(options: Mapping[str, Any]) -> str:
    if options["split"] == "source":
        return "as the source says."
    train, validation, test = options["fractions"]
    return f"by patient, {train:.0%} / {validation:.0%} / {test:.0%}; no patient is in two splits."


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def _number(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.6g}" if isinstance(value, float) else str(value)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")
