"""Write a pruned network into a file that is really smaller."""

from __future__ import annotations

import gzip
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors
import torch
from safetensors.torch import save as to_safetensors
from torch import Tensor, nn

from trimtab.deploy import positions
from trimtab.deploy.store_format import (
    DTYPES,
    EXTRA_STATE,
    HEADER_LIMIT,
    NAMES,
    Index,
    IndexRow,
    as_bytes,
    as_integers,
    checked_metadata,
    content_hash,
    is_plain,
    safetensors_label,
    write_index,
    write_metadata,
)
from trimtab.deploy.store_report import Form, StoreReport, TensorRow, dense_file_bytes, mask_entropy_bits
from trimtab.files import replace_atomically
from trimtab.parameters.kinds import check_has_shape, packed_weights
from trimtab.parameters.wrappers import own_state

Source = nn.Module | Mapping[str, Tensor]


def tensors_of(source: Source) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The state dict of `source` and the extra states in it, checked; a model's by its own names, without wrappers."""
    if isinstance(source, nn.Module) and (packed := [name for name, _, _ in packed_weights(source)]):
        raise TypeError(f"{packed[0]} is of a quantised layer, which packs it; save the model before it is quantised")
    state = own_state(source) if isinstance(source, nn.Module) else source
    extra: dict[str, Any] = {
        name: value
        for name, value in state.items()
        if isinstance(name, str) and name.rpartition(".")[2] == EXTRA_STATE and not isinstance(value, Tensor)
    }
    for name, value in extra.items():
        if not is_plain(value):
            raise TypeError(
                f"{name} is what get_extra_state gave, of {type(value).__name__}; a sparse file holds it as a tensor, or as "
                "numbers, strings, None, and lists and dicts (by string) of them"
            )
    state = {name: tensor for name, tensor in state.items() if name not in extra}
    for name, tensor in state.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise TypeError(f"{name!r} is {type(tensor).__name__}; a sparse file holds named tensors only")
        check_has_shape(name, tensor)
        if tensor.layout != torch.strided or tensor.is_meta or tensor.is_quantized:
            raise ValueError(f"{name} is a {tensor.layout} tensor on {tensor.device}; dense data are needed")
        if hasattr(tensor, "full_tensor"):
            raise ValueError(f"{name} is sharded; gather the full state dict before saving it")
        if tensor.dtype not in NAMES:
            raise TypeError(f"{name} has dtype {tensor.dtype}; allowed are {', '.join(DTYPES)}")
    return state, extra


def aliases_in(state: Mapping[str, Tensor]) -> dict[str, str]:
    """Names of tensors that are the same memory as an earlier one."""
    first: dict[tuple[object, ...], str] = {}
    aliases = {}
    for name, tensor in state.items():
        if tensor.numel() == 0:
            continue
        key = (tensor.data_ptr(), tensor.device, tensor.dtype, tuple(tensor.shape), tensor.stride())
        holder = first.setdefault(key, name)
        if holder != name:
            aliases[name] = holder
    return aliases


class _Packed(NamedTuple):
    row: IndexRow
    values: Tensor
    code: positions.Bytes
    nonzeros: int
    negative_zeros: int


def _pack(name: str, tensor: Tensor, *, drop_negative_zeros: bool) -> _Packed:
    """A tensor in the form that takes fewest bytes."""
    dtype, shape = NAMES[tensor.dtype], tuple(tensor.shape)
    flat = tensor.detach().contiguous().cpu().reshape(-1)
    bits = as_integers(flat).numpy()
    negative = 0
    if flat.is_floating_point():
        is_negative_zero = bits == as_integers(torch.tensor([-0.0]).to(flat.dtype)).numpy()[0]
        negative = int(is_negative_zero.sum())
        if negative and drop_negative_zeros:
            bits = np.where(is_negative_zero, bits.dtype.type(0), bits)
            flat = torch.from_numpy(bits).view(flat.dtype)
            negative = 0
    where = np.flatnonzero(bits)
    # Fewest bytes a code can take is one bit for each non-zero: no need to try where that is too much already.
    if where.size * flat.element_size() + where.size // 8 < bits.nbytes:
        k, packed = positions.encode(where)
        if where.size * flat.element_size() + packed.size < bits.nbytes:
            values = flat[torch.from_numpy(where)]
            return _Packed(
                IndexRow(name, dtype, shape, where.size, k, packed.size), values, packed, where.size, negative
            )
    no_code = np.empty(0, dtype=np.uint8)
    return _Packed(IndexRow(name, dtype, shape, flat.numel()), flat, no_code, where.size, negative)


def _report_row(packed: _Packed) -> TensorRow:
    row, nonzeros = packed.row, packed.nonzeros
    size = DTYPES[row.dtype].itemsize
    form: Form = "dense" if row.k is None else "gap code" if row.k else "bitmask"
    return TensorRow(
        row.name,
        row.dtype,
        row.shape,
        nonzeros,
        form,
        dense_bytes=row.elements * size,
        sparse_bytes=row.stored * size + row.position_bytes,
        bound_bytes=mask_entropy_bits(row.elements, nonzeros) / 8 + nonzeros * size,
        negative_zeros=packed.negative_zeros,
    )


def _gzip_bytes(state: Mapping[str, Tensor], names: list[str]) -> int:
    content = b"".join(bytes(as_bytes(state[name].detach().contiguous().cpu())) for name in names)
    return len(gzip.compress(content, compresslevel=6, mtime=0))


def file_content(entries: dict[str, Tensor], metadata: dict[str, str]) -> bytes:
    """The bytes of a safetensors file; ValueError when its header is larger than safetensors reads back."""
    advice = (
        f"safetensors reads back a header of at most {HEADER_LIMIT} bytes; keep long metadata in a file of their own"
    )
    try:
        content = to_safetensors(entries, metadata)
    except safetensors.SafetensorError as error:
        raise ValueError(f"the tensors and metadata cannot be written ({error}); {advice}") from error
    size = int.from_bytes(content[:8], "little")
    if size > HEADER_LIMIT:
        raise ValueError(f"the header takes {size} bytes; {advice}")
    return content


def save_sparse(
    source: Source,
    path: str | os.PathLike[str],
    metadata: Mapping[str, str] | None = None,
    *,
    drop_negative_zeros: bool = False,
    with_gzip: bool = False,
) -> StoreReport:
    """Write the state dict of a model into a safetensors file in which zeros cost next to nothing.

    Each tensor is stored in the smallest of three forms: dense, bitmask and values, gap code (Golomb-Rice) and values.
    Values are raw bits, so the round trip is bit-equal for every dtype, NaN payloads and -0.0 included. Tied weights
    are stored once. The file appears at `path` as a whole or not at all.

    Args:
        source: a model or a state dict of dense tensors, on any device. Names are those of the network inside wrappers
            (`torch.compile`, DataParallel, DDP, AveragedModel), so that the file fits it with or without them; those of a
            state dict stay as they are.
        path: file to write; folders are made.
        metadata: strings to keep beside the tensors.
        drop_negative_zeros: store -0.0 as 0.0. Such zeros come from `weight * mask` with negative weights and would each
            cost a value; the tensors read back are then equal in value but not in these sign bits. Default False.
        with_gzip: also measure gzip of the dense values (slow; for comparison).

    Returns:
        Sizes of the file, of the dense file and of the entropy bound, in total and per tensor.

    Raises:
        TypeError: an entry is no tensor, has a dtype safetensors lacks, or metadata are not strings; an extra state
            (`get_extra_state`) that is neither a tensor nor plain JSON.
        ValueError: a tensor is sparse, quantised, sharded or on the meta device; names or metadata are too long to be read
            back (16 MiB of names, 100 MB of metadata). Nothing is written then.
        OSError: the file could not be written.

    Example:
        >>> import tempfile
        >>> from trimtab.deploy import load_sparse
        >>> net = torch.nn.Linear(100, 100)
        >>> with torch.no_grad():
        ...     _ = net.weight.masked_fill_(torch.rand(100, 100) < 0.9, 0.0)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     report = save_sparse(net, f"{folder}/net.safetensors")
        ...     state = load_sparse(f"{folder}/net.safetensors")
        >>> report.ratio > 5, torch.equal(state["weight"], net.weight)
        (True, True)
    """
    user = checked_metadata(metadata)
    state, extra = tensors_of(source)
    aliases = aliases_in(state)
    held = [name for name in state if name not in aliases]
    packed = {name: _pack(name, state[name], drop_negative_zeros=drop_negative_zeros) for name in held}

    values: dict[str, list[Tensor]] = {}
    for each in packed.values():
        values.setdefault(each.row.dtype, []).append(each.values)
    codes = np.concatenate([np.empty(0, dtype=np.uint8), *(each.code for each in packed.values())])
    rows = tuple(each.row for each in packed.values())
    entries = {f"values.{dtype}": torch.cat(parts) for dtype, parts in values.items()}
    entries |= {"index": write_index(Index(rows, aliases)), "positions": torch.from_numpy(codes)}
    sha256 = content_hash(entries, user, extra)
    content = file_content(entries, write_metadata(sha256, user, extra))
    path = Path(path)
    replace_atomically(path, lambda temporary: temporary.write_bytes(content))

    report_rows = {name: _report_row(each) for name, each in packed.items()}
    in_order = sorted(held, key=lambda name: (-state[name].element_size(), name))
    return StoreReport(
        path=path,
        sparse_bytes=len(content),
        dense_bytes=dense_file_bytes(
            {
                name: (safetensors_label(row.dtype), row.shape, row.dense_bytes)
                for name, row in ((name, report_rows[name]) for name in in_order)
            }
        ),
        bound_bytes=round(sum(row.bound_bytes for row in report_rows.values())),
        gzip_bytes=_gzip_bytes(state, held) if with_gzip else None,
        sha256=sha256,
        rows=tuple(
            report_rows[name]
            if name in report_rows
            else TensorRow(name, NAMES[tensor.dtype], tuple(tensor.shape), 0, "alias", 0, 0, 0.0)
            for name, tensor in state.items()
        ),
    )
