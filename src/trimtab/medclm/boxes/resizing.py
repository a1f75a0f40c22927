"""How models resize a picture before they see it: what the coordinates of a box are coordinates of."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from trimtab.inputs import read_json_mapping

Size = tuple[int, int]
"""(width, height) of a picture in pixels."""


class Resizing(Protocol):
    """Maps the size of a picture to the size in which the model sees all of it: nothing cut off, nothing added."""

    def __call__(self, width: int, height: int) -> Size:
        """The size in which a picture of `width` x `height` is seen."""
        ...


@dataclass(frozen=True)
class Stretched:
    """Every picture becomes `wide` x `high` (PaliGemma, Florence-2, Gemma 3); its shape is lost, fractions of it stay.

    >>> Stretched(896, 896)(768, 510)
    (896, 896)
    """

    wide: int
    high: int

    def __call__(self, width: int, height: int) -> Size:
        """The resized size."""
        return self.wide, self.high


@dataclass(frozen=True)
class Smart:
    """Qwen's `smart_resize`: sides are multiples of `factor`, the area lies in [`least`, `most`] pixels, the shape nearly stays.

        w = factor round(width / factor), h likewise; if w h > most: b = sqrt(width height / most), w = factor floor(width / b / factor)
        but at least factor; if w h < least: b = sqrt(least / (width height)), w = factor ceil(width b / factor).

    `round` takes halves to the even number, as Python does. A side below factor / 2 rounds to 0, so that the picture is enlarged.

    Args:
        factor: patch x merge, 28 for Qwen2.5-VL (arXiv 2502.13923), 32 for Qwen3-VL (arXiv 2511.21631).
        least, most: pixels; the defaults are those of Qwen2.5-VL's image processor in transformers. Folders on the hub set others.

    Raises:
        ValueError: (when called) one side is more than 200 times the other, which these models refuse.

    >>> Smart()(768, 510), Smart(32, 65536, 16777216)(768, 510)
    ((756, 504), (768, 512))
    """  # noqa: E501

    factor: int = 28
    least: int = 56 * 56
    most: int = 28 * 28 * 1280

    def __call__(self, width: int, height: int) -> Size:
        """The resized size."""
        if max(width, height) > 200 * min(width, height):
            raise ValueError(
                f"image of {width} x {height}: Qwen2.5-VL and its kin take no picture longer than 200 times its width"
            )
        factor = self.factor
        wide, high = (round(side / factor) * factor for side in (width, height))
        if wide * high > self.most:
            scale = math.sqrt(width * height / self.most)
            wide, high = (max(factor, math.floor(side / scale / factor) * factor) for side in (width, height))
        elif wide * high < self.least:
            scale = math.sqrt(self.least / (width * height))
            wide, high = (math.ceil(side * scale / factor) * factor for side in (width, height))
        return wide, high


@dataclass(frozen=True)
class Budgeted:
    """Gemma 4: the largest size of about the same shape whose sides are multiples of `pool` x `patch` and that has at most
    `tokens` such squares.

    >>> Budgeted()(768, 510)
    (960, 624)
    """

    patch: int = 16
    pool: int = 3
    tokens: int = 280

    def __call__(self, width: int, height: int) -> Size:
        """The resized size."""
        side = self.patch * self.pool
        scale = math.sqrt(self.tokens * side * side / (width * height))
        wide, high = (math.floor(one * scale / side) * side for one in (width, height))
        if not wide and not high:
            raise ValueError(f"image of {width} x {height}: {self.tokens} tokens are too few for it")
        if not high:
            return min(width // height, self.tokens) * side, side
        if not wide:
            return side, min(height // width, self.tokens) * side
        return wide, high


@dataclass(frozen=True)
class Tiled:
    """InternVL: stretched to the grid of `least` to `most` square tiles whose shape is nearest, beside a thumbnail of all.

    Among grids equally near, the one with more tiles is taken while the picture has more than half of its pixels.

    >>> Tiled(448)(768, 510)
    (1344, 896)
    """

    tile: int
    least: int = 1
    most: int = 12

    def __call__(self, width: int, height: int) -> Size:
        """The size of the grid."""
        grids = [
            (columns, rows)
            for columns in range(1, self.most + 1)
            for rows in range(1, self.most + 1)
            if self.least <= columns * rows <= self.most
        ]
        best, found = math.inf, (1, 1)
        for columns, rows in sorted(grids, key=lambda grid: grid[0] * grid[1]):
            away = abs(width / height - columns / rows)
            if away < best or (away == best and width * height > 0.5 * self.tile**2 * columns * rows):
                best, found = away, (columns, rows)
        return found[0] * self.tile, found[1] * self.tile


def resizing_of(processor: Any) -> Resizing:
    """The rule of a processor, an image processor, or a folder that holds one; nothing is loaded from a folder but its JSON.

    Known are the image processors of Qwen2-VL to Qwen3-VL, PaliGemma and Gemma 3n (SigLIP), Florence-2 (CLIP without cutting),
    InternVL (GOT-OCR2), Gemma 3 without pan-and-scan, and Gemma 4.

    Raises:
        ValueError: another one, or one that cuts, pads or pans: it is named, and never guessed at.
        FileNotFoundError: the folder has no image processor.
    """
    if isinstance(processor, str | Path):
        name, settings = _of_folder(Path(processor))
    else:
        pictures = getattr(processor, "image_processor", processor)
        name = type(pictures).__name__
        settings = {key: value for key in _SETTINGS if (value := getattr(pictures, key, None)) is not None}
        if type(processor).__name__ == "InternVLProcessor":
            settings["crop_to_patches"] = True  # the processor always says so
    rule = _RULES.get(name.removesuffix("Fast").removesuffix("Pil"))
    if rule is None:
        known = ", ".join(sorted(_RULES))
        raise ValueError(
            f"image processor {name}: how it resizes is not known, so no box is written for it; known are {known}"
        )
    if not settings.get("do_resize", True):
        raise ValueError(
            f"image processor {name} with do_resize=False: then the size that the model sees is the caller's"
        )
    for what in ("do_center_crop", "do_pad", "do_pan_and_scan"):
        if settings.get(what, what == "do_center_crop" and name.startswith("CLIP")):  # CLIP's own default is to cut
            raise ValueError(
                f"image processor {name} with {what}: the model does not see the whole picture at one scale"
            )
    return rule(name, settings)


_SETTINGS = (
    "size", "patch_size", "merge_size", "min_patches", "max_patches", "crop_to_patches", "max_soft_tokens",
    "pooling_kernel_size", "do_center_crop", "do_pad", "do_pan_and_scan", "do_resize", "min_pixels", "max_pixels",
)  # fmt: skip


def _of_folder(folder: Path) -> tuple[str, dict[str, Any]]:
    for name in ("processor_config.json", "preprocessor_config.json"):
        file = folder / name
        if not file.is_file():
            continue
        found = read_json_mapping(file)
        settings = found.get("image_processor") if name == "processor_config.json" else found
        if isinstance(settings, Mapping) and "image_processor_type" in settings:
            merged = dict(settings)
            if found.get("processor_class") == "InternVLProcessor" or "start_image_token" in found:
                merged["crop_to_patches"] = True
            return str(merged["image_processor_type"]), merged
    raise FileNotFoundError(
        f"{folder} holds no preprocessor_config.json or processor_config.json that names its image processor "
        "(image_processor_type)"
    )


def _number(name: str, settings: Mapping[str, Any], key: str, default: int | None = None) -> int:
    value = settings.get(key, default)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"image processor {name}: its {key} must be a whole number of 1 or more, got {value!r}")
    return value


def _size(name: str, settings: Mapping[str, Any], *keys: str) -> tuple[int, ...]:
    size = settings.get("size", {})
    size = dict(size) if not isinstance(size, int) else {"height": size, "width": size}
    if any(size.get(key) is None for key in keys):
        raise ValueError(
            f"image processor {name}: its size must say {' and '.join(keys)}, got {json.dumps(size, default=str)}; "
            "how it resizes is not known"
        )
    return tuple(_number(name, size, key) for key in keys)


def _stretched(name: str, settings: Mapping[str, Any]) -> Resizing:
    high, wide = _size(name, settings, "height", "width")
    return Stretched(wide, high)


def _smart(name: str, settings: Mapping[str, Any]) -> Resizing:
    factor = _number(name, settings, "patch_size", 14) * _number(name, settings, "merge_size", 2)
    pixels = {"shortest_edge": settings.get("min_pixels"), "longest_edge": settings.get("max_pixels")}
    size = dict(settings.get("size") or {"shortest_edge": Smart.least, "longest_edge": Smart.most})
    size |= {key: value for key, value in pixels.items() if value is not None}
    return Smart(factor, *_size(name, {"size": size}, "shortest_edge", "longest_edge"))


def _tiled(name: str, settings: Mapping[str, Any]) -> Resizing:
    high, wide = _size(name, settings, "height", "width")
    if not settings.get("crop_to_patches"):
        return Stretched(wide, high)
    if wide != high:
        raise ValueError(f"image processor {name}: tiles of {wide} x {high} are not square")
    return Tiled(wide, _number(name, settings, "min_patches", 1), _number(name, settings, "max_patches", 12))


def _budgeted(name: str, settings: Mapping[str, Any]) -> Resizing:
    return Budgeted(
        _number(name, settings, "patch_size", 16),
        _number(name, settings, "pooling_kernel_size", 3),
        _number(name, settings, "max_soft_tokens", 280),
    )


_RULES: Mapping[str, Callable[[str, Mapping[str, Any]], Resizing]] = {
    "Qwen2VLImageProcessor": _smart,
    "Qwen2_5_VLImageProcessor": _smart,
    "SiglipImageProcessor": _stretched,
    "CLIPImageProcessor": _stretched,
    "Florence2ImageProcessor": _stretched,
    "GotOcr2ImageProcessor": _tiled,
    "Gemma3ImageProcessor": _stretched,
    "Gemma4ImageProcessor": _budgeted,
}
