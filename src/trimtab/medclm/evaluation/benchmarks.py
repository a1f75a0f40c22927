"""Readers of medical question sets as their authors ship them: VQA-RAD, SLAKE, PathVQA, PMC-VQA."""

from __future__ import annotations

import csv
import itertools
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from trimtab.inputs import lines_of, named, parse_json, read_json, shortened
from trimtab.medclm.evaluation.parsing import contains
from trimtab.medclm.evaluation.pickles import read_plain_pickle
from trimtab.medclm.evaluation.questions import Question, choices_of
from trimtab.medclm.files import require_file, utf8
from trimtab.medclm.records import Box, Rejected, inside

Benchmark = Literal["vqa_rad", "slake", "path_vqa", "pmc_vqa"]
Part = Literal["train", "validation", "test"]


@dataclass(frozen=True)
class Loaded:
    """Questions of one split, and every row that could not be used, with file and row."""

    questions: list[Question]
    rejected: list[Rejected]


class _RowError(ValueError):
    """Why a row cannot be used."""


def load_benchmark(name: Benchmark, folder: Path, split: Part, language: str = "en") -> Loaded:
    """The questions of one split.

    | name | files in `folder` |
    |---|---|
    | `vqa_rad` | `VQA_RAD Dataset Public.json` and `VQA_RAD Image Folder/` (test: phrase types test_*), or `train.jsonl`, `test.jsonl`, `images/` |
    | `slake` | `train.json`, `validate.json` (on the Hub `validation.json`), `test.json`, `imgs/` (with `detection.json` beside an image the box of what is asked about) |
    | `path_vqa` | `qas/SPLIT/SPLIT_qa.pkl` as its authors ship it (lists and texts alone: nothing in it is run), or `SPLIT_qa.json` or `.jsonl` in the folder, with image, question, answer; and `images/SPLIT/`, val for validation |
    | `pmc_vqa` | `train.csv`, `test.csv` with `images/`, else version 2: `train_2.csv`, `test_2.csv` with `images_2/`, `images/` or `figures/` |

    Args:
        name: which.
        folder: unpacked.
        split: train, validation or test; VQA-RAD and PMC-VQA have no validation.
        language: of SLAKE, "en" or "zh".

    Raises:
        ValueError: an unknown set, or a file without one usable row.
        FileNotFoundError: a file is missing.
    """  # noqa: E501
    if name not in _LOADERS:
        raise ValueError(f"unknown question set {name!r}; known are {', '.join(_LOADERS)}")
    file, rows, make = _LOADERS[name](folder, split, language)
    questions: list[Question] = []
    rejected: list[Rejected] = []
    for place, row in rows:
        try:
            if isinstance(row, _RowError):
                raise row
            question = make(row)
            if question is None:
                continue
            if not question.question.strip() or not question.answer.strip():
                raise _RowError("empty question or answer")
            if not question.image.is_file():
                raise _RowError(f"no image {question.image.name}")
            questions.append(question)
        except (KeyError, TypeError, ValueError, AttributeError, OSError) as error:  # a name may be too long
            reason = f"missing field {error}" if isinstance(error, KeyError) else str(error)
            rejected.append(Rejected(file=file.name, row=place, reason=shortened(reason, 300), value=str(row)[:120]))
    if not questions:
        raise ValueError(f"{file}: no usable row of the split {split}; {len(rejected)} rejected, first: {rejected[:1]}")
    return Loaded(questions, rejected)


_Rows = Iterator[tuple[str, Any]]
_Make = Callable[[Any], Question | None]


def _first(*files: Path) -> Path:
    """The first that is there; the first of all where none is."""
    return next((one for one in files if one.exists()), files[0])


def _rows(file: Path) -> _Rows:
    """The rows of a .jsonl, .json or .pkl file of questions, with their places."""
    require_file(file, "a file of questions")
    if file.suffix == ".jsonl":
        for number, line in lines_of(file):
            try:
                yield f"line {number}", parse_json(line, "it")
            except ValueError as error:
                yield f"line {number}", _RowError(f"not JSON: {error}")
        return
    found = read_plain_pickle(file) if file.suffix == ".pkl" else parse_json(utf8(file), file)
    if not isinstance(found, list):
        raise ValueError(f"{file} must hold a list of questions")
    for number, row in enumerate(found):
        yield f"[{number}]", row


def _vqa_rad(folder: Path, split: Part, language: str) -> tuple[Path, _Rows, _Make]:
    if split == "validation":
        raise ValueError("VQA-RAD has no validation split")
    public = folder / "VQA_RAD Dataset Public.json"
    own = public.is_file()
    file = public if own else folder / f"{split}.jsonl"
    images = folder / ("VQA_RAD Image Folder" if own else "images")

    def make(row: Any) -> Question | None:
        if own and str(row["phrase_type"]).startswith("test") is not (split == "test"):
            return None
        answer = str(row["answer"]).strip()
        stated = str(row.get("answer_type", "")).strip().upper()  # the authors' file has "CLOSED " too
        return Question(
            str(row["qid"]), images / inside(str(row["image_name"])), str(row["question"]).strip(), answer,
            str(row["image_name"]), domain=str(row.get("image_organ", "")), kind=str(row.get("question_type", "")),
            choices=choices_of(answer) if stated != "OPEN" else (), closed=stated == "CLOSED",
        )  # fmt: skip

    return file, _rows(file), make


def _slake(folder: Path, split: Part, language: str) -> tuple[Path, _Rows, _Make]:
    file = _first(
        *(folder / f"{name}.json" for name in (("validate", "validation") if split == "validation" else (split,)))
    )

    def make(row: Any) -> Question | None:
        if row["q_lang"] != language:
            return None
        asked, answer = str(row["question"]).strip(), str(row["answer"]).strip()
        stated, image = str(row.get("answer_type", "")).strip().upper(), folder / "imgs" / inside(str(row["img_name"]))
        return Question(
            str(row["qid"]), image, asked, answer, str(row["img_id"]),
            domain=f"{row.get('location', '')} {row.get('modality', '')}".strip(), kind=str(row.get("content_type", "")),
            choices=choices_of(answer) if stated != "OPEN" else (), closed=stated == "CLOSED",
            box=_slake_box(image, f"{asked} | {answer}"),
        )  # fmt: skip

    return file, _rows(file), make


def _slake_box(image: Path, text: str) -> Box | None:
    """The box of the one thing that a question or its answer names, of those in `detection.json` beside the image.

    That file lists {label: [x, y, width, height]} in pixels. None where it is missing, or the text names no such thing or
    several; where one label stands inside another ("lung", "left lung"), the longer counts.
    """
    file = image.with_name("detection.json")
    if not file.is_file() or not image.is_file():
        return None
    boxes: dict[str, list[Any]] = {}
    with named(file):
        for one in read_json(file):
            for label, corners in one.items():
                boxes.setdefault(label, []).append(corners)
        said = [label for label in boxes if contains(text, label)]
        said = [label for label in said if not any(label != other and contains(other, label) for other in said)]
        if len(said) != 1 or len(boxes[said[0]]) != 1:
            return None
        x, y, wide, high = (float(side) for side in boxes[said[0]][0])
        with Image.open(image) as picture:
            return Box.of_pixels(x, y, x + wide, y + high, *picture.size)


def _path_vqa(folder: Path, split: Part, language: str) -> tuple[Path, _Rows, _Make]:
    short = "val" if split == "validation" else split
    shipped = folder / "qas" / short / f"{short}_qa.pkl"
    file = _first(shipped, folder / f"{short}_qa.jsonl", folder / f"{short}_qa.json")

    def make(row: Any) -> Question:
        name, answer = inside(str(row["image"])), str(row["answer"]).strip()
        image = folder / "images" / short / (name if Path(name).suffix else f"{name}.jpg")
        kind = "yes/no" if choices_of(answer) else str(row["question"]).split(" ")[0].lower()
        return Question(
            f"{name}:{row['question']}",
            image,
            str(row["question"]).strip(),
            answer,
            name,
            kind=kind,
            choices=choices_of(answer),
        )

    return file, _rows(file), make


_CHOICE = re.compile(r"^\s*[A-D]\s*[:.)]\s*")


def _csv_rows(file: Path) -> _Rows:
    lines = utf8(require_file(file, "PMC-VQA's table of questions")).splitlines(keepends=True)
    rows = csv.DictReader(lines)
    with named(file):
        _ = rows.fieldnames  # the header
    for number in itertools.count(2):
        try:
            row = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            yield f"row {number}", _RowError(f"not comma-separated values: {error}")
            continue
        yield f"row {number}", row


def _pmc_vqa(folder: Path, split: Part, language: str) -> tuple[Path, _Rows, _Make]:
    if split == "validation":
        raise ValueError("PMC-VQA has no validation split")
    file = _first(*(folder / f"{split}{version}.csv" for version in ("", "_2", "2")))
    second = file.stem != split
    images = _first(*(folder / name for name in (*(("images_2",) if second else ()), "images", "figures")))

    def make(row: Any) -> Question:
        choices = tuple(_CHOICE.sub("", row[f"Choice {letter}"]).strip() for letter in "ABCD")
        given = str(row.get("Answer_label") or row["Answer"]).strip()
        answer = choices["ABCD".index(given)] if given in ("A", "B", "C", "D") else _CHOICE.sub("", given)
        if answer not in choices:
            raise _RowError("the answer is none of the choices")
        asked = f"{str(row['Question']).strip()} " + " ".join(f"{k}: {v}" for k, v in zip("ABCD", choices, strict=True))
        figure = inside(str(row["Figure_path"]))
        return Question(f"{figure}:{row['Question']}", images / figure, asked, answer, figure, choices=choices)

    return file, _csv_rows(file), make


_LOADERS: dict[str, Callable[[Path, Part, str], tuple[Path, _Rows, _Make]]] = {
    "vqa_rad": _vqa_rad,
    "slake": _slake,
    "path_vqa": _path_vqa,
    "pmc_vqa": _pmc_vqa,
}
