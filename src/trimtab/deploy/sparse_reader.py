"""Read a sparse file back, bit for bit, and refuse one that is damaged or hostile."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import safetensors
import torch
from torch import Tensor, nn

from trimtab.deploy import positions
from trimtab.deploy.store_format import DTYPES, Index, as_integers, content_hash, read_index, read_metadata
from trimtab.parameters.wrappers import load_own_state, own_state, without_marks


def _read(path: Path) -> tuple[dict[str, Tensor], str, dict[str, str], dict[str, Any]]:
    """The entries of the file as they are, the hash it claims, the user's metadata, the extra states."""
    try:
        with safetensors.safe_open(path, framework="pt", device="cpu") as file:
            sha256, user, extra = read_metadata(file.metadata())
            names = list(file.keys())
            allowed = {"index", "positions", *(f"values.{dtype}" for dtype in DTYPES)}
            if not {"index", "positions"} <= set(names) <= allowed:
                raise ValueError(f"entries {names} are not those of a sparse file")
            return {name: file.get_tensor(name) for name in names}, sha256, user, extra
    except safetensors.SafetensorError as error:
        raise ValueError(f"not a whole safetensors file ({error})") from error


def _check_sizes(index: Index, entries: Mapping[str, Tensor], limit: int) -> None:
    """The entries hold exactly what the index says, and no more than `limit` bytes would be decoded."""
    wanted: dict[str, int] = {}
    total = 0
    for row in index.rows:
        wanted[row.dtype] = wanted.get(row.dtype, 0) + row.stored
        total += row.elements * DTYPES[row.dtype].itemsize
    for key, tensor in entries.items():
        expected = torch.uint8 if key in ("index", "positions") else DTYPES[key.removeprefix("values.")]
        if tensor.dtype != expected or tensor.ndim != 1:
            raise ValueError(f"entry {key} is {tensor.dtype} of shape {tuple(tensor.shape)}, expected flat {expected}")
    held = {key.removeprefix("values."): tensor.numel() for key, tensor in entries.items() if key.startswith("values.")}
    if wanted != held:
        raise ValueError(f"the index asks for {wanted} values, the file holds {held}")
    if sum(row.position_bytes for row in index.rows) != entries["positions"].numel():
        raise ValueError("the index and the positions disagree on their size")
    if total > limit:
        raise ValueError(f"it would decode to {total} bytes, more than the limit of {limit}; pass max_bytes={total}")


def _decode(index: Index, entries: Mapping[str, Tensor]) -> dict[str, Tensor]:
    codes = cast("positions.Bytes", entries["positions"].numpy())
    taken = dict.fromkeys(DTYPES, 0)
    code_start = 0
    state: dict[str, Tensor] = {}
    for row in index.rows:
        start = taken[row.dtype]
        taken[row.dtype] = start + row.stored
        values = entries[f"values.{row.dtype}"][start : start + row.stored]
        if row.k is None:
            flat = values.clone()
        else:
            code = codes[code_start : code_start + row.position_bytes]
            code_start += row.position_bytes
            try:
                where = positions.decode(code, row.nonzeros, row.k, row.elements)
            except ValueError as error:
                raise ValueError(f"tensor {row.name!r}: {error}") from error
            flat = torch.zeros(row.elements, dtype=DTYPES[row.dtype])
            as_integers(flat).numpy()[where] = as_integers(values).numpy()
        state[row.name] = flat.reshape(row.shape)
    return state | {alias: state[name] for alias, name in index.aliases.items()}


def names_in_model(index: Index, extra: Mapping[str, Any], model: nn.Module) -> dict[str, str]:
    """Name in the file -> name in the network, when names, shapes and dtypes are its own; before anything is copied."""
    held = {row.name: row for row in index.rows}
    held |= {alias: held[name] for alias, name in index.aliases.items()}
    state = own_state(model)
    everything = [*held, *extra]
    names = {name: name for name in everything}
    if set(names) != set(state) and set(bare := without_marks(everything)) == set(state):
        names = dict(zip(everything, bare, strict=True))  # of the state dict of a wrapped network
    found = set(names.values())
    missing, unexpected = sorted(set(state) - found), sorted(found - set(state))
    if missing or unexpected:
        raise ValueError(f"it does not fit {type(model).__name__}: missing {missing}, unexpected {unexpected}")
    for name, row in ((names[name], row) for name, row in held.items()):
        if not isinstance(state[name], Tensor):
            raise ValueError(f"it does not fit {type(model).__name__}: {name} is a tensor in the file alone")
        shape, dtype = tuple(state[name].shape), state[name].dtype
        if shape != row.shape or dtype != DTYPES[row.dtype]:
            raise ValueError(
                f"it does not fit {type(model).__name__}: {name} is {row.dtype} {row.shape} in the file and "
                f"{str(dtype).removeprefix('torch.')} {shape} in the model"
            )
    return names


def load_sparse(
    path: str | os.PathLike[str], model: nn.Module | None = None, max_bytes: int | None = None
) -> dict[str, Any]:
    """Read a file of `save_sparse`, bit-equal, and load it into `model` when one is given.

    The hash is checked first, then every count against the sizes in the file, then the tensors are made: a damaged or
    hostile file is refused before it costs memory.

    Args:
        path: file of `save_sparse`.
        model: takes the tensors over; names, shapes and dtypes must be its own, else it is left untouched. Wrappers
            (`torch.compile`, DataParallel, DDP, AveragedModel) are looked through, around the model and in the file's names.
        max_bytes: most bytes the tensors may take. Default [ours]: 1 GiB or 1,000 times the file, whichever is more.

    Returns:
        The state dict on the CPU: tensors, tied names sharing one, and what modules gave as extra state.

    Raises:
        FileNotFoundError: no file at `path`.
        ValueError: not a sparse file, damaged, from a newer version, too large, or not the model's.

    Example:
        >>> import tempfile
        >>> from trimtab.deploy import save_sparse
        >>> net, other = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = save_sparse(net, f"{folder}/net.safetensors")
        ...     _ = load_sparse(f"{folder}/net.safetensors", other)
        >>> torch.equal(net.weight, other.weight)
        True
    """
    path = Path(path)
    limit = max(2**30, 1000 * path.stat().st_size) if max_bytes is None else max_bytes
    try:
        entries, sha256, user, extra = _read(path)
        if content_hash(entries, user, extra) != sha256:
            raise ValueError("its content does not have the sha256 in its metadata: the file was altered or damaged")
        index = read_index(entries["index"])
        _check_sizes(index, entries, limit)
        if model is not None:
            names = names_in_model(index, extra, model)
        state: dict[str, Any] = {**_decode(index, entries), **extra}
    except ValueError as error:
        raise ValueError(f"could not read {path}: {error}") from error
    if model is not None:
        load_own_state(model, {names[name]: tensor for name, tensor in state.items()})
    return state


def sparse_metadata(path: str | os.PathLike[str]) -> dict[str, str]:
    """The user's strings of a sparse file, from its header alone.

    Raises:
        ValueError: not a sparse file, or from a newer version.
    """
    try:
        with safetensors.safe_open(Path(path), framework="pt", device="cpu") as file:
            return read_metadata(file.metadata())[1]
    except (ValueError, safetensors.SafetensorError) as error:
        raise ValueError(f"could not read {path}: {error}") from error
