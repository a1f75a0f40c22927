"""Checkpoints without pickle: tensors in one safetensors file, everything else as JSON in its header.

One file is the unit, so that a checkpoint is wholly there or not there. Every file has a hash of its content: the format
itself notices a file cut short, but not a flipped bit in a weight.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_model, save_file, save_model
from torch import Tensor, nn

from trimtab.deploy.store_format import content_hash
from trimtab.files import errno_of, replace_atomically
from trimtab.inputs import named

FORMAT = "trimtab.checkpoint/1"
HASH_KEY = "trimtab.sha256"


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


def _write(path: Path, write: Callable[[Path], object]) -> None:
    def guarded(temporary: Path) -> None:
        try:
            write(temporary)
        except SafetensorError as error:  # which wraps the system's error
            raise OSError(errno_of(error), str(error)) from error

    replace_atomically(path, guarded)


def _seal(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a safetensors file whose metadata hold the sha256 of names, dtypes, shapes, bytes and the other metadata."""
    save_file(tensors, path, metadata={**metadata, HASH_KEY: content_hash(tensors, metadata)})


def read_sealed(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file; one without a hash (of another program, or older) is read as it is.

    Raises:
        ValueError: the file is damaged or was altered; the message names it.
    """
    with named(path, "is damaged"):
        with safe_open(path, framework="pt") as file:
            metadata = dict(file.metadata() or {})
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dict
        sha256 = metadata.pop(HASH_KEY, None)
        if sha256 is None and any(len(value) == 64 and value.isalnum() for value in metadata.values()):
            raise ValueError("its metadata hold a sha256 under another name: it was altered")
        if sha256 is not None and content_hash(tensors, metadata) != sha256:
            raise ValueError("its content does not have the sha256 in its metadata: it was altered")
    return tensors, metadata


def save_network(path: Path, model: nn.Module) -> None:
    """Write the state of `model` to `path`, atomically: safetensors, tied tensors once, with a hash.

    Raises:
        OSError: the disk is full or not writable; an earlier file at `path` stays.
    """

    def write(temporary: Path) -> None:
        save_model(model, str(temporary))  # which decides what tied tensors are called
        with safe_open(temporary, framework="pt") as file:
            metadata = dict(file.metadata() or {})
            tensors = {key: file.get_tensor(key).clone() for key in file.keys()}  # noqa: SIM118 - not a dict
        _seal(temporary, tensors, metadata)

    _write(path, write)


def load_network(path: Path, model: nn.Module) -> None:
    """Load what `save_network` wrote into `model`, strictly.

    Raises:
        ValueError: the file is damaged, was altered, or is of another network; the message names it.
    """
    read_sealed(path)
    with named(path, "is damaged or of another network"):
        load_model(model, str(path))


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write a nested state of tensors and plain values to `path`, atomically, with a hash over all of it.

    Raises:
        TypeError: the state holds something else.
        OSError: the disk is full or not writable; an earlier file at `path` stays.
    """
    tensors: dict[str, Tensor] = {}
    structure = json.dumps(_take_apart(state, tensors))
    metadata = {"format": FORMAT, "structure": structure}
    _write(path, lambda temporary: _seal(temporary, tensors, metadata))


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read what `save_checkpoint` wrote; a checkpoint of an older version, without a hash, is read unchecked.

    Raises:
        ValueError: the file is missing, damaged, altered or of another kind; the message names it.
    """
    if not path.is_file():
        raise ValueError(f"no checkpoint at {path}")
    tensors, metadata = read_sealed(path)
    if metadata.get("format") != FORMAT:
        raise ValueError(f"{path} is not a {FORMAT} file (its format says {metadata.get('format')!r})")
    with named(path, "is damaged"):
        state = _put_together(json.loads(metadata["structure"]), tensors)
        if not isinstance(state, dict):
            raise ValueError(f"its structure is no mapping but {type(state).__name__}")
    return state
