"""YOLO: one txt file per image, a line per box: class number, centre x, centre y, width, height as fractions."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import yaml

from trimtab.medclm.readers.files import PictureIndex, number, require_folder, utf8
from trimtab.medclm.readers.reading import RawBox, RawImage, ReaderOptions, assembled
from trimtab.medclm.records import ImageRecord, Rejected


class YoloReader(ReaderOptions):
    """A folder of YOLO txt files beside a folder of images with the same paths. Lines of outlines become their boxes.

    Images without a txt file, or with an empty one, are negatives, as YOLO has it.

    Attributes:
        classes: class names by number; without it `classes.txt`, `data.yaml` or `dataset.yaml` in the folder or above it.
    """

    classes: tuple[str, ...] = ()

    def read(self, annotations: Path, images: Path) -> Iterator[ImageRecord | Rejected]:
        """Records image by image, by path.

        Raises:
            NotADirectoryError: a folder is missing.
            FileNotFoundError: no class names are found, or the image folder is empty.
            ValueError: the file of class names cannot be read.
        """
        require_folder(annotations, "a folder of YOLO txt files")
        names = self.classes or _class_names(annotations)
        index = PictureIndex(images)
        if not index.files:
            raise FileNotFoundError(f"{images} holds no pictures")
        left = {path.relative_to(annotations).with_suffix("").as_posix(): path for path in annotations.rglob("*.txt")}
        left.pop("classes", None)
        for file in index.files:
            key = Path(file).with_suffix("").as_posix()
            yield from self._image(file, left.pop(key, None), names, annotations.name, images)
        for key in sorted(left):
            yield Rejected(file=f"{key}.txt", row="", reason="image is missing", value=str(images / key))

    def _image(
        self, file: str, path: Path | None, names: tuple[str, ...], source: str, images: Path
    ) -> Iterator[ImageRecord | Rejected]:
        boxes: list[RawBox] = []
        broken = 0
        written = path.name if path else f"{Path(file).stem}.txt"
        try:
            lines = utf8(path).splitlines() if path else []
        except ValueError as error:
            yield Rejected(file=written, row="", reason="file is not UTF-8", value=str(error))
            return
        for count, line in enumerate(lines, start=1):
            if not line.split():
                continue
            box = _box(line.split(), names, count)
            if isinstance(box, str):
                broken += 1
                yield Rejected(file=written, row=f"line {count}", reason=box, value=line[:120])
            else:
                boxes.append(box)
        image = RawImage(
            image_id=Path(file).with_suffix("").as_posix(),
            file=file,
            annotations=written,
            row="image",
            base=(1.0, 1.0),
            broken=broken,
            source=source,
        )
        yield from assembled(image, boxes, images, self, tolerance=0.002)


def _box(fields: list[str], names: tuple[str, ...], line: int) -> RawBox | str:
    kind = number(fields[0])
    if not (kind == kind and kind == int(kind) and 0 <= kind < len(names)):
        return f"class number is not one of 0 to {len(names) - 1}"
    values = [number(field) for field in fields[1:]]
    row = f"line {line}"
    if len(values) == 4:
        x, y, w, h = values
        return RawBox(str(line), names[int(kind)], (x - w / 2, y - h / 2, x + w / 2, y + h / 2), row)
    if len(values) >= 6 and len(values) % 2 == 0:
        across, down = values[0::2], values[1::2]
        return RawBox(str(line), names[int(kind)], (min(across), min(down), max(across), max(down)), row)
    return "line is not a class number and 4 numbers, or an outline of 3 points or more"


def _class_names(folder: Path) -> tuple[str, ...]:
    for parent in (folder, folder.parent, folder.parent.parent):
        if (parent / "classes.txt").is_file():
            names = [line.strip() for line in utf8(parent / "classes.txt").splitlines() if line.strip()]
            return tuple(names)
        for file in (parent / "data.yaml", parent / "dataset.yaml"):
            if file.is_file():
                return _yaml_names(file)
    raise FileNotFoundError(
        f"no class names for {folder}: give classes, or put classes.txt (a name a line) or data.yaml (names) beside it"
    )


def _yaml_names(file: Path) -> tuple[str, ...]:
    try:
        document = yaml.safe_load(utf8(file))
    except yaml.YAMLError as error:
        raise ValueError(f"{file} is not yaml: {error}") from error
    names = document.get("names") if isinstance(document, dict) else None
    if isinstance(names, dict) and set(names) == set(range(len(names))):
        names = [names[number_of] for number_of in range(len(names))]
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{file}: names must list the classes, or map 0, 1, ... to them; it is {names!r}")
    return tuple(names)
