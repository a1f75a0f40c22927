"""Rows as Parquet that Hugging Face `datasets` opens with decoded images."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from trimtab.files import replace_atomically
from trimtab.medclm.records import Row
from trimtab.medclm.texts.prompts import prompt_of

GROUP = 512
"""Rows a row group; an image that several rows share is stored once in it (dictionary encoding)."""
DICTIONARY_BYTES = 256 << 20


def features() -> Any:
    """The columns as `datasets.Features`; boxes are lists of four numbers, hosts are JSON text, `prompt` is the trainer's
    (`prompts.prompt_of`)."""
    from datasets import Features, Image, List, Value

    text, whole = Value("string"), Value("int64")
    return Features(
        {
            "row_id": text, "image": Image(), "image_id": text, "patient": text, "split": text, "stage": text, "domain": text,
            "question_type": text, "question": text, "prompt": text, "reasoning": text, "answer": text, "target": text,
            "reasoning_span": List(whole, length=2), "answer_span": List(whole, length=2),
            "box": List(Value("float64")), "box_pixels": List(whole), "lesion_id": text,
            "objects": List({"lesion_id": text, "label": text, "box": List(Value("float64"))}),
            "steps": List({"span": List(whole, length=2), "objects": List(whole)}), "seed_text": text, "host": text,
            "generator": text, "prompt_id": text, "seed": whole, "flags": List(text),
        }
    )  # fmt: skip


class ParquetWriter:
    """Writes the rows of one split into one file, row group by row group.

    Args:
        path: the file; `close` puts it there, whole.
        folder: folder of the data set, which holds the images.
        embed: store the bytes of the images in the file; else only their paths.
    """

    def __init__(self, path: Path, folder: Path, *, embed: bool) -> None:
        import pyarrow.parquet as pq

        self.path, self._folder, self._embed = path, folder, embed
        path.parent.mkdir(parents=True, exist_ok=True)
        self._schema = features().arrow_schema
        self._temporary = path.with_name(f".{path.name}.part")
        self._writer = pq.ParquetWriter(
            self._temporary,
            self._schema,
            compression="zstd",
            use_dictionary=True,
            dictionary_pagesize_limit=DICTIONARY_BYTES,
            write_page_index=True,
        )
        self._rows: list[dict[str, Any]] = []
        self._image: tuple[str, bytes | None] = ("", None)
        self.rows = 0

    def add(self, row: Row, image: str) -> None:
        """Add one row; rows of the same image come together."""
        if self._image[0] != image:
            self._image = (image, (self._folder / image).read_bytes() if self._embed else None)
        data = row.model_dump(mode="json")
        spans = data.pop("spans")
        data["reasoning_span"], data["answer_span"] = list(spans["reasoning"]), list(spans["answer"])
        data["prompt"] = prompt_of(row)
        data["image"] = {"bytes": self._image[1], "path": image}
        data["box"] = list(row.box.corners) if row.box is not None else None
        for marked, one in zip(data["objects"], row.objects, strict=True):
            marked["box"] = list(one.box.corners)
        data["host"] = json.dumps(data["host"]) if data["host"] is not None else None
        self._rows.append(data)
        self.rows += 1
        if len(self._rows) >= GROUP:
            self._write()

    def close(self) -> None:
        """Write what is left and put the file in its place."""
        if self._rows:
            self._write()
        self._writer.close()
        replace_atomically(self.path, lambda temporary: self._temporary.replace(temporary))

    def abandon(self) -> None:
        """Remove the unfinished file."""
        self._writer.close()
        self._temporary.unlink(missing_ok=True)

    def _write(self) -> None:
        import pyarrow as pa

        self._writer.write_table(pa.Table.from_pylist(self._rows, schema=self._schema), row_group_size=GROUP)
        self._rows = []


def write_splits(
    rows: Iterable[tuple[Row, str]], folder: Path, *, embed: bool, data: Path | None = None
) -> dict[str, Path]:
    """`data/{split}.parquet` for each split that has rows; returns them.

    Args:
        rows: with the paths of their images.
        folder: of the data set, which holds the images.
        embed: store the bytes of the images.
        data: where the files go, if not into the data set's own folder.
    """
    data = folder / "data" if data is None else data
    writers: dict[str, ParquetWriter] = {}
    try:
        for row, image in rows:
            if row.split not in writers:
                writers[row.split] = ParquetWriter(data / f"{row.split}.parquet", folder, embed=embed)
            writers[row.split].add(row, image)
        for writer in writers.values():
            writer.close()
    except BaseException:
        for writer in writers.values():
            writer.abandon()
        raise
    return {split: writer.path for split, writer in writers.items()}
