"""The MACKO format: a matrix as its non-zeros and four bits each for how far apart they lie; encoder, decoder, file."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from trimtab.checks import one_of
from trimtab.deploy.sparse_writer import aliases_in, file_content, tensors_of
from trimtab.deploy.store_format import NAMES, checked_metadata
from trimtab.files import replace_atomically
from trimtab.frames import Tabular
from trimtab.inputs import named
from trimtab.parameters import entries
from trimtab.parameters.kinds import REAL
from trimtab.parameters.layouts import is_linear
from trimtab.parameters.wrappers import unwrapped

STEP = 16
"""Columns that four bits reach."""
ALIGNED = 8
"""Entries that the kernel reads at once: values are padded with zeros to a multiple of it."""
BITS = 20
"""Of an entry: a float16 and a delta."""
KEY = "trimtab_macko"
LARGEST = 2**31


@dataclass(frozen=True)
class Macko:
    """A matrix (rows, columns) in the MACKO format.

    Attributes:
        values: float16, the non-zeros row after row, with the zeros that bridge wide gaps; padded to a multiple of 8.
        deltas: uint8, two entries each, the first in the low four bits: how many columns were skipped since the entry before
            (at the beginning of a row since its left end).
        row_ends: int32 (rows + 1,): entries before each row, and in all.
        rows, columns: the shape.
    """

    values: Tensor
    deltas: Tensor
    row_ends: Tensor
    rows: int
    columns: int

    @property
    def entries(self) -> int:
        """Entries without those that only fill the end."""
        return int(self.row_ends[-1])

    @property
    def bytes(self) -> int:
        """Of the three arrays."""
        return sum(part.numel() * part.element_size() for part in (self.values, self.deltas, self.row_ends))


def macko_encode(matrix: Tensor) -> Macko:
    """Encode a matrix; values are rounded to float16 first, and what is zero then counts as zero.

    Walking a row from the left, an entry is written for each non-zero and, after 15 columns without one, for the zero at the
    16th: so a gap of g columns takes g // 16 entries of value 0 and delta 15, and the entry after it has the delta g % 16.

    Args:
        matrix: (rows, columns) of any real dtype.

    Raises:
        TypeError: not a matrix of real numbers.
        ValueError: a value beyond float16 (65,504), or more entries than 32 bits count.

    Reference:
        Macko, Boža: MACKO: Sparse Matrix-Vector Multiplication for Low Sparsity, arXiv 2511.13061; arrays
        as its library has them.

    Example:
        >>> packed = macko_encode(torch.tensor([[0.0, 0.0, 3.0, 4.0], [0.0, 5.0, 0.0, 0.0]]))
        >>> packed.values.tolist()[:3], packed.deltas.tolist()[:2], packed.row_ends.tolist()  # deltas 2, 0 and 1
        ([3.0, 4.0, 5.0], [2, 1], [0, 2, 3])
    """
    if matrix.ndim != 2 or matrix.dtype not in REAL:
        raise TypeError(f"MACKO holds a matrix of real numbers, got {matrix.dtype} of shape {tuple(matrix.shape)}")
    half = matrix.detach().cpu().to(torch.float16)
    if bool(half.isinf().any()) and not bool(matrix.isinf().any()):
        raise ValueError(
            f"a value of {float(matrix.abs().max()):.4g} is beyond float16, which MACKO holds (65,504 at most)"
        )
    rows, columns = half.shape
    row, column = (index.numpy() for index in torch.nonzero(half, as_tuple=True))
    counts = np.bincount(row, minlength=rows)
    first = np.concatenate([[0], np.cumsum(counts)])  # of each row's non-zeros
    before = np.concatenate([[-1], column[:-1]]) if column.size else column
    starts = first[:-1][counts > 0]
    before[starts] = -1
    gaps = column - before - 1
    last = np.full(rows, -1)
    last[counts > 0] = column[first[1:][counts > 0] - 1]
    behind = (columns - last - 1) // STEP  # zeros written behind the last non-zero
    taken = gaps // STEP + 1
    of_row = np.bincount(row, weights=taken, minlength=rows).astype(np.int64) + behind
    row_ends = np.concatenate([[0], np.cumsum(of_row)])
    total = int(row_ends[-1])
    if total >= LARGEST:
        raise ValueError(f"a matrix {rows} x {columns} takes {total:,} entries, more than 32 bits count")
    inside = np.cumsum(taken)
    inside -= np.repeat(np.concatenate([[0], inside])[first[:-1]], counts)  # entries since the row's beginning
    places = row_ends[:-1][row] + inside - 1
    padded = -(-total // ALIGNED) * ALIGNED
    deltas = np.zeros(padded, dtype=np.uint8)
    deltas[:total] = STEP - 1
    deltas[places] = gaps % STEP
    values = torch.zeros(padded, dtype=torch.float16)
    values[torch.from_numpy(places)] = half[torch.from_numpy(row), torch.from_numpy(column)]
    return Macko(
        values,
        torch.from_numpy(deltas[::2] | deltas[1::2] << 4),
        torch.from_numpy(row_ends.astype(np.int32)),
        rows,
        columns,
    )


def macko_decode(packed: Macko) -> Tensor:
    """The matrix in float16, the reference for any kernel: an entry's column is `sum of (delta + 1) - 1` over its row so far.

    Raises:
        ValueError: arrays that do not fit each other, or an entry beyond the last column.

    Example:
        >>> matrix = torch.tensor([[0.0, 0.0, 3.0], [0.0, 0.0, 0.0]])
        >>> torch.equal(macko_decode(macko_encode(matrix)), matrix.half())
        True
    """
    ends: NDArray[Any] = packed.row_ends.numpy().astype(np.int64)
    total = int(ends[-1]) if ends.size else -1
    if ends.size != packed.rows + 1 or ends[0] != 0 or bool((np.diff(ends) < 0).any()):
        raise ValueError(f"row ends must rise from 0 over {packed.rows + 1} numbers")
    if packed.values.numel() < total or packed.deltas.numel() * 2 < total:
        raise ValueError(f"{total} entries need as many values and half as many bytes of deltas")
    nibbles = packed.deltas.numpy()
    deltas = np.stack([nibbles & 15, nibbles >> 4], axis=1).reshape(-1)[:total].astype(np.int64)
    walked = np.cumsum(deltas + 1)
    before = np.concatenate([[0], walked])[ends[:-1]]
    counts = np.diff(ends)
    columns = walked - np.repeat(before, counts) - 1
    if bool((columns >= packed.columns).any()):
        raise ValueError(f"an entry lies beyond the last of {packed.columns} columns")
    found = torch.zeros(packed.rows, packed.columns, dtype=torch.float16)
    rows = np.repeat(np.arange(packed.rows), counts)
    found[torch.from_numpy(rows), torch.from_numpy(columns)] = packed.values[:total]
    return found


@dataclass(frozen=True)
class MackoRow:
    """One weight: name, shape, sparsity, `bits` for each of its numbers (16 dense), and whether it is `packed`."""

    name: str
    shape: tuple[int, ...]
    sparsity: float
    bits: float
    packed: bool


@dataclass(frozen=True)
class MackoReport(Tabular):
    """What a file of `save_macko` weighs.

    Attributes:
        path: the file.
        macko_bytes: its size.
        dense_bytes: what the same tensors take with every weight in float16.
        rows: one for each weight of a linear layer.
        left_out: every other tensor, stored as it is, with the reason.
    """

    path: Path
    macko_bytes: int
    dense_bytes: int
    rows: tuple[MackoRow, ...]
    left_out: dict[str, str]

    @property
    def ratio(self) -> float:
        """Dense bytes over those of the file."""
        return self.dense_bytes / self.macko_bytes

    def records(self) -> list[dict[str, Any]]:
        """One for each weight."""
        return [asdict(row) for row in self.rows]

    def _title(self) -> str:
        return str(self)

    def __str__(self) -> str:
        return (
            f"{self.path}: {self.macko_bytes:,} bytes, {self.ratio:.2f}x smaller than {self.dense_bytes:,} in float16"
        )


def save_macko(
    model: nn.Module, path: str | os.PathLike[str], metadata: Mapping[str, str] | None = None
) -> MackoReport:
    """Write a pruned network with the weights of its linear layers in the MACKO format, all else as it is.

    Pays from about 25 % zeros on: an entry takes 20 bits where a dense number takes 16, and at high sparsity the zeros that
    bridge wide gaps add some. A weight that would not get smaller is stored in float16. Values are rounded to float16, which is
    what the kernel computes with.

    Args:
        model: a network; wrappers are looked through.
        path: file to write; folders are made.
        metadata: strings to keep.

    Returns:
        Sizes, and the bits of each weight.

    Raises:
        ValueError: no linear layer, or a weight beyond float16 (named). Nothing is written then.
        OSError: the file could not be written.

    Reference:
        arXiv 2511.13061; the file is described on the page of sparse exports.
    """
    user = checked_metadata(metadata)
    inner = unwrapped(model)
    state, extra = tensors_of(inner)
    if extra:
        raise ValueError(f"{next(iter(extra))} is extra state, which a MACKO file does not hold; save_sparse does")
    aliases = aliases_in(state)
    held = {name: tensor.detach().cpu() for name, tensor in state.items() if name not in aliases}
    listed = {entry.name: entry for entry in entries(inner)}
    stored: dict[str, Tensor] = {}
    index: dict[str, dict[str, Any]] = {}
    rows: list[MackoRow] = []
    left_out: dict[str, str] = {}
    dense = 0
    for name, tensor in held.items():
        entry = listed.get(name)
        owners = () if entry is None else entry.owners or (entry.owner,)
        linear = bool(owners) and all(owner is not None and is_linear(owner) for owner in owners) and tensor.ndim == 2
        if not linear or tensor.dtype not in REAL:
            stored[name] = tensor.contiguous()
            left_out[name] = "no weight of a linear layer" if not linear else f"dtype {tensor.dtype}"
            dense += tensor.numel() * tensor.element_size()
            continue
        assert entry is not None
        transposed = entry.output_axis == 1
        try:
            packed = macko_encode(tensor.T if transposed else tensor)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
        smaller = packed.bytes < 2 * tensor.numel()
        size = packed.bytes if smaller else 2 * tensor.numel()
        dense += 2 * tensor.numel()
        zeros = 1 - int((packed.values != 0).sum()) / max(tensor.numel(), 1)
        rows.append(MackoRow(name, tuple(tensor.shape), zeros, 8 * size / max(tensor.numel(), 1), smaller))
        if not smaller:
            stored[name] = tensor.half().contiguous()
            index[name] = {"dtype": NAMES[tensor.dtype]}
            continue
        stem = name.removesuffix("weight")
        stored |= {
            f"{stem}c_{place}": part for place, part in enumerate((packed.values, packed.deltas, packed.row_ends))
        }
        index[name] = {
            "dtype": NAMES[tensor.dtype], "rows": packed.rows, "columns": packed.columns, "transposed": transposed,
        }  # fmt: skip
    if not rows:
        raise ValueError(f"{type(inner).__name__} has no linear layer: MACKO holds matrices that multiply a vector")
    content = file_content(stored, {**user, KEY: json.dumps({"version": 1, "weights": index, "aliases": aliases})})
    path = Path(path)
    replace_atomically(path, lambda temporary: temporary.write_bytes(content))
    return MackoReport(path, len(content), dense, tuple(rows), left_out)


def load_macko(path: str | os.PathLike[str], form: str = "dense") -> dict[str, Any]:
    """Read a file of `save_macko`.

    Args:
        path: the file.
        form: "dense" (default): the state dict, weights decoded and in the dtype that they had; "packed": the dict that the
            MACKO library's own loader takes, with `c_0` (values), `c_1` (deltas), `c_2` (row ends), `c_3` (rows) and `c_4`
            (columns) in the place of each packed `weight`.

    Raises:
        FileNotFoundError: no file at `path`.
        ValueError: another file, a damaged one, one from a newer version, or an unknown form; "packed" of a weight that lies
            (inputs, outputs), which that library does not know.
    """
    one_of("form", form, ("dense", "packed"))
    path = Path(path)
    with named(path, "is no MACKO file, or damaged"):
        with safetensors.safe_open(path, framework="pt") as opened:
            kept = opened.metadata() or {}
            state: dict[str, Any] = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        if KEY not in kept:
            raise ValueError(f"the key {KEY} is missing")
        told = json.loads(kept[KEY])
        if told["version"] != 1:
            raise ValueError(f"its version is {told['version']}, and this trimtab reads 1")
        for name, one in told["weights"].items():
            dtype = getattr(torch, one["dtype"])
            if "rows" not in one:
                state[name] = state[name].to(dtype)
                continue
            stem = name.removesuffix("weight")
            values, deltas, ends = (state.pop(f"{stem}c_{place}") for place in range(3))
            parts = Macko(values, deltas, ends, one["rows"], one["columns"])
            if form == "packed":
                if one["transposed"]:
                    raise ValueError(f"{name} lies (inputs, outputs), and the kernel multiplies (outputs, inputs)")
                whole = (parts.values, parts.deltas, parts.row_ends, parts.rows, parts.columns)
                state |= {f"{stem}c_{place}": part for place, part in enumerate(whole)}
            else:
                matrix = macko_decode(parts)
                state[name] = (matrix.T if one["transposed"] else matrix).contiguous().to(dtype)
        for alias, name in told["aliases"].items():
            state[alias] = state[name]
    return state
