"""The layout of a sparse file: its metadata, its index and the hash over its content.

A sparse file is a safetensors file with these entries:

* `index`: uint8, zlib-compressed JSON `{"tensors": [...], "aliases": {...}}`. A row is `[name, dtype, shape]` for a
  dense tensor and `[name, dtype, shape, nonzeros, k, position_bytes]` for a sparse one; an alias maps a name to the
  row that holds its tensor.
* `values.DTYPE` for each dtype: the values of the rows of that dtype one after the other, all of them for a dense
  row, the non-zero ones for a sparse row, in row-major order.
* `positions`: uint8, the codes of the sparse rows one after the other (`trimtab.deploy.positions`).

The metadata has one key, `trimtab.sparse`, with JSON: format version, sha256 of the content, the user's strings, and in
version 2 what modules gave as extra state (`get_extra_state`). Files without extra state are version 1.
"""

from __future__ import annotations

import hashlib
import json
import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

VERSION = 2
EXTRA_STATE = "_extra_state"  # how torch's state dicts end the key of what `get_extra_state` gave
METADATA_KEY = "trimtab.sparse"
COMPACT_KEY = "trimtab.compact"
INDEX_LIMIT = 16 * 2**20
HEADER_LIMIT = 100_000_000  # bytes of a header that safetensors reads

_LABELS = {
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2", "complex64": "C64", "int64": "I64", "int32": "I32", "int16": "I16", "int8": "I8",
    "uint8": "U8", "uint16": "U16", "uint32": "U32", "uint64": "U64", "bool": "BOOL",
}  # fmt: skip
DTYPES: dict[str, torch.dtype] = {name: getattr(torch, name) for name in _LABELS if hasattr(torch, name)}
NAMES: dict[torch.dtype, str] = {dtype: name for name, dtype in DTYPES.items()}
_INTEGER_OF_SIZE = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def safetensors_label(dtype: str) -> str:
    """How safetensors writes the dtype: `float32` -> `F32`."""
    return _LABELS[dtype]


def as_integers(flat: Tensor) -> Tensor:
    """The bits of a flat contiguous tensor as integers of the same size, without a copy."""
    return flat.view(_INTEGER_OF_SIZE[flat.element_size()])


def as_bytes(tensor: Tensor) -> memoryview:
    """The bytes of a contiguous CPU tensor, without a copy."""
    return tensor.reshape(-1).view(torch.uint8).numpy().data


@dataclass(frozen=True)
class IndexRow:
    """One stored tensor; `k` and `position_bytes` are None when it is dense."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    nonzeros: int
    k: int | None = None
    position_bytes: int = 0

    @property
    def elements(self) -> int:
        """Number of elements of the tensor."""
        return math.prod(self.shape)

    @property
    def stored(self) -> int:
        """Number of values in the file."""
        return self.elements if self.k is None else self.nonzeros


@dataclass(frozen=True)
class Index:
    """All rows, and the names that share a row's tensor."""

    rows: tuple[IndexRow, ...]
    aliases: dict[str, str]


def write_index(index: Index) -> Tensor:
    """The index as zlib-compressed JSON in a uint8 tensor.

    Raises:
        ValueError: it is larger than `read_index` accepts.
    """
    rows = [
        [row.name, row.dtype, list(row.shape)] + ([] if row.k is None else [row.nonzeros, row.k, row.position_bytes])
        for row in index.rows
    ]
    text = json.dumps({"tensors": rows, "aliases": index.aliases}, separators=(",", ":")).encode()
    if len(text) > INDEX_LIMIT:
        raise ValueError(
            f"the index of {len(rows) + len(index.aliases)} tensor names takes {len(text)} bytes, more than the "
            f"{INDEX_LIMIT} that can be read back; shorten the names or save the tensors in several files"
        )
    return torch.frombuffer(bytearray(zlib.compress(text, 9)), dtype=torch.uint8)


def _count(value: object, what: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**62:
        raise ValueError(f"{what} must be an integer of 0 or more, got {value!r}")
    return value


def _read_row(row: object) -> IndexRow:
    if not isinstance(row, list) or len(row) not in (3, 6):
        raise ValueError(f"a row must have 3 or 6 fields, got {row!r}")
    name, dtype, shape = row[:3]
    if not isinstance(name, str) or dtype not in DTYPES or not isinstance(shape, list):
        raise ValueError(f"row {name!r} has a bad name, dtype {dtype!r} or shape")
    sizes = tuple(_count(size, f"a size of {name!r}") for size in shape)
    elements = math.prod(sizes)
    if elements >= 2**62:
        raise ValueError(f"{name!r} has {elements} elements")
    if len(row) == 3:
        return IndexRow(name, dtype, sizes, elements)
    nonzeros, k, position_bytes = (_count(value, f"a count of {name!r}") for value in row[3:])
    if nonzeros > elements:
        raise ValueError(f"{name!r} claims {nonzeros} non-zeros of {elements} elements")
    return IndexRow(name, dtype, sizes, nonzeros, k, position_bytes)


def read_index(packed: Tensor) -> Index:
    """What `write_index` wrote.

    Raises:
        ValueError: it is not, or it is larger than 16 MiB.
    """
    inflater = zlib.decompressobj()
    try:
        text = inflater.decompress(bytes(as_bytes(packed)), INDEX_LIMIT)
        if not inflater.eof or inflater.unused_data:
            raise ValueError(f"it is cut off, has bytes left over or is larger than {INDEX_LIMIT} bytes")
        content = json.loads(text)
        if not isinstance(content, dict) or set(content) != {"tensors", "aliases"}:
            raise ValueError("it must hold 'tensors' and 'aliases'")
        rows = tuple(_read_row(row) for row in content["tensors"])
        names = {row.name for row in rows}
        aliases = content["aliases"]
        if len(names) != len(rows) or not isinstance(aliases, dict):
            raise ValueError("names are not unique, or aliases are no mapping")
        for alias, name in aliases.items():
            if alias in names or name not in names:
                raise ValueError(f"alias {alias!r} -> {name!r} does not fit the tensors")
    except (ValueError, TypeError, RecursionError, zlib.error) as error:
        raise ValueError(f"index: {error}") from error
    return Index(rows, aliases)


def is_plain(value: object) -> bool:
    """Whether JSON gives `value` back as it is: None, bool, int, float, str, and lists and dicts by name of them.

    Example:
        >>> is_plain({"version": 3, "seen": [1.5, None]}), is_plain((1, 2))
        (True, False)
    """
    if type(value) is list:
        return all(map(is_plain, value))
    if type(value) is dict:
        return all(type(key) is str and is_plain(item) for key, item in value.items())
    return value is None or type(value) in (bool, int, float, str)


def content_hash(entries: Mapping[str, Tensor], user: Mapping[str, str], extra: Mapping[str, Any] | None = None) -> str:
    """sha256 over the user's metadata, extra states and, for each entry by name, its name, dtype, shape and bytes."""
    digest = hashlib.sha256(json.dumps(dict(user), sort_keys=True).encode())
    if extra:
        digest.update(json.dumps(dict(extra), sort_keys=True).encode())
    for name in sorted(entries):
        tensor = entries[name]
        dtype = str(tensor.dtype).removeprefix("torch.")
        digest.update(json.dumps([name, dtype, list(tensor.shape)]).encode())
        digest.update(as_bytes(tensor))
    return digest.hexdigest()


def checked_metadata(metadata: Mapping[str, str] | None) -> dict[str, str]:
    """A copy of what the user wants to keep in a file; TypeError when it holds anything but strings."""
    user = dict(metadata or {})
    for key, value in user.items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise TypeError(f"metadata must map strings to strings, got {key!r}: {value!r}")
    return user


def write_metadata(
    sha256: str, user: Mapping[str, str], extra: Mapping[str, Any] | None = None, *, compact: bool = False
) -> dict[str, str]:
    """The metadata of the safetensors header: one key, so that equal content gives equal bytes."""
    fields: dict[str, Any] = {"version": 2 if compact else 1, "sha256": sha256, "metadata": dict(user)}
    if extra:
        fields |= {"version": 2, "extra": dict(extra)}
    return {COMPACT_KEY if compact else METADATA_KEY: json.dumps(fields, sort_keys=True)}


def read_metadata(metadata: Mapping[str, str] | None) -> tuple[str, dict[str, str], dict[str, Any]]:
    """The hash, the user's strings, and the extra states of modules by name.

    Raises:
        ValueError: not a sparse file, written by a newer version, or damaged.
    """
    if not metadata or METADATA_KEY not in metadata:
        if metadata and COMPACT_KEY in metadata:
            raise ValueError("it is a compact file; load_compact reads it")
        raise ValueError(f"no {METADATA_KEY!r} in its metadata; was it written by save_sparse?")
    try:
        fields: Any = json.loads(metadata[METADATA_KEY])
    except (ValueError, RecursionError) as error:
        raise ValueError(f"metadata: {error}") from error
    if not isinstance(fields, dict):
        raise ValueError("metadata is no mapping")
    version, sha256, user = fields.get("version"), fields.get("sha256"), fields.get("metadata")
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise ValueError(f"metadata: format version {version!r} is not a positive integer")
    if version > VERSION:
        raise ValueError(
            f"format version {version} is newer than {VERSION}, the newest this one reads; upgrade trimtab"
        )
    if not isinstance(sha256, str) or not isinstance(user, dict):
        raise ValueError("metadata: sha256 or metadata is missing")
    if not all(isinstance(value, str) for value in user.values()):
        raise ValueError("metadata: values must be strings")
    extra = fields.get("extra", {})
    if not isinstance(extra, dict):
        raise ValueError("metadata: extra states are no mapping")
    return sha256, user, extra
