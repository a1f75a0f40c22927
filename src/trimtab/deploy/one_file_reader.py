"""Read a sparse file of Trimtab without Trimtab: this one file, NumPy and safetensors.

    arrays = load("net.safetensors")                      # {name: NumPy array}, every bit as it was saved
    python trimtab_reader.py net.safetensors              # what is in it
    python trimtab_reader.py net.safetensors dense.safetensors   # a plain safetensors file that everything opens

A sparse file is a safetensors container: `index` (zlib-compressed JSON: rows and aliases), `positions` (Golomb-Rice codes
of the gaps between non-zeros) and `values.DTYPE`. Its metadata key `trimtab.sparse` holds the format version, a sha256 of
the content, the strings that were saved beside it and extra states. Printed by `trimtab export --to reader`. Apache-2.0.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import sys
import zlib
from typing import Any

import numpy as np
import safetensors

FORMATS = (1, 2)
"""Versions of the format that this file reads; 2 adds extra states."""
KEY = "trimtab.sparse"
INDEX_LIMIT = 16 * 2**20
LABELS = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2", "C64": "complex64", "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8", "U8": "uint8",
    "U16": "uint16", "U32": "uint32", "U64": "uint64", "BOOL": "bool",
}  # fmt: skip
SIZES = {"bfloat16": 2, "float8_e4m3fn": 1, "float8_e5m2": 1, "bool": 1}


def _size(dtype: str) -> int:
    return SIZES.get(dtype) or np.dtype(dtype).itemsize


def _bits(dtype: str) -> Any:
    """The unsigned integers that hold the raw bits of a dtype."""
    size = _size(dtype)
    return np.dtype("<u4") if size == 4 else np.dtype("<u8") if size == 8 else np.dtype(f"<u{size}")


def _container(content: bytes) -> tuple[dict[str, Any], dict[str, tuple[str, bytes]]]:
    """What the metadata key says, and every entry as (dtype, bytes); the hash is checked."""
    try:
        entries = {
            name: (LABELS.get(item["dtype"], ""), list(item["shape"]), bytes(item["data"]))
            for name, item in safetensors.deserialize(content)  # type: ignore[no-untyped-call]
        }
    except safetensors.SafetensorError as error:
        raise ValueError(f"not a whole safetensors file ({error})") from error
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    if KEY not in (header.get("__metadata__") or {}):
        raise ValueError(f"no {KEY!r} in its metadata: it is no sparse file; safetensors.numpy.load_file reads it")
    fields = json.loads(header["__metadata__"][KEY])
    if fields.get("version") not in FORMATS:
        raise ValueError(f"format version {fields.get('version')!r}; this reader knows {FORMATS}: print a newer one")
    digest = hashlib.sha256(json.dumps(fields["metadata"], sort_keys=True).encode())
    if fields.get("extra"):
        digest.update(json.dumps(fields["extra"], sort_keys=True).encode())
    for name in sorted(entries):
        dtype, shape, data = entries[name]
        digest.update(json.dumps([name, dtype, shape]).encode())
        digest.update(data)
    if digest.hexdigest() != fields.get("sha256"):
        raise ValueError("its content does not have the sha256 in its metadata: the file was altered or damaged")
    return fields, {name: (dtype, data) for name, (dtype, _, data) in entries.items()}


def _positions(code: Any, count: int, k: int, length: int) -> Any:
    """Where the non-zeros stand: low bits packed k by k, then a unary code for each gap."""
    if not 0 <= count <= length or not 0 <= k <= 62 or (count and 1 << k > length):
        raise ValueError(f"{count} non-zeros with k = {k} do not fit {length} elements")
    low = (count * k + 7) // 8
    ones = np.flatnonzero(np.unpackbits(code[low:], bitorder="little")) if count else np.empty(0, np.int64)
    if ones.size != count or (count and (int(ones[-1]) + 1 - count << k) + count > length):
        raise ValueError(f"the positions are no code of {count} non-zeros below {length}")
    gaps = (np.diff(ones, prepend=-1) - 1) << k
    bits = np.unpackbits(code[:low], bitorder="little")
    for bit in range(k):
        gaps |= bits[bit : count * k : k].astype(np.int64) << bit
    found = np.cumsum(gaps + 1) - 1
    if count and int(found[-1]) >= length:
        raise ValueError(f"positions reach beyond {length} elements")
    return found


def load_raw(path: str | os.PathLike[str], max_bytes: int | None = None) -> tuple[dict[str, Any], dict[str, Any]]:
    """Every tensor as (dtype, shape, raw bits), tied ones under each of their names, and what was saved beside them.

    Args:
        path: file of `trimtab.deploy.save_sparse` or `trimtab export`.
        max_bytes: most bytes the tensors may take. Default 1 GiB or 1,000 times the file, whichever is more.

    Returns:
        `{name: (dtype, shape, flat integers of that size)}` and `{"metadata": ..., "extra": ...}`.

    Raises:
        ValueError: not a sparse file, damaged, of an unknown version, or too large.
    """
    with open(path, "rb") as file:  # noqa: PTH123  (pathlib would be one more import here)
        content = file.read()
    try:
        fields, entries = _container(content)
        inflater = zlib.decompressobj()
        index = json.loads(inflater.decompress(entries["index"][1], INDEX_LIMIT))
        rows = [(*row, None, None, 0)[:6] if len(row) == 3 else row for row in index["tensors"]]
        total = sum(math.prod(row[2]) * _size(row[1]) for row in rows)
        if total > (max_bytes or max(2**30, 1000 * len(content))):
            raise ValueError(f"it would decode to {total} bytes; pass max_bytes={total}")
        codes = np.frombuffer(entries["positions"][1], np.uint8)
        values = {
            dtype: np.frombuffer(data, _bits(dtype))
            for dtype, data in ((name.removeprefix("values."), item[1]) for name, item in entries.items())
            if dtype not in ("index", "positions")
        }
        taken, code_at, found = dict.fromkeys(values, 0), 0, {}
        for name, dtype, shape, nonzeros, k, code_bytes in rows:
            elements = math.prod(shape)
            stored = elements if k is None else nonzeros
            own = values[dtype][taken[dtype] : taken[dtype] + stored]
            taken[dtype] += stored
            if own.size != stored:
                raise ValueError(f"tensor {name!r}: the file holds too few values")
            flat = own.copy()
            if k is not None:
                where = _positions(codes[code_at : code_at + code_bytes], nonzeros, k, elements)
                flat = np.zeros(elements, own.dtype)
                flat[where] = own
                code_at += code_bytes
            found[name] = (dtype, tuple(shape), flat)
        found |= {alias: found[name] for alias, name in index["aliases"].items()}
    except (ValueError, KeyError, TypeError, zlib.error) as error:
        raise ValueError(f"could not read {path}: {error}") from error
    return found, {"metadata": fields["metadata"], "extra": fields.get("extra", {})}


def as_array(dtype: str, shape: tuple[int, ...], flat: Any) -> Any:
    """The bits as a NumPy array; bfloat16 and float8, which NumPy lacks, as float32 of exactly the same values."""
    if dtype == "bfloat16":
        return (flat.astype("<u4") << 16).view("<f4").reshape(shape)
    if dtype == "float8_e5m2":
        return (flat.astype("<u2") << 8).view("<f2").astype(np.float32).reshape(shape)
    if dtype == "float8_e4m3fn":
        exponent, fraction = flat >> 3 & 15, (flat & 7).astype(np.float32) / 8
        small = exponent == 0
        size = np.ldexp(np.where(small, fraction, 1 + fraction), np.where(small, 1, exponent).astype(np.int32) - 7)
        size = np.where(flat & 127 == 127, np.float32(np.nan), size)
        return np.where(flat >> 7 == 1, -size, size).astype(np.float32).reshape(shape)
    return flat.view(np.dtype(dtype).newbyteorder("<")).astype(dtype, copy=False).reshape(shape)


def load(path: str | os.PathLike[str], max_bytes: int | None = None) -> dict[str, Any]:
    """Every tensor as a NumPy array by name; arguments and errors of `load_raw`."""
    return {name: as_array(*item) for name, item in load_raw(path, max_bytes)[0].items()}


def write_dense(path: str | os.PathLike[str], out: str | os.PathLike[str]) -> None:
    """Write the tensors of a sparse file, each in its own dtype, as a plain safetensors file."""
    tensors, beside = load_raw(path)
    labels = {dtype: label for label, dtype in LABELS.items()}
    header: dict[str, Any] = {"__metadata__": beside["metadata"]} if beside["metadata"] else {}
    at = 0
    in_order = sorted(tensors.items(), key=lambda item: -_size(item[1][0]))  # aligned without gaps
    for name, (dtype, shape, flat) in in_order:
        header[name] = {"dtype": labels[dtype], "shape": list(shape), "data_offsets": [at, at + flat.nbytes]}
        at += flat.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(out, "wb") as file:  # noqa: PTH123
        file.write(len(text).to_bytes(8, "little") + text)
        for _, (_, _, flat) in in_order:
            file.write(flat.tobytes())


def main(words: list[str]) -> int:
    """`FILE` lists a sparse file, `FILE OUT` writes it dense."""
    if len(words) not in (1, 2) or words[0] in ("-h", "--help"):
        print(__doc__)
        return 0 if words and words[0] in ("-h", "--help") else 2
    if len(words) == 2:
        write_dense(*words)
        print(f"{words[1]}: {os.path.getsize(words[1]):,} bytes, dense")  # noqa: PTH202
        return 0
    tensors, beside = load_raw(words[0])
    for name, (dtype, shape, flat) in tensors.items():
        print(f"{name:40} {dtype:10} {shape!s:20} {np.count_nonzero(flat):>10,} of {flat.size:,} not zero")
    for key, text in beside["metadata"].items():
        print(f"{key}: {text}")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except (OSError, ValueError) as error:
        sys.exit(str(error))
