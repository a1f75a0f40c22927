"""Training files for others' trainers: LLaVA, LLaMA-Factory, TRL, ms-swift; boxes as COCO json."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

from trimtab.files import replace_atomically, write_text
from trimtab.medclm.boxes import ModelBoxes, boxes_of, format_named
from trimtab.medclm.building.dialects import Dialect, in_dialect, replaced
from trimtab.medclm.building.folder import DataSetFolder
from trimtab.medclm.records import Box, ImageRecord, Row, SplitName, Stage
from trimtab.medclm.texts.asking import BOX_KINDS
from trimtab.medclm.texts.choices import SIDES, choices_of
from trimtab.medclm.texts.prompts import prompt_of
from trimtab.medclm.texts.wording import known, shown

Target = Literal["llava", "sharegpt", "trl", "grpo", "swift", "coco"]
TARGETS: tuple[Target, ...] = ("llava", "sharegpt", "trl", "grpo", "swift", "coco")
SPLITS: tuple[SplitName, ...] = ("train", "validation", "test")


def export(
    folder: DataSetFolder,
    to: Target,
    out: Path,
    dialect: Dialect = "unit",
    stages: tuple[Stage, ...] = ("easy", "medium", "hard"),
    *,
    model: Path | None = None,
    absolute: bool = True,
) -> dict[str, Path]:
    """Write one file per split into `out`; returns split -> file.

    The prompt is that of the trainer (`prompts.prompt_of`): the question and "Answer only." or "Reason first, then answer.",
    since the question does not show which of the two forms its target has.

    llava: json list of {id, image, conversations}. sharegpt: json list of {messages, images}, as many "<image>" as images,
    with the dataset_info.json that LLaMA-Factory reads. trl: JSON lines of conversational {prompt, completion, images} and the
    spans. grpo: JSON lines of {prompt, images} and the columns that `medclm.rewards` read, for TRL's GRPOTrainer. swift: JSON
    lines of {messages, images, objects}, with "<bbox>" in the texts and boxes in pixels of the original. coco: json of the
    lesions as boxes, with `host`, `side`, `zone`; its files are named relative to the folder of the data set.

    Args:
        folder: a finished data set.
        to: which format.
        out: folder for the files.
        dialect: how boxes stand in texts (`boxes.FORMATS`); swift writes its own, coco has no texts.
        model: folder of a model: boxes as it writes them, of the pictures as its processor resizes them.
        stages: rows of these stages only.
        absolute: write images as absolute paths, which every trainer finds; else relative to the folder of the data set.

    Raises:
        ValueError: an unknown format or dialect, a dialect for a format that has its own, a dialect that is not the model's, or
            a model whose format or resizing is not known.
    """
    if to not in TARGETS:
        raise ValueError(f"cannot export to {to!r}; formats are {', '.join(TARGETS)}")
    format_named(dialect)
    if to in ("swift", "coco") and (dialect != "unit" or model is not None):
        raise ValueError(
            f"{to} writes boxes in its own way (pixels of the original); leave the dialect and the model out"
        )
    boxes = ModelBoxes.named(dialect) if model is None else boxes_of(model)
    if model is not None and dialect not in ("unit", boxes.format.name):
        raise ValueError(f"boxes {dialect!r} for {model}, whose own are {boxes.format.name!r}; leave one of them out")
    folder.finished()
    if to == "coco":
        return _coco(folder, out)
    entry = _ENTRIES[to]
    lines = to in ("trl", "grpo", "swift")
    written: dict[str, Path] = {}
    for split in SPLITS:
        rows = (
            (row, (folder.path / image).resolve().as_posix() if absolute else image, record)
            for row, image, record in rows_with_records(folder)
            if row.split == split and row.stage in stages
        )
        path = out / f"{split}.{'jsonl' if lines else 'json'}"
        if _write(path, (entry(row, image, record, boxes) for row, image, record in rows), lines=lines):
            written[split] = path
    if to == "sharegpt":
        write_text(out / "dataset_info.json", json.dumps(_factory_info(written), indent=1) + "\n")
    return written


def rows_with_records(folder: DataSetFolder) -> Iterator[tuple[Row, str, ImageRecord]]:
    """(row, image path, record of its image); both files are read side by side, since rows follow the order of the images.

    Raises:
        ValueError: a row belongs to no image that follows.
    """
    records = folder.records()
    record: ImageRecord | None = None
    for row, image in folder.rows():
        while record is None or record.image_id != row.image_id:
            record = next(records, None)
            if record is None:
                raise ValueError(
                    f"{folder.rows_file}: row {row.row_id!r} names image {row.image_id!r}, out of order or unknown"
                )
        yield row, image, record


def _llava(row: Row, image: str, record: ImageRecord, boxes: ModelBoxes) -> dict[str, Any]:
    said = in_dialect(row, record, boxes)
    talk = [{"from": "human", "value": f"<image>\n{prompt_of(said)}"}, {"from": "gpt", "value": said.target}]
    return {"id": row.row_id, "image": image, "conversations": talk, "stage": row.stage, "domain": row.domain}


def _messages(row: Row) -> list[dict[str, str]]:
    return [{"role": "user", "content": f"<image>{prompt_of(row)}"}, {"role": "assistant", "content": row.target}]


def _sharegpt(row: Row, image: str, record: ImageRecord, boxes: ModelBoxes) -> dict[str, Any]:
    return {"messages": _messages(in_dialect(row, record, boxes)), "images": [image]}


def _trl(row: Row, image: str, record: ImageRecord, boxes: ModelBoxes) -> dict[str, Any]:
    said = in_dialect(row, record, boxes)
    prompt = [{"type": "image", "text": None}, {"type": "text", "text": prompt_of(said)}]
    return {
        "prompt": [{"role": "user", "content": prompt}],
        "completion": [{"role": "assistant", "content": [{"type": "text", "text": said.target}]}],
        "images": [image],
        "row_id": row.row_id,
        "stage": row.stage,
        "domain": row.domain,
        "reasoning_span": list(said.spans["reasoning"]),
        "answer_span": list(said.spans["answer"]),
    }


def _grpo(row: Row, image: str, record: ImageRecord, boxes: ModelBoxes) -> dict[str, Any]:
    """What the rewards hold a completion against: the set's own answer, and how the model writes what is compared with it."""
    box_answer = row.question_type in BOX_KINDS
    gold = (
        [one.box for one in row.objects] if box_answer else [row.box] if row.box is not None and row.reasoning else []
    )
    host = known(row.host)
    return {
        "prompt": [{"role": "user", "content": prompt_of(in_dialect(row, record, boxes))}],
        "images": [image],
        "answer": row.answer,
        "choices": list(choices_of(row.answer, row.question_type)),
        "reason": bool(row.reasoning),
        "side": host.side
        if host is not None and host.side in SIDES and (row.reasoning or row.question_type == "side")
        else "",
        "boxes": [list(box.corners) for box in gold],
        "box_answer": box_answer,
        "box_format": boxes.format.name,
        "seen": list(boxes.seen(record.width, record.height)),
        "row_id": row.row_id,
        "stage": row.stage,
        "domain": row.domain,
    }


def _swift(row: Row, image: str, record: ImageRecord, boxes: ModelBoxes) -> dict[str, Any]:
    found_boxes: list[list[int]] = []

    def placeholder(box: Box) -> str:
        found_boxes.append(list(box.pixels(record.width, record.height)))
        return "<bbox>"

    found: dict[str, Any] = {"messages": _messages(replaced(row, record, placeholder)), "images": [image]}
    if found_boxes:
        found["objects"] = {"ref": [], "bbox": found_boxes}
    return found


_ENTRIES: dict[str, Callable[[Row, str, ImageRecord, ModelBoxes], dict[str, Any]]] = {
    "llava": _llava,
    "sharegpt": _sharegpt,
    "trl": _trl,
    "grpo": _grpo,
    "swift": _swift,
}


def _factory_info(written: dict[str, Path]) -> dict[str, Any]:
    tags = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}
    columns = {"messages": "messages", "images": "images"}
    return {
        f"medclm_{split}": {"file_name": path.name, "formatting": "sharegpt", "columns": columns, "tags": tags}
        for split, path in written.items()
    }


def _write(path: Path, entries: Iterator[dict[str, Any]], *, lines: bool) -> int:
    """Write the entries if there are any; returns their number."""
    number = 0
    first = next(entries, None)
    if first is None:
        return 0

    def write(temporary: Path) -> None:
        nonlocal number
        with temporary.open("w", encoding="utf-8") as handle:
            handle.write("" if lines else "[\n")
            handle.write(json.dumps(first, ensure_ascii=False))
            number = 1
            for entry in entries:
                handle.write(("\n" if lines else ",\n") + json.dumps(entry, ensure_ascii=False))
                number += 1
            handle.write("\n" if lines else "\n]\n")

    replace_atomically(path, write)
    return number


def _coco(folder: DataSetFolder, out: Path) -> dict[str, Path]:
    labels = sorted({lesion.label for record in folder.records() for lesion in record.lesions})
    categories = {label: number for number, label in enumerate(labels, start=1)}
    written: dict[str, Path] = {}
    for split in SPLITS:
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for record in folder.records():
            if record.split != split:
                continue
            images.append(
                {
                    "id": len(images) + 1,
                    "file_name": f"images/{record.file}",
                    "width": record.width,
                    "height": record.height,
                }
                | {"patient": record.patient, "split": split}
            )
            for lesion in record.lesions:
                x0, y0, x1, y1 = lesion.box.corners
                box = [x0 * record.width, y0 * record.height, (x1 - x0) * record.width, (y1 - y0) * record.height]
                host = lesion.host
                place = {"host": host.organ, "side": host.side, "zone": host.zone} if host is not None else {}
                annotations.append(
                    {"id": len(annotations) + 1, "image_id": len(images), "category_id": categories[lesion.label]}
                    | {
                        "bbox": [round(value, 4) for value in box],
                        "area": round(box[2] * box[3], 4),
                        "iscrowd": 0,
                        **place,
                    }
                )
        if images:
            named = [{"id": number, "name": shown(label)} for label, number in categories.items()]
            document = {"images": images, "annotations": annotations, "categories": named}
            written[split] = out / f"{split}.json"
            write_text(written[split], json.dumps(document) + "\n")
    return written
