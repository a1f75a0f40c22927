"""Quantised weights and all other tensors of a network as the bytes of a compact file."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from trimtab.deploy import rans
from trimtab.deploy.compact_code import Coded, coded
from trimtab.deploy.compact_context import ByContext, by_context, nothing_learned
from trimtab.deploy.compact_quantise import Quantised
from trimtab.deploy.compact_report import CompactRow
from trimtab.deploy.one_file_reader import WORDS
from trimtab.deploy.rans import Answers, Tabled
from trimtab.deploy.sparse_writer import file_content
from trimtab.deploy.store_format import INDEX_LIMIT, NAMES, as_bytes, content_hash, write_metadata


@dataclass(frozen=True)
class Written:
    """The bytes of a file and what they hold."""

    content: bytes
    sha256: str
    rows: tuple[CompactRow, ...]
    code_bytes: int
    rest_bytes: int


def _planes(content: bytes | memoryview, size: int) -> bytes:
    """First bytes of all items, then second ones, ...: exponents lie together and pack better."""
    return np.ascontiguousarray(np.frombuffer(content, np.uint8).reshape(-1, size).T).tobytes()


def _table_bytes(found: Coded) -> bytes:
    return b"".join(np.diff(stream.table, prepend=np.uint8(0)).tobytes() for stream in found.streams)


def _scale_bits(one: Quantised) -> npt.NDArray[np.uint16]:
    return (one.scales.view(np.uint32) >> 16).astype("<u2")


def _packed(content: bytes, known: bytes = b"") -> bytes:
    """By zlib: with repeats, or by the odds of its bytes alone, whichever is smaller."""
    found = []
    for strategy in (zlib.Z_DEFAULT_STRATEGY, zlib.Z_HUFFMAN_ONLY):
        packer = zlib.compressobj(9, zlib.DEFLATED, 15, 9, strategy, *([known] if known else []))
        found.append(packer.compress(content) + packer.flush())
    return min(found, key=len)


@dataclass(frozen=True)
class _Code:
    """How one weight is coded: by tables or by context, whichever is smaller."""

    tables: Coded
    context: ByContext | None

    @property
    def size(self) -> float:
        return self.tables.size if self.context is None else self.context.size

    @property
    def steps(self) -> Sequence[Tabled | Answers]:
        """What is coded, in order."""
        if self.context is not None:
            return self.context.answers
        return [Tabled(stream.symbols, stream.frequencies) for stream in self.tables.streams]

    def row(self, name: str, one: Quantised) -> list[Any]:
        """Of the index."""
        numbers = self.tables.numbers if self.context is None else [self.context.levels]
        return [name, NAMES[one.values.dtype], list(one.values.shape), one.axis, one.bits, *numbers]


def _codes(weights: Mapping[str, Quantised]) -> dict[str, _Code]:
    found, learned = {}, nothing_learned()
    for name, one in weights.items():
        tables = coded(one.numbers)
        context = by_context(one.numbers, tuple(one.values.shape), one.axis, _scale_bits(one), learned)
        if context is not None and context.size < tables.size:
            learned = context.coefficients
        else:
            context = None
        found[name] = _Code(tables, context)
    return found


def _row(name: str, one: Quantised, code: _Code) -> CompactRow:
    dtype, shape = NAMES[one.values.dtype], tuple(one.values.shape)
    entropy = code.tables.entropy_bits / 8
    return CompactRow(
        name, dtype, shape, one.bits, one.sparsity, code.size, entropy, 2 * one.scales.size, one.squared_error
    )


def written(
    weights: Mapping[str, Quantised],
    rest: Mapping[str, Tensor],
    aliases: Mapping[str, str],
    user: Mapping[str, str],
    extra: Mapping[str, Any],
) -> Written:
    """The bytes of a compact file.

    Args:
        weights: what is coded, by name.
        rest: tensors kept whole, each on memory of its own.
        aliases: further names of tensors.
        user: strings to keep.
        extra: extra states of modules.

    Raises:
        ValueError: names or metadata are too long to be read back.
    """
    codes = _codes(weights)
    by_tables = [code.tables for code in codes.values() if code.context is None]
    tables = b"".join(map(_table_bytes, by_tables))
    learned = b"".join(code.context.change.tobytes() for code in codes.values() if code.context is not None)
    scales = b"".join(_planes(_scale_bits(one).tobytes(), 2) for one in weights.values())
    side = _packed(tables + scales + learned)
    flat = {name: tensor.detach().cpu().contiguous() for name, tensor in rest.items()}
    kept = b"".join(_planes(as_bytes(tensor), tensor.element_size()) for tensor in flat.values() if tensor.numel())
    kept = _packed(kept) if kept else b""
    lanes = rans.lanes_for(sum(code.size for code in codes.values()))
    symbols = rans.encode([step for code in codes.values() for step in code.steps], lanes, kept[: 3 * lanes])
    low = b"".join(stream.low_bits.tobytes() for code in by_tables for stream in code.streams)
    index = {
        "lanes": lanes,
        "sizes": [len(symbols), len(low), len(side), len(kept)],
        "coded": [codes[name].row(name, one) for name, one in weights.items()],
        "rest": [[name, NAMES[tensor.dtype], list(tensor.shape)] for name, tensor in rest.items()],
        "aliases": dict(aliases),
    }
    text = json.dumps(index, separators=(",", ":")).encode()
    if len(text) > INDEX_LIMIT:
        raise ValueError(
            f"the index of names takes {len(text)} bytes, more than the {INDEX_LIMIT} that can be read back"
        )
    packed_index = _packed(text, WORDS)
    parts = [len(packed_index).to_bytes(4, "little"), packed_index, symbols, low, side, kept[3 * lanes :]]
    entries = {"compact": torch.from_numpy(np.frombuffer(bytearray(b"".join(parts)), np.uint8))}
    sha256 = content_hash(entries, user, extra)
    content = file_content(entries, write_metadata(sha256, user, extra, compact=True))
    held = min(len(kept), 3 * lanes)  # of what is kept, in the states
    code = len(symbols) - held + len(low) + len(side) - len(_packed(scales))
    rows = tuple(_row(name, one, codes[name]) for name, one in weights.items())
    return Written(content, sha256, rows, code, len(_packed(scales)) + len(kept))
