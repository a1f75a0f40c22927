"""Files of MACKO matrices beside what stays dense: safetensors, with what was packed and why the rest was not."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import Tensor, nn

from trimtab.checks import one_of
from trimtab.deploy.macko import Macko, macko_decode, macko_encode
from trimtab.deploy.sparse_writer import aliases_in, file_content, tensors_of
from trimtab.deploy.store_format import NAMES, checked_metadata
from trimtab.files import replace_atomically
from trimtab.frames import Tabular
from trimtab.inputs import named
from trimtab.parameters import entries
from trimtab.parameters.kinds import REAL
from trimtab.parameters.layouts import is_linear
from trimtab.parameters.wrappers import unwrapped

KEY = "trimtab_macko"


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
