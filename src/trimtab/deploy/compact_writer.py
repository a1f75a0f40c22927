"""Quantised weights and all other tensors of a network as the bytes of a compact file."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trimtab.deploy import rans
from trimtab.deploy.compact_code import Coded, coded
from trimtab.deploy.compact_quantise import Quantised
from trimtab.deploy.compact_report import CompactRow
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


def _row(name: str, one: Quantised, code: Coded) -> CompactRow:
    size = sum(stream.bits / 8 + len(stream.table) for stream in code.streams)
    dtype, shape = NAMES[one.values.dtype], tuple(one.values.shape)
    return CompactRow(
        name, dtype, shape, one.bits, one.sparsity, size, code.entropy_bits / 8, 2 * one.scales.size, one.squared_error
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
    codes = {name: coded(one.numbers) for name, one in weights.items()}
    streams = [stream for code in codes.values() for stream in code.streams]
    lanes = rans.lanes_for(sum(stream.bits for stream in streams) / 8)
    symbols = rans.encode([(stream.symbols, stream.frequencies) for stream in streams], lanes)
    low = b"".join(stream.low_bits.tobytes() for stream in streams)
    tables = b"".join(map(_table_bytes, codes.values()))
    scales = b"".join(
        _planes((one.scales.view(np.uint32) >> 16).astype("<u2").tobytes(), 2) for one in weights.values()
    )
    flat = {name: tensor.detach().cpu().contiguous() for name, tensor in rest.items()}
    kept = b"".join(_planes(as_bytes(tensor), tensor.element_size()) for tensor in flat.values() if tensor.numel())
    side = zlib.compress(tables + scales + kept, 9)
    index = {
        "lanes": lanes,
        "coded": [
            [name, NAMES[one.values.dtype], list(one.values.shape), one.axis, one.bits, *codes[name].numbers]
            for name, one in weights.items()
        ],
        "rest": [[name, NAMES[tensor.dtype], list(tensor.shape)] for name, tensor in rest.items()],
        "aliases": dict(aliases),
    }
    text = json.dumps(index, separators=(",", ":")).encode()
    if len(text) > INDEX_LIMIT:
        raise ValueError(
            f"the index of names takes {len(text)} bytes, more than the {INDEX_LIMIT} that can be read back"
        )
    parts = {"index": zlib.compress(text, 9), "symbols": symbols, "low": low, "side": side}
    entries = {name: torch.from_numpy(np.frombuffer(bytearray(part), np.uint8)) for name, part in parts.items()}
    sha256 = content_hash(entries, user, extra)
    content = file_content(entries, write_metadata(sha256, user, extra, compact=True))
    packed_tables = len(zlib.compress(tables, 9))
    rows = tuple(_row(name, one, codes[name]) for name, one in weights.items())
    return Written(content, sha256, rows, len(symbols) + len(low) + packed_tables, len(side) - packed_tables)
