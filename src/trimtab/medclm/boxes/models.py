"""A model's own way with boxes: its format and what its processor makes of a picture."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trimtab.inputs import read_json_mapping
from trimtab.medclm.boxes.formats import FORMATS, format_named
from trimtab.medclm.boxes.forms import BoxFormat
from trimtab.medclm.boxes.resizing import Resizing, Size, Smart, resizing_of


@dataclass(frozen=True)
class ModelBoxes:
    """A format together with the resizing that its numbers are of.

    Attributes:
        format: how boxes are written.
        resizing: None where the format's numbers are shares of the picture, whatever its size.
    """

    format: BoxFormat
    resizing: Resizing | None = None

    def seen(self, width: int, height: int) -> Size:
        """The size in which the model sees a picture of `width` x `height`."""
        return (width, height) if self.resizing is None else self.resizing(width, height)

    @classmethod
    def named(cls, name: str, resizing: Resizing | None = None) -> ModelBoxes:
        """The format of a name; "qwen2.5" without a resizing takes `Smart()`, the defaults of its image processor."""
        wanted = format_named(name)
        return cls(wanted, resizing or (Smart() if name == "qwen2.5" else None))


def boxes_of(model: Any, processor: Any = None) -> ModelBoxes:
    """Format and resizing of a model.

    Args:
        model: a folder with config.json and its processor, a model or configuration of transformers, or its `model_type`.
        processor: its processor; not needed with a folder.

    Raises:
        ValueError: the model's way to write boxes, or its processor's way to resize, is not known; it is named.
        FileNotFoundError: the folder has no config.json or no processor.
    """
    if isinstance(model, Path) or (isinstance(model, str) and Path(model).is_dir()):
        folder = Path(model)
        if not (folder / "config.json").is_file():
            raise FileNotFoundError(f"{folder} holds no config.json: not a model's folder")
        family = str(read_json_mapping(folder / "config.json").get("model_type", "none"))
        processor = folder if processor is None else processor
    else:
        family = model if isinstance(model, str) else getattr(getattr(model, "config", model), "model_type", "none")
    found = next((one for one in FORMATS.values() if family in one.models), None)
    if found is None:
        known = ", ".join(name for one in FORMATS.values() for name in one.models)
        raise ValueError(f"how a model of the family {family!r} writes boxes is not known; known are {known}")
    if processor is None:
        raise ValueError(f"a model of the family {family!r} needs its processor to say how it resizes")
    return ModelBoxes(found, resizing_of(processor))
