"""Masks as a file of one bit for each weight."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import torch
from safetensors.torch import save_file
from torch import Tensor

from trimtab.files import replace_atomically

KEY = "trimtab.masks"
VERSION = 1
LIMIT = 2**36
"""Weights that a file may have masks of; more is damage."""


def save_masks(masks: Mapping[str, Tensor], path: str | Path) -> int:
    """Write masks as one bit for each weight.

    A safetensors file: for each name a flat uint8 entry of `ceil(n / 8)` bytes, the first weight in the lowest bit of the first
    byte, row-major; the metadata `trimtab.masks` holds version and shapes as JSON.

    Args:
        masks: per name a bool tensor, True where the weight stays (`Pruned.masks`, a lever's `masks`, `masks_of`).
        path: of the file; one that is there is replaced when the new one is whole.

    Returns:
        The file's size in bytes.

    Raises:
        TypeError: a mask is not bool.
        ValueError: there is no mask.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     size = save_masks({"weight": torch.tensor([[True, False, True]])}, f"{folder}/masks.safetensors")
        ...     load_masks(f"{folder}/masks.safetensors")
        {'weight': tensor([[ True, False,  True]])}
    """
    if not masks:
        raise ValueError("there are no masks to write")
    for name, mask in masks.items():
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
            raise TypeError(
                f"mask {name!r} must be bool (True = stays), got {getattr(mask, 'dtype', type(mask).__name__)}"
            )
    packed = {
        name: torch.from_numpy(np.packbits(mask.detach().cpu().contiguous().numpy().reshape(-1), bitorder="little"))
        for name, mask in masks.items()
    }
    told = json.dumps({"version": VERSION, "shapes": {name: list(mask.shape) for name, mask in masks.items()}})
    replace_atomically(Path(path), lambda temporary: save_file(packed, temporary, {KEY: told}))
    return Path(path).stat().st_size


def load_masks(path: str | Path) -> dict[str, Tensor]:
    """The masks of a file that `save_masks` wrote, as bool tensors, for `apply_masks`, `KeepMasks`, `MaskTuning.put_on`.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is damaged, or no file of masks.
    """
    Path(path).open("rb").close()  # an error of the system that names the file
    try:
        with safetensors.safe_open(path, framework="np") as file:
            told = json.loads((file.metadata() or {}).get(KEY, "null"))
            if not isinstance(told, dict) or told.get("version") != VERSION or not isinstance(told.get("shapes"), dict):
                raise ValueError(f"its metadata {KEY} is not that of a file of masks, version {VERSION}")
            shapes: dict[str, list[int]] = told["shapes"]
            if set(file.keys()) != shapes.keys():
                raise ValueError("its entries are not those that its metadata names")
            return {name: _unpacked(name, file.get_tensor(name), shapes[name]) for name in shapes}
    except (safetensors.SafetensorError, json.JSONDecodeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error


def _unpacked(name: str, packed: Any, shape: Any) -> Tensor:
    whole = isinstance(shape, list) and all(type(size) is int and size >= 0 for size in shape)
    elements = math.prod(shape) if whole else -1
    if not 0 <= elements <= LIMIT or packed.dtype != np.uint8 or packed.shape != (-(-elements // 8),):
        raise ValueError(f"the mask of {name} of shape {shape} does not fit {packed.dtype} {packed.shape}")
    bits = np.unpackbits(packed, count=elements, bitorder="little")
    found: Tensor = torch.from_numpy(bits.astype(bool)).view(shape)
    return found
