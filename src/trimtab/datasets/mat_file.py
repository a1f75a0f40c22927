"""Arrays of numbers from a MATLAB 5 .mat file, every size checked against the bytes that are there.

A file is a header of 128 bytes and then elements: a tag (type, number of bytes, 32 bits each), the content, filled up to
a multiple of 8. A variable is a matrix element, mostly inside a compressed one, and holds elements for its flags, its
dimensions, its name and its numbers. An element of at most 4 bytes may have its size in the upper half of the type and
its content in the tag. ("MAT-File Format", MathWorks, level 5.)
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trimtab.inputs import named

Array = np.ndarray[Any, np.dtype[Any]]

_TYPES = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
_CLASSES = {6: "f8", 7: "f4", 8: "i1", 9: "u1", 10: "i2", 11: "u2", 12: "i4", 13: "u4", 14: "i8", 15: "u8"}
_INT8, _INT32, _UINT32, _MATRIX, _COMPRESSED = 1, 5, 6, 14, 15
_COMPLEX = 0x800
_HEAD = 4096  # bytes of a variable that hold its flags, dimensions and name
_NAME_LIMIT = 63  # characters of a name in MATLAB
MAX_VALUES = 2**31


@dataclass(frozen=True, slots=True)
class _Element:
    type: int
    content: memoryview
    size: int
    end: int


def _element(data: memoryview, start: int, order: str, *, cut: bool = False) -> _Element:
    """The element at `start`; `cut`: its content may reach beyond what is there."""
    if start + 8 > len(data):
        raise ValueError(f"it ends inside a tag at byte {start}")
    kind, size = (int(value) for value in np.frombuffer(data[start : start + 8], dtype=f"{order}u4"))
    if kind >> 16:  # small: size and type share the first half
        size, kind = kind >> 16, kind & 0xFFFF
        if size > 4:
            raise ValueError(f"a small element at byte {start} claims {size} bytes")
        return _Element(kind, data[start + 4 : start + 4 + size], size, start + 8)
    end = start + 8 + size
    if end > len(data) and not cut:
        raise ValueError(f"an element at byte {start} claims {size} bytes, {len(data) - start - 8} are there")
    return _Element(kind, data[start + 8 : end], size, end if kind == _COMPRESSED else end + -size % 8)


@dataclass(frozen=True, slots=True)
class _Variable:
    name: str
    kind: int
    complex: bool
    shape: tuple[int, ...]
    numbers: int
    """Where the element of the numbers begins."""


def _variable(matrix: memoryview, order: str) -> _Variable:
    flags = _element(matrix, 0, order)
    sizes = _element(matrix, flags.end, order)
    name = _element(matrix, sizes.end, order)
    if (flags.type, sizes.type, name.type) != (_UINT32, _INT32, _INT8) or len(flags.content) != 8:
        raise ValueError("a variable has no flags, dimensions and name")
    if not len(sizes.content) or len(sizes.content) % 4 or len(name.content) > _NAME_LIMIT:
        raise ValueError("a variable has impossible dimensions or an impossible name")
    shape = tuple(int(size) for size in np.frombuffer(sizes.content, dtype=f"{order}i4"))
    word = int(np.frombuffer(flags.content[:4], dtype=f"{order}u4")[0])
    text = bytes(name.content).decode("latin-1")
    return _Variable(text, word & 0xFF, bool(word & _COMPLEX), shape, name.end)


def _numbers(found: _Variable, matrix: memoryview, order: str) -> Array:
    if found.kind not in _CLASSES or found.complex:
        raise ValueError(f"variable {found.name!r} is no array of real numbers")
    count = math.prod(found.shape)
    if min(found.shape) < 0 or count > MAX_VALUES:
        raise ValueError(f"variable {found.name!r} has an impossible shape {found.shape}")
    values = _element(matrix, found.numbers, order)
    if values.type not in _TYPES:
        raise ValueError(f"variable {found.name!r} has numbers of an unknown type {values.type}")
    dtype = np.dtype(f"{order}{_TYPES[values.type]}")
    if len(values.content) != count * dtype.itemsize:
        raise ValueError(
            f"variable {found.name!r} is {found.shape} of {dtype.itemsize} bytes each, but holds {len(values.content)}"
        )
    array = np.frombuffer(values.content, dtype=dtype).reshape(found.shape, order="F")
    return array.astype(_CLASSES[found.kind], copy=False)


def _unpacked(element: _Element, names: Collection[str], order: str) -> tuple[_Variable, memoryview] | None:
    """The variable in an element and the bytes of its matrix, or None of one that is not asked for."""
    if element.type == _MATRIX:
        found = _variable(element.content, order)
        return (found, element.content) if found.name in names else None
    if element.type != _COMPRESSED:
        return None
    inflate = zlib.decompressobj()
    head = memoryview(inflate.decompress(element.content, _HEAD))
    matrix = _element(head, 0, order, cut=True)
    if matrix.type != _MATRIX:
        return None
    found = _variable(matrix.content, order)
    if found.name not in names:
        return None
    size = matrix.size
    rest = inflate.decompress(inflate.unconsumed_tail, size + 8 - len(head)) if size + 8 > len(head) else b""
    whole = memoryview(b"".join((head, rest)))
    if len(whole) < size + 8:
        raise ValueError(f"variable {found.name!r} claims {size} bytes, {len(whole) - 8} are there")
    if not inflate.eof:  # the checksum stands behind the last byte, and up to 7 bytes that fill up
        inflate.decompress(inflate.unconsumed_tail, 8)
        if not inflate.eof:
            raise ValueError(f"the compressed bytes of variable {found.name!r} do not end where they should")
    return found, whole[8 : 8 + size]


def read_mat(path: Path, names: Collection[str]) -> dict[str, Array]:
    """The arrays called `names`, as far as the file has them; other variables are passed over unread.

    Args:
        path: a MATLAB 5 file (versions 5 to 7.2), compressed or not, in either byte order.
        names: variables wanted; each must be an array of real numbers of at most 2**31 values.

    Returns:
        Name -> array of the shape and class it has in MATLAB. They may be read-only.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, cut short, of another version, or a wanted variable is no array of numbers; names it.
    """
    with named(path):
        data = memoryview(path.read_bytes())
        marks = {b"IM": "<", b"MI": ">"}
        order = marks.get(bytes(data[126:128]))
        if order is None or int(np.frombuffer(data[124:126], dtype=f"{order}u2")[0]) != 0x0100:
            raise ValueError("it is not a MATLAB 5 file (version 7.3 is HDF5: save it with -v7)")
        found: dict[str, Array] = {}
        start = 128
        while start < len(data) and len(found) < len(set(names)):
            element = _element(data, start, order)
            start = element.end
            unpacked = _unpacked(element, names, order)
            if unpacked is not None:
                found[unpacked[0].name] = _numbers(unpacked[0], unpacked[1], order)
    return found
