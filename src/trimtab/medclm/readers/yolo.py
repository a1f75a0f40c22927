"""YOLO: one txt file per image, a line per box: class number, centre x, centre y, width, height as fractions."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from trimtab.medclm.files import (
    PictureIndex,
    number,
    require_folder,
    utf8,
    whole,
)
from trimtab.medclm.readers.reading import RawBox, RawImage, ReaderOptions, assembled
from trimtab.medclm.records import ImageRecord, Rejected

NOT_LABELS = (
    "classes",
    "readme",
    "readme.dataset",
    "readme.roboflow",
    "requirements",
    "obj.names",
    "train",
    "val",
    "test",
)
"""Text files that lie beside labels without being any: class names, notes, lists of pictures."""


class YoloReader(ReaderOptions):
    """A folder of YOLO txt files beside a folder of images with the same paths, or one tree with `images` and `labels`.

    The label file of an image has its path below `annotations`, or that path with its last folder `images` called `labels`,
    as Ultralytics has it. Images without a txt file, or with an empty one, are negatives, as YOLO has it; but not where a
    label file of that name lies elsewhere, nor where two images share the file.

    A line is a class number and x, y, width, height; or an outline of three points or more, which becomes its box; with
    `kpt_shape` a box and its keypoints. A confidence may follow, as `save_conf` writes it (flag "confidence_0.87").

    Attributes:
        classes: class names by number; without it `classes.txt`, `data.yaml` or `dataset.yaml` in the folder or above it.
        kpt_shape: number of keypoints and of values of each (2 or 3), of pose labels; without it as in `data.yaml`.
    """

    classes: tuple[str, ...] = ()
    kpt_shape: tuple[int, int] | None = None

    def read(self, annotations: Path, images: Path) -> Iterator[ImageRecord | Rejected]:
        """Records image by image, by path.

        Raises:
            NotADirectoryError: a folder is missing.
            FileNotFoundError: no class names are found, or the image folder is empty.
            ValueError: the file of class names cannot be read, or not one label file belongs to an image.
        """
        require_folder(annotations, "a folder of YOLO txt files")
        document = _document(annotations)
        names = self.classes or _class_names(annotations, document)
        points = self.kpt_shape or _kpt_shape(document)
        index = PictureIndex(images)
        if not index.files:
            raise FileNotFoundError(f"{images} holds no pictures")
        labels = {
            path.relative_to(annotations).with_suffix("").as_posix(): path
            for path in sorted(annotations.rglob("*.txt"))
        }
        owners = {file: _label_of(file, labels) for file in index.files}
        unowned = labels.keys() - set(owners.values())
        left = sorted(key for key in unowned if PurePosixPath(key).name.lower() not in NOT_LABELS)
        if left and len(unowned) == len(labels):
            raise ValueError(
                f"not one of the {len(left)} label files below {annotations} belongs to a picture below {images}: "
                f"{left[0]}.txt, but {index.files[0]}; as it is, every image would be called normal"
            )
        elsewhere = {PurePosixPath(key).name: key for key in left}
        for file in index.files:
            key, stem = owners[file], PurePosixPath(file).stem
            if len(index.twins(file)) > 1:
                reason = "two images share one name without suffix, and so their labels"
                value = ", ".join(index.twins(file))
                yield Rejected(file=annotations.name, row=file, reason=reason, value=value)
                continue
            doubt = ""
            if key is None and stem in elsewhere:
                doubt = "image has no label file, but one of its name lies elsewhere"
            path = labels[key] if key is not None else None
            yield from self._image(file, path, names, points, annotations.name, images, doubt)
        for key in left:
            yield Rejected(file=f"{key}.txt", row="", reason="image is missing", value=str(images / key))

    def _image(
        self,
        file: str,
        path: Path | None,
        names: tuple[str, ...],
        points: tuple[int, int] | None,
        source: str,
        images: Path,
        doubt: str,
    ) -> Iterator[ImageRecord | Rejected]:
        boxes: list[RawBox] = []
        broken = 0
        written = path.name if path else f"{Path(file).stem}.txt"
        try:
            lines = utf8(path).splitlines() if path else []
        except (ValueError, OSError) as error:
            yield Rejected(file=written, row="", reason="file is not UTF-8", value=str(error))
            return
        for count, line in enumerate(lines, start=1):
            if not line.split():
                continue
            box = _box(line.split(), names, count, points)
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
            doubt=doubt,
        )
        yield from assembled(image, boxes, images, self, tolerance=0.002)


def _label_of(file: str, labels: dict[str, Path]) -> str | None:
    """Key of the label file of an image: its path, or that with the last folder `images` called `labels`."""
    path = PurePosixPath(file).with_suffix("")
    parts = list(path.parts)
    if "images" in parts[:-1]:
        at = len(parts) - 2 - parts[:-1][::-1].index("images")
        swapped = "/".join([*parts[:at], "labels", *parts[at + 1 :]])
        if swapped in labels:
            return swapped
    return path.as_posix() if path.as_posix() in labels else None


def _box(fields: list[str], names: tuple[str, ...], line: int, points: tuple[int, int] | None) -> RawBox | str:
    kind = whole(fields[0])
    if kind is None or not 0 <= kind < len(names):
        return f"class number is not one of 0 to {len(names) - 1}"
    values = [number(field) for field in fields[1:]]
    flags: tuple[str, ...] = ()
    plain = 4 if points is None else 4 + points[0] * points[1]
    if len(values) == plain + 1 or (points is None and len(values) >= 7 and len(values) % 2):
        confidence = values.pop()
        if not 0 <= confidence <= 1:
            return "confidence at the end of the line is not in [0, 1]"
        flags = (f"confidence_{confidence:g}",)
    corners: tuple[float, float, float, float]
    if len(values) == plain:
        x, y, w, h = values[:4]
        corners = (x - w / 2, y - h / 2, x + w / 2, y + h / 2)
    elif points is None and len(values) >= 6 and len(values) % 2 == 0:
        if _reads_as_keypoints(values):
            return "line reads as a box with keypoints: give kpt_shape, in data.yaml or as an option"
        across, down = values[0::2], values[1::2]
        corners = (min(across), min(down), max(across), max(down))
        if any(value != value for value in values):
            corners = (float("nan"),) * 4
    elif points is not None:
        return f"line is not a class number, 4 numbers and {points[0]} x {points[1]} values of keypoints"
    else:
        return "line is not a class number and 4 numbers, or an outline of 3 points or more"
    return RawBox(str(line), names[kind], corners, f"line {line}", flags)


def _reads_as_keypoints(values: list[float]) -> bool:
    """Whether every third value behind the first four is a visibility, 0, 1 or 2."""
    rest = values[4:]
    return len(rest) >= 3 and len(rest) % 3 == 0 and all(value in (0, 1, 2) for value in rest[2::3])


def _document(folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """The nearest `data.yaml` or `dataset.yaml` in the folder or up to two above it."""
    for parent in (folder, folder.parent, folder.parent.parent):
        for file in (parent / "data.yaml", parent / "dataset.yaml"):
            if file.is_file():
                try:
                    found = yaml.safe_load(utf8(file))
                except (yaml.YAMLError, RecursionError) as error:
                    raise ValueError(f"{file} is not yaml: {error}") from error
                return file, found if isinstance(found, dict) else {}
    return None


def _class_names(folder: Path, document: tuple[Path, dict[str, Any]] | None) -> tuple[str, ...]:
    for parent in (folder, folder.parent, folder.parent.parent):
        if (parent / "classes.txt").is_file():
            names = [line.strip() for line in utf8(parent / "classes.txt").splitlines() if line.strip()]
            return tuple(names)
        if document is not None and document[0].parent == parent:
            return _yaml_names(*document)
    raise FileNotFoundError(
        f"no class names for {folder}: give classes, or put classes.txt (a name a line) or data.yaml (names) beside it"
    )


def _yaml_names(file: Path, document: dict[str, Any]) -> tuple[str, ...]:
    names = document.get("names")
    if isinstance(names, dict) and set(names) == set(range(len(names))):
        names = [names[number_of] for number_of in range(len(names))]
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{file}: names must list the classes, or map 0, 1, ... to them; it is {names!r}")
    return tuple(names)


def _kpt_shape(document: tuple[Path, dict[str, Any]] | None) -> tuple[int, int] | None:
    if document is None or document[1].get("kpt_shape") is None:
        return None
    file, shape = document[0], document[1]["kpt_shape"]
    if not (isinstance(shape, list) and len(shape) == 2 and all(type(side) is int for side in shape)) or shape[0] < 1:
        raise ValueError(f"{file}: kpt_shape must be [number of keypoints, 2 or 3]; it is {shape!r}")
    if shape[1] not in (2, 3):
        raise ValueError(f"{file}: kpt_shape must be [number of keypoints, 2 or 3]; it is {shape!r}")
    return shape[0], shape[1]
