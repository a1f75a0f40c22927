"""Read a sparse or compact file of Trimtab without Trimtab: this one file, NumPy and safetensors.

    arrays = load("net.safetensors")                      # {name: NumPy array}, every bit as it was written
    python trimtab_reader.py net.safetensors              # what is in it
    python trimtab_reader.py net.safetensors dense.safetensors   # a plain safetensors file that everything opens

A sparse file is a safetensors container: `index` (zlib-compressed JSON: rows and aliases), `positions` (Golomb-Rice codes
of the gaps between non-zeros) and `values.DTYPE`. Its metadata key `trimtab.sparse` holds the format version, a sha256 of
the content, the strings that were saved beside it and extra states.

A compact file has the key `trimtab.compact` and the entries `index` (zlib-compressed JSON), `symbols` (interleaved rANS of the
quantised weights), `low` (low bits of large ones) and `side` (zlib: frequency tables, scales, other tensors).

Printed by `trimtab export --to reader`. Apache-2.0.
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
COMPACT_FORMATS = (1,)
COMPACT_KEY = "trimtab.compact"
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


def _container(content: bytes) -> tuple[str, dict[str, Any], dict[str, tuple[str, bytes]]]:
    """The metadata key, what it says, and every entry as (dtype, bytes); the hash is checked."""
    try:
        entries = {
            name: (LABELS.get(item["dtype"], ""), list(item["shape"]), bytes(item["data"]))
            for name, item in safetensors.deserialize(content)  # type: ignore[no-untyped-call]
        }
    except safetensors.SafetensorError as error:
        raise ValueError(f"not a whole safetensors file ({error})") from error
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    beside = header.get("__metadata__") or {}
    key = COMPACT_KEY if COMPACT_KEY in beside else KEY
    if key not in beside:
        raise ValueError(
            f"no {KEY!r} or {COMPACT_KEY!r} in its metadata: it is no sparse file and no compact one; "
            "safetensors.numpy.load_file reads it"
        )
    fields, known = json.loads(beside[key]), COMPACT_FORMATS if key == COMPACT_KEY else FORMATS
    if fields.get("version") not in known:
        raise ValueError(f"format version {fields.get('version')!r}; this reader knows {known}: print a newer one")
    digest = hashlib.sha256(json.dumps(fields["metadata"], sort_keys=True).encode())
    if fields.get("extra"):
        digest.update(json.dumps(fields["extra"], sort_keys=True).encode())
    for name in sorted(entries):
        dtype, shape, data = entries[name]
        digest.update(json.dumps([name, dtype, shape]).encode())
        digest.update(data)
    if digest.hexdigest() != fields.get("sha256"):
        raise ValueError("its content does not have the sha256 in its metadata: the file was altered or damaged")
    return key, fields, {name: (dtype, data) for name, (dtype, _, data) in entries.items()}


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


def _inflated(packed: bytes, most: int) -> bytes:
    """What zlib packed, all of it, and no more than `most` bytes."""
    inflater = zlib.decompressobj()
    found = inflater.decompress(packed, most)
    if not inflater.eof or inflater.unused_data:
        raise ValueError(f"a packed entry is cut off, has bytes left over or is larger than {most} bytes")
    return found


def _within(rows: list[Any], limit: int) -> None:
    total = sum(math.prod(row[2]) * _size(row[1]) for row in rows)
    if total > limit:
        raise ValueError(f"it would decode to {total} bytes, more than the limit of {limit}; pass max_bytes={total}")


def _sparse_tensors(index: Any, entries: dict[str, tuple[str, bytes]], limit: int) -> dict[str, Any]:
    """The tensors of a sparse file as (dtype, shape, bits)."""
    rows = [(*row, None, None, 0)[:6] if len(row) == 3 else row for row in index["tensors"]]
    _within(rows, limit)
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
    return found


# The entropy code: range ANS (arXiv 1311.2540), interleaved lanes; states have 40 bits, tables sum to 2^16, words of 16 bits.
TOTAL, LEAST, LANES, SYMBOLS = 1 << 16, 1 << 24, 4096, 400
EIGHTHS = np.array([4096, 4467, 4871, 5312, 5793, 6317, 6889, 7512])  # 2^12 times 2^(j / 8)
CODED = ("float64", "float32", "float16", "bfloat16")


def frequencies(codes: Any) -> Any:
    """Whole frequencies that sum to 2^16, from logarithms in eighths of an octave; 0: the symbol does not occur."""
    codes = codes.astype(np.int64)
    if not 0 < codes.size < 2 * SYMBOLS or not 0 < codes.max() <= 160:
        raise ValueError(f"a table of {codes.size} symbols is none of a compact file")
    weights = np.where(codes > 0, EIGHTHS[codes & 7] << (codes >> 3), 0)
    found = np.where(codes > 0, np.maximum(1, weights * TOTAL // weights.sum()), 0)
    found[found.argmax()] += TOTAL - found.sum()
    if found.min() < 0:
        raise ValueError(f"a table of {codes.size} symbols is too flat for 2^16")
    return found


def _symbols(stream: bytes, lanes: int, tables: list[tuple[int, Any]]) -> list[Any]:
    """The symbols of each tensor, from (count, frequencies); every word is used and every state ends where it began."""
    if type(lanes) is not int or not 1 <= lanes <= LANES or len(stream) < 5 * lanes or (len(stream) - lanes) % 2:
        raise ValueError(f"{len(stream)} bytes of symbols are none of {lanes} lanes")
    states = np.zeros((lanes, 8), np.uint8)
    states[:, :5] = np.frombuffer(stream, np.uint8, 5 * lanes).reshape(lanes, 5)
    state = states.view("<i8")[:, 0].astype(np.int64)
    words = np.frombuffer(stream, "<u2", offset=5 * lanes).astype(np.int64)
    at, found = 0, []
    for count, frequency in tables:
        lookup = np.repeat(np.arange(frequency.size), frequency)
        start = np.cumsum(frequency) - frequency
        symbols = np.empty(count, np.int16)
        for first in range(0, count, lanes):
            own = state[: count - first]
            slot = own & (TOTAL - 1)
            symbol = lookup[slot]
            symbols[first : first + lanes] = symbol
            own >>= 16
            own *= frequency[symbol]
            own += slot
            own -= start[symbol]
            low = np.flatnonzero(own < LEAST)
            if low.size:
                own[low] = own[low] << 16 | words[at : at + low.size]
                at += low.size
        found.append(symbols)
    if at != words.size or (state != LEAST).any():
        raise ValueError("the symbols do not end where their counts say")
    return found


def _magnitudes(buckets: Any, low: Any) -> tuple[Any, int]:
    """Magnitudes from buckets, and the bytes of low bits used: exact below 32, then 16 buckets to an octave."""
    shift = np.maximum(buckets // 16 - 1, 0)
    found = np.where(buckets < 32, buckets, (buckets - 16 * shift) << shift)
    at, used = 0, (int(shift.sum()) + 7) // 8
    bits = np.unpackbits(low[:used], bitorder="little")
    for amount in range(1, int(shift.max(initial=0)) + 1):
        where = np.flatnonzero(shift == amount)
        own = bits[at : at + where.size * amount].reshape(where.size, amount)
        found[where] |= own.astype(np.int64) @ (1 << np.arange(amount))
        at += where.size * amount
    return found, used


def rounded_bits(dtype: str, values: Any) -> Any:
    """float32 values rounded to `dtype`, ties to even, as raw bits."""
    if dtype == "bfloat16":
        bits = values.view("<u4")
        return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype("<u2")
    return values.astype(np.dtype(dtype).newbyteorder("<")).view(_bits(dtype))


def _checked_rows(index: Any) -> None:
    """Names, dtypes, shapes and numbers of the index are of the kind that the decoder counts on."""
    rows = [*index["coded"], *index["rest"]]
    names = [row[0] for row in rows]
    if len(set(names)) != len(names) or any(
        alias in names or name not in names for alias, name in index["aliases"].items()
    ):
        raise ValueError("index: names or aliases do not fit each other")
    for name, dtype, shape, *code in rows:
        sizes = all(type(size) is int and 0 <= size < 2**62 for size in shape)
        if type(name) is not str or not sizes or dtype not in (CODED if code else LABELS.values()):
            raise ValueError(f"index: row {name!r} has a bad dtype {dtype!r} or shape")
        if code:
            axis, bits, least, most, nonzeros, widest = code
            whole = all(type(each) is int for each in (bits, least, most, widest))
            sparse = nonzeros is None or (type(nonzeros) is int and 0 <= nonzeros <= math.prod(shape))
            spans = whole and -SYMBOLS < least <= most < SYMBOLS and 0 <= widest < SYMBOLS
            if not spans or not sparse or not (axis is None or axis in range(len(shape))):
                raise ValueError(f"index: row {name!r} has bad numbers {code}")


def _streams(row: Any) -> list[tuple[int, int]]:
    """(count, size of the table) of the streams of a coded tensor: its numbers, or the non-zero ones and their gaps."""
    _, _, shape, _, _, least, most, nonzeros, widest = row
    if nonzeros is None:
        return [(math.prod(shape), most - least + 1)]
    return [(nonzeros, most - least + 1), (nonzeros, widest + 1)]


def _compact_tensors(index: Any, entries: dict[str, tuple[str, bytes]], limit: int) -> dict[str, Any]:
    """The tensors of a compact file as (dtype, shape, bits)."""
    coded, rest = index["coded"], index["rest"]
    _checked_rows(index)
    _within([*coded, *rest], limit)
    streams = [stream for row in coded for stream in _streams(row)]
    pieces = [(1, size) for _, size in streams]
    pieces += [(2, 1 if row[3] is None else row[2][row[3]]) for row in coded]
    pieces += [(_size(dtype), math.prod(shape)) for _, dtype, shape in rest]
    total = sum(size * count for size, count in pieces)
    side, at = np.frombuffer(_inflated(entries["side"][1], total + 1), np.uint8), 0
    if side.size != total:
        raise ValueError("the tables, scales and other tensors are not as large as the index says")
    parts = []
    for size, count in pieces:
        parts.append(np.array(side[at : at + size * count].reshape(size, count).T, order="C").reshape(-1))
        at += size * count
    tables = [frequencies(np.cumsum(part, dtype=np.uint8)) for part in parts[: len(streams)]]
    counts = [count for count, _ in streams]
    symbols = iter(_symbols(entries["symbols"][1], index["lanes"], list(zip(counts, tables, strict=True))))
    low, found = np.frombuffer(entries["low"][1], np.uint8), {}
    for row, scale in zip(coded, parts[len(streams) : len(streams) + len(coded)], strict=True):
        name, dtype, shape, axis, _, least, _, nonzeros, _ = row
        signed = next(symbols).astype(np.int32) + least
        magnitude, used = _magnitudes(np.abs(signed), low)
        low = low[used:]
        values = np.where(signed < 0, -magnitude, magnitude).astype("<f4")
        if nonzeros is not None:
            gaps, used = _magnitudes(next(symbols).astype(np.int64), low)
            low = low[used:]
            where = np.cumsum(gaps + 1) - 1
            if nonzeros and int(where[-1]) >= math.prod(shape):
                raise ValueError(f"tensor {name!r}: positions reach beyond its {math.prod(shape)} elements")
            wide = np.zeros(math.prod(shape), "<f4")
            wide[where] = values
            values = wide
        values = values.reshape(shape)
        factor = (scale.view("<u2").astype("<u4") << 16).view("<f4")
        values *= factor.reshape([-1 if place == axis else 1 for place in range(len(shape))])
        found[name] = (dtype, tuple(shape), rounded_bits(dtype, values.reshape(-1)))
    if low.size:
        raise ValueError("bytes left over after the last low bits")
    for (name, dtype, shape), part in zip(rest, parts[len(streams) + len(coded) :], strict=True):
        found[name] = (dtype, tuple(shape), part.view(_bits(dtype)))
    return found


def load_raw(
    path: str | os.PathLike[str], max_bytes: int | None = None, key: str | None = None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Every tensor as (dtype, shape, raw bits), tied ones under each of their names, and what was saved beside them.

    Args:
        path: file of `trimtab.deploy.save_sparse` or `save_compact`, of `trimtab export` or `trimtab compress`.
        max_bytes: most bytes the tensors may take. Default 1 GiB or 1,000 times the file, whichever is more.
        key: metadata key that the file must have; default either.

    Returns:
        `{name: (dtype, shape, flat integers of that size)}` and `{"metadata": ..., "extra": ...}`.

    Raises:
        ValueError: not a sparse or compact file, damaged, of an unknown version, or too large.
    """
    with open(path, "rb") as file:  # noqa: PTH123  (pathlib would be one more import here)
        content = file.read()
    try:
        found_key, fields, entries = _container(content)
        if key is not None and key != found_key:
            raise ValueError("it is a sparse file; load_sparse reads it")
        limit = max_bytes or max(2**30, 1000 * len(content))
        index = json.loads(_inflated(entries["index"][1], INDEX_LIMIT))
        found = (_compact_tensors if found_key == COMPACT_KEY else _sparse_tensors)(index, entries, limit)
        found |= {alias: found[name] for alias, name in index["aliases"].items()}
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError, zlib.error) as error:
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
    """Write the tensors of a sparse or compact file, each in its own dtype, as a plain safetensors file."""
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
    """`FILE` lists a sparse or compact file, `FILE OUT` writes it dense."""
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
