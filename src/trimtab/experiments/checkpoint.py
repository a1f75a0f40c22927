"""Checkpoints without pickle: tensors in one safetensors file, everything else as JSON in its header.

One file is the unit, so that a checkpoint is wholly there or not there.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from trimtab.files import replace_atomically

FORMAT = "trimtab.checkpoint/1"


def _take_apart(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        key = str(len(tensors))
        tensors[key] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
        return {"__tensor__": key}
    if isinstance(value, dict):
        return {"__dict__": [[_take_apart(k, tensors), _take_apart(v, tensors)] for k, v in value.items()]}
    if isinstance(value, tuple):
        return {"__tuple__": [_take_apart(item, tensors) for item in value]}
    if isinstance(value, list):
        return [_take_apart(item, tensors) for item in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(
        f"a checkpoint holds tensors, numbers, strings, lists, tuples and dicts, got {type(value).__name__}"
    )


def _put_together(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_put_together(item, tensors) for item in value]
    if isinstance(value, dict):
        if "__tensor__" in value:
            return tensors[value["__tensor__"]]
        if "__tuple__" in value:
            return tuple(_put_together(item, tensors) for item in value["__tuple__"])
        return {_put_together(k, tensors): _put_together(v, tensors) for k, v in value["__dict__"]}
    return value


def write_safetensors(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` make a safetensors file at `path`, atomically; OSError also where safetensors wraps the system's error."""

    def guarded(temporary: Path) -> None:
        try:
            write(temporary)
        except SafetensorError as error:
            raise OSError(None, str(error)) from error

    replace_atomically(path, guarded)


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write a nested state of tensors and plain values to `path`, atomically.

    Raises:
        TypeError: the state holds something else.
        OSError: the disk is full or not writable; an earlier file at `path` stays.
    """
    tensors: dict[str, Tensor] = {}
    structure = json.dumps(_take_apart(state, tensors))

    metadata = {"format": FORMAT, "structure": structure}
    write_safetensors(path, lambda temporary: save_file(tensors, temporary, metadata=metadata))


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read what `save_checkpoint` wrote.

    Raises:
        ValueError: the file is missing, damaged or of another kind; the message names it.
    """
    if not path.is_file():
        raise ValueError(f"no checkpoint at {path}")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise ValueError(f"{path} is not a {FORMAT} file (its format says {metadata.get('format')!r})")
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dict
        state: dict[str, Any] = _put_together(json.loads(metadata["structure"]), tensors)
    except (SafetensorError, KeyError, json.JSONDecodeError, TypeError) as error:
        raise ValueError(f"checkpoint {path} is damaged: {error}") from error
    return state
