"""Read a sparse or compact file of Trimtab without Trimtab: this one file, NumPy and safetensors.

    arrays = load("net.safetensors")                      # {name: NumPy array}, every bit as it was written
    python trimtab_reader.py net.safetensors              # what is in it
    python trimtab_reader.py net.safetensors dense.safetensors   # a plain safetensors file that everything opens

A sparse file is a safetensors container: `index` (zlib-compressed JSON: rows and aliases), `positions` (Golomb-Rice codes
of the gaps between non-zeros) and `values.DTYPE`. Its metadata key `trimtab.sparse` holds the format version, a sha256 of
the content, the strings that were saved beside it and extra states.

A compact file has the key `trimtab.compact` and these parts: `index` (zlib-compressed JSON), `symbols` (interleaved rANS of
the quantised weights), `low` (low bits of large ones), `side` (zlib: frequency tables, scales, coefficients) and `kept` (zlib:
other tensors). Version 2 has them one after the other in the entry `compact`; in version 1 each is an entry, `kept` in `side`.

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
COMPACT_FORMATS = (1, 2)
"""2 adds weights coded by context and has one entry."""
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


def _inflated(packed: bytes, most: int, known: bytes = b"") -> bytes:
    """What zlib packed, given the words `known` beforehand, all of it, and no more than `most` bytes."""
    inflater = zlib.decompressobj(zdict=known) if known else zlib.decompressobj()
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


class _Rans:
    """The states of all lanes and the words that are left; symbols are taken in the order in which they were given."""

    def __init__(self, stream: bytes, lanes: int) -> None:
        if type(lanes) is not int or not 1 <= lanes <= LANES or len(stream) < 5 * lanes or (len(stream) - lanes) % 2:
            raise ValueError(f"{len(stream)} bytes of symbols are none of {lanes} lanes")
        states = np.zeros((lanes, 8), np.uint8)
        states[:, :5] = np.frombuffer(stream, np.uint8, 5 * lanes).reshape(lanes, 5)
        self.state, self.at = states.view("<i8")[:, 0].astype(np.int64), 0
        self.words = np.frombuffer(stream, "<u2", offset=5 * lanes).astype(np.int64)

    def _refill(self, own: Any) -> None:
        low = np.flatnonzero(own < LEAST)
        if low.size:
            own[low] = own[low] << 16 | self.words[self.at : self.at + low.size]
            self.at += low.size

    def symbols(self, count: int, frequency: Any) -> Any:
        """So many symbols of one table of frequencies."""
        lookup = np.repeat(np.arange(frequency.size), frequency)
        start, lanes = np.cumsum(frequency) - frequency, self.state.size
        symbols = np.empty(count, np.int16)
        for first in range(0, count, lanes):
            own = self.state[: count - first]
            slot = own & (TOTAL - 1)
            symbol = lookup[slot]
            symbols[first : first + lanes] = symbol
            own >>= 16
            own *= frequency[symbol]
            own += slot
            own -= start[symbol]
            self._refill(own)
        return symbols

    def answers(self, chances: Any) -> Any:
        """Yes or no for each chance of a yes, of 2^16."""
        lanes = self.state.size
        found = np.empty(chances.size, np.bool_)
        for first in range(0, chances.size, lanes):
            yes = chances[first : first + lanes]
            own = self.state[: yes.size]
            slot = own & (TOTAL - 1)
            answer = slot < yes
            found[first : first + lanes] = answer
            own >>= 16
            own *= np.where(answer, yes, TOTAL - yes)
            own += slot
            own -= np.where(answer, 0, yes)
            self._refill(own)
        return found

    def rest(self) -> bytes:
        """What the states hold at the end, three bytes each; every word must be used by then."""
        if self.at != self.words.size or (self.state >> 24 != 1).any():
            raise ValueError("the symbols do not end where their counts say")
        return bytes((self.state - LEAST).astype("<i8").view(np.uint8).reshape(-1, 8)[:, :3].tobytes())


# Weights by context. Each is asked for by questions of yes or no (is it zero? its sign? is it larger than 1, than 2, ...?),
# whose odds come from what was asked before: logit = sum of coefficients times features, all in whole numbers, so that every
# machine has the same odds. ONE stands for 1; the odds are built by products and quotients, which IEEE 754 rounds in one way.
ONE, REACH, LEVELS = 32, 384, 15
_ODDS = np.multiply.accumulate(
    np.array([6.14421235332821e-06] + 2 * REACH * [1.0317434074991028])
)  # e^-12, times e^(1/32)
CHANCES = np.clip(np.rint(TOTAL * (_ODDS / (1 + _ODDS))), 1, TOTAL - 1).astype(np.int64)
FEATURES = (14, 7, 7)
"""Features of the questions: zero, sign, larger."""


def chances(features: Any, coefficients: Any) -> Any:
    """The chance of a yes, of 2^16."""
    logit = sum(int(own) * feature for own, feature in zip(coefficients, features, strict=True) if own) >> 5
    return CHANCES[np.clip(logit, -REACH, REACH) + REACH]


def _logit(hits: Any, of: Any, chance: int) -> Any:
    """Logarithm of the odds of `hits` among `of`, to which eight of the chance at large are added."""
    return np.searchsorted(CHANCES, (TOTAL * hits + 8 * chance) // (of + 8)) - REACH


def by_context(shape: Any, sizes: Any, levels: int, ask: Any) -> Any:
    """The numbers of a weight, by questions.

    Args:
        shape: rows (of one scale each), columns, places of a kernel, places in a line of it.
        sizes: logarithm of the scale of each row to the base 2, times ONE, about 0.
        levels: the largest magnitude.
        ask: (kind of question, features, places among all numbers) -> answers.

    Returns:
        Numbers of shape (places of a kernel, rows x columns). The places of a kernel come one after the other, each in parts,
        so that rows, columns and neighbours already known tell of the rest.
    """
    rows, columns, places, line = shape
    count = rows * columns
    found = np.zeros((places, count), np.int16)
    row, column = np.divmod(np.arange(count), columns)
    lattice = (5 * row + 3 * column) % 8
    parts = [np.flatnonzero(lattice == 0), np.flatnonzero(lattice > 0)]
    if places == 1:
        parts = [parts[0], *(np.flatnonzero((lattice >= low) & (lattice < 2 * low)) for low in (1, 2, 4))]
    size, square = sizes[row], (sizes * sizes >> 5)[row]
    row_hits, row_seen, column_hits, column_seen = (np.zeros(of, np.int64) for of in (rows, rows, columns, columns))
    pairs = np.zeros(count, np.int64)

    def near(place: int, up: int, left: int) -> Any:
        """What stands beside a place of the kernel; 0 outside."""
        x = place % line - left
        return found[place - line * up - left] if 0 <= x < line and 0 <= place // line - up < places // line else None

    def at(plane: Any, where: Any) -> Any:
        return 0 if plane is None else ONE * plane[where].astype(np.int64)

    for place in range(places):
        beside = [near(place, *step) for step in ((0, 1), (1, 0), (0, 2), (2, 0), (1, 1), (1, -1))]
        hits = seen = 0
        for part in parts:
            known = int(row_seen.sum())
            chance = (2 * TOTAL * int(row_hits.sum()) + TOTAL) // (2 * known + 2)
            level = int(_logit(0, 0, chance))
            in_row = _logit(row_hits, row_seen, chance) - level
            in_column = _logit(column_hits, column_seen, chance) - level
            pair = pairs[part]
            features = [
                2 * ONE, in_row[row[part]], in_column[column[part]], size[part], square[part],
                *(at(one, part) for one in beside), ONE * pair // max(1, place), ONE * (pair > 0),
                int(_logit(hits, seen, chance)) - level,
            ]  # fmt: skip
            answers = ask(0, features, place * count + part)
            hit = part[answers]
            found[place, hit] = 1
            row_hits += np.bincount(row[hit], minlength=rows)
            row_seen += np.bincount(row[part], minlength=rows)
            column_hits += np.bincount(column[hit], minlength=columns)
            column_seen += np.bincount(column[part], minlength=columns)
            hits, seen = hits + hit.size, seen + part.size
        pairs += found[place]
    for place in range(places):
        where = np.flatnonzero(found[place])
        beside = [near(place, *step) for step in ((0, 1), (1, 0), (1, 1), (1, -1), (0, 2), (2, 0))]
        answers = ask(1, [2 * ONE, *(at(one, where) for one in beside)], place * count + where)
        found[place, where[~answers]] = -1
    crowd, alike = np.zeros((places, count), np.int64), np.zeros((places, count), np.int64)
    for place in range(places):
        for step in ((0, 1), (1, 0), (0, -1), (-1, 0)):
            if (plane := near(place, *step)) is not None:
                crowd[place] += np.abs(plane)
                alike[place] += plane * found[place]
    dense = _logit(row_hits, row_seen, TOTAL // 2)
    alive = np.flatnonzero(found)
    for level in range(1, levels):
        own = alive % count
        features = [
            2 * ONE, 4 * size[own], square[own], ONE * crowd.reshape(-1)[alive], ONE * alike.reshape(-1)[alive],
            ONE * (pairs[own] - 1), dense[row[own]],
        ]  # fmt: skip
        answers = ask(1 + level, features, alive)
        alive = alive[answers]
        found.reshape(-1)[alive] += np.sign(found.reshape(-1)[alive])
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
        if not code:
            continue
        axis, _, *numbers = code
        if len(numbers) == 1:
            good = type(numbers[0]) is int and 1 <= numbers[0] <= LEVELS and len(shape) > 1 and math.prod(shape) > 0
        else:
            least, most, nonzeros, widest = numbers
            good = all(type(each) is int for each in (least, most, widest)) and -SYMBOLS < least <= most < SYMBOLS
            good &= nonzeros is None or (type(nonzeros) is int and 0 <= nonzeros <= math.prod(shape))
            good &= 0 <= widest < SYMBOLS
        if not good or not (axis is None or axis in range(len(shape))):
            raise ValueError(f"index: row {name!r} has bad numbers {code}")


def _streams(row: Any) -> list[tuple[int, int]]:
    """(count, size of the table) of a row's streams: its numbers, or the non-zero ones and their gaps, or none by context."""
    if len(row) == 6:
        return []
    _, _, shape, _, _, least, most, nonzeros, widest = row
    if nonzeros is None:
        return [(math.prod(shape), most - least + 1)]
    return [(nonzeros, most - least + 1), (nonzeros, widest + 1)]


def _pieces(content: bytes, pieces: list[tuple[int, int]]) -> list[Any]:
    """Arrays of (bytes of an item, count) whose first bytes, second bytes, ... lie together."""
    if len(content) != sum(size * count for size, count in pieces):
        raise ValueError("the tables, scales and other tensors are not as large as the index says")
    at, found, flat = 0, [], np.frombuffer(content, np.uint8)
    for size, count in pieces:
        found.append(np.array(flat[at : at + size * count].reshape(size, count).T, order="C").reshape(-1))
        at += size * count
    return found


def questions(levels: int) -> list[int]:
    """The number of coefficients of each kind of question about numbers up to `levels`."""
    return [*FEATURES[:2], *[FEATURES[2]] * (levels - 1)]


def context_shape(shape: Any, axis: int | None, scale: Any) -> tuple[Any, Any, Any, Any]:
    """How a weight is coded by context: moved and used rows, arguments `shape` and `sizes` of `by_context`.

    Args:
        shape, axis: of the weight and its scales.
        scale: bits of the scales in bfloat16; those of 0 belong to rows of zeros, which are not coded.
    """
    moved = [shape[axis or 0], *(size for place, size in enumerate(shape) if place != (axis or 0))]
    used = np.flatnonzero(np.broadcast_to(scale, moved[0]) > 0)
    sizes = np.broadcast_to(scale, moved[0])[used].astype(np.int64) >> 2  # 32 to an octave
    sizes = np.clip(sizes - int(sizes.sum()) // max(1, used.size), -3 * ONE, 3 * ONE)
    return moved, used, (used.size, moved[1], math.prod(moved[2:]), moved[-1] if len(moved) > 2 else 1), sizes


def _by_context(row: Any, scale: Any, rans: _Rans, coefficients: list[Any]) -> Any:
    """The numbers of a weight that is coded by context, flat."""

    def ask(kind: int, features: Any, where: Any) -> Any:
        return rans.answers(np.broadcast_to(chances(features, coefficients[kind]), where.shape))

    moved, used, shape, sizes = context_shape(row[2], row[3], scale)
    found = np.zeros([moved[0], moved[1], shape[2]], np.int16)
    found[used] = by_context(shape, sizes, row[5], ask).reshape(shape[2], *shape[:2]).transpose(1, 2, 0)
    return np.moveaxis(found.reshape(moved), 0, row[3] or 0).reshape(-1)


def _by_tables(row: Any, rans: _Rans, tables: Any, low: Any) -> tuple[Any, Any]:
    """The numbers of a weight that is coded by tables, flat, and the low bits that are left."""
    name, _, shape, _, _, least, _, nonzeros, _ = row
    counts = [count for count, _ in _streams(row)]
    signed = rans.symbols(counts[0], next(tables)).astype(np.int32) + least
    magnitude, used = _magnitudes(np.abs(signed), low)
    low = low[used:]
    numbers = np.where(signed < 0, -magnitude, magnitude)
    if nonzeros is None:
        return numbers, low
    gaps, used = _magnitudes(rans.symbols(counts[1], next(tables)).astype(np.int64), low)
    where = np.cumsum(gaps + 1) - 1
    if nonzeros and int(where[-1]) >= math.prod(shape):
        raise ValueError(f"tensor {name!r}: positions reach beyond its {math.prod(shape)} elements")
    found = np.zeros(math.prod(shape), numbers.dtype)
    found[where] = numbers
    return found, low[used:]


WORDS = (
    b'{"lanes":400,"sizes":[12345,0,1234,4321],"coded":[],"rest":[],"aliases":{}}module.encoder.decoder.block.features.stages.'
    b"transformer.layers.attention.self_attn.q_proj.k_proj.v_proj.o_proj.mlp.fc1.fc2.embedding.head.downsample.shortcut.layer1.0."
    b'groups.0.conv1.weight","float32",[128,128,3,3],0,8,-127,127,null,0],["conv2.weight","float32",[64,64,3,3],0,4,7],["norm.weight"'
    b',"bfloat16",["bn2.bias","float32",[64]],["bn1.running_mean","float32",[128]],["bn1.running_var","float32",[128]],'
    b'["bn1.num_batches_tracked","int64",[]],["bn1.weight","float32",[256]],["bn1.bias","float32",[512]],["fc.weight","float32",['
)
"""What zlib knows before it packs the index of version 2; never to be changed."""


def _parts(entries: dict[str, tuple[str, bytes]]) -> tuple[Any, dict[str, bytes]]:
    """The index of a compact file, and its parts by name; in version 1 what was kept whole is in `side`."""
    if "compact" not in entries:
        parts = {name: data for name, (_, data) in entries.items()}
        return json.loads(_inflated(parts["index"], INDEX_LIMIT)), parts | {"kept": b""}
    content = entries["compact"][1]
    at = 4 + int.from_bytes(content[:4], "little")
    index = json.loads(_inflated(content[4:at], INDEX_LIMIT, WORDS))
    parts = {}
    for name, size in zip(("symbols", "low", "side"), index["sizes"], strict=False):
        if type(size) is not int or not 0 <= size <= len(content) - at:
            raise ValueError(f"index: {name} of {size!r} bytes is not in the file")
        parts[name] = content[at : at + size]
        at += size
    return index, parts | {"kept": content[at:]}


def _kept(index: Any, ended: bytes, kept: bytes) -> bytes:
    """The packed tensors kept whole: their first bytes are what the states end with, the rest of which is 0."""
    size, whole = index.get("sizes", [0, 0, 0, 0])[3], ended + kept
    if type(size) is not int or not len(kept) <= size <= len(whole) or any(whole[size:]):
        raise ValueError("the states do not end where their counts say")
    return whole[:size]


def _compact_tensors(index: Any, parts: dict[str, bytes], limit: int) -> dict[str, Any]:
    """The tensors of a compact file as (dtype, shape, bits)."""
    coded, rest = index["coded"], index["rest"]
    _checked_rows(index)
    _within([*coded, *rest], limit)
    asked = [questions(row[5]) if len(row) == 6 else [] for row in coded]
    pieces = [(1, size) for row in coded for _, size in _streams(row)]
    tables = len(pieces)
    pieces += [(2, 1 if row[3] is None else row[2][row[3]]) for row in coded]
    pieces += [(1, sum(sizes)) for sizes in asked]
    whole = [(_size(dtype), math.prod(shape)) for _, dtype, shape in rest]
    first, second = (sum(size * count for size, count in some) for some in (pieces, whole))
    side = _inflated(parts["side"], first + second + 1)
    found_pieces = _pieces(side[:first], pieces)
    table = iter([frequencies(np.cumsum(piece, dtype=np.uint8)) for piece in found_pieces[:tables]])
    scales, learned = found_pieces[tables : tables + len(coded)], found_pieces[tables + len(coded) :]
    rans, low = _Rans(parts["symbols"], index["lanes"]), np.frombuffer(parts["low"], np.uint8)
    found, last = {}, np.zeros((1 + LEVELS, max(FEATURES)), np.int8)
    for row, scale, change, kinds in zip(coded, scales, learned, asked, strict=True):
        name, dtype, shape, axis = row[:4]
        if kinds:
            for kind, piece in enumerate(np.split(change.view(np.int8), np.cumsum(kinds)[:-1])):
                last[kind, : piece.size] += piece
            coefficients = [last[kind, :size] for kind, size in enumerate(kinds)]
            numbers = _by_context(row, scale.view("<u2"), rans, coefficients)
        else:
            numbers, low = _by_tables(row, rans, table, low)
        values = numbers.astype("<f4").reshape(shape)
        factor = (scale.view("<u2").astype("<u4") << 16).view("<f4")
        values *= factor.reshape([-1 if place == axis else 1 for place in range(len(shape))])
        found[name] = (dtype, tuple(shape), rounded_bits(dtype, values.reshape(-1)))
    if low.size:
        raise ValueError("bytes left over after the last low bits")
    packed = _kept(index, rans.rest(), parts["kept"])
    content = side[first:] + (_inflated(packed, second + 1) if packed else b"")
    for (name, dtype, shape), piece in zip(rest, _pieces(content, whole), strict=True):
        found[name] = (dtype, tuple(shape), piece.view(_bits(dtype)))
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
        if found_key == COMPACT_KEY:
            index, parts = _parts(entries)
            found = _compact_tensors(index, parts, limit)
        else:
            index = json.loads(_inflated(entries["index"][1], INDEX_LIMIT))
            found = _sparse_tensors(index, entries, limit)
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
