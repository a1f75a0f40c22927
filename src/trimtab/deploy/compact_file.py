"""Write a network into as few bytes as its accuracy bears: zeros, few bits and an entropy code in one file."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from trimtab.checks import non_negative, number, whole
from trimtab.deploy.compact_job import job_of
from trimtab.deploy.compact_quantise import KEPT_BITS, Scales
from trimtab.deploy.compact_report import CompactReport
from trimtab.deploy.compact_search import Measure, fixed, layers_of, within_budget, within_drop
from trimtab.deploy.one_file_reader import load_raw
from trimtab.deploy.sparse_reader import names_in_model
from trimtab.deploy.sparse_writer import Source
from trimtab.deploy.store_format import COMPACT_KEY, DTYPES, NAMES, Index, IndexRow, safetensors_label
from trimtab.deploy.store_report import dense_file_bytes
from trimtab.files import replace_atomically
from trimtab.parameters.wrappers import load_own_state


def save_compact(
    source: Source,
    path: str | os.PathLike[str],
    *,
    budget_bytes: int | None = None,
    max_drop: float | None = None,
    bits: int | Sequence[int] | Mapping[str, Any] | None = None,
    sparsity: float | Sequence[float] | Mapping[str, Any] | None = None,
    loss: Measure | None = None,
    quality: Measure | None = None,
    prepare: Callable[[nn.Module], object] | None = None,
    scales: Scales = "auto",
    kept_bits: int = KEPT_BITS,
    metadata: Mapping[str, str] | None = None,
) -> CompactReport:
    """Prune, quantise and entropy-code a network into one small safetensors file.

    A weight becomes whole numbers q times a scale s, `w ~ q s`; the numbers are coded by range ANS, with the odds of their
    table or, where that is smaller, those of what stands around each of them. The file holds the quantised network:
    `load_compact` and the one-file reader give it back, every bit.
    `source` is not changed, and the file appears at `path` as a whole or not at all.

    Without `budget_bytes` and `max_drop` every weight gets `bits` and `sparsity`. With one of them, both are chosen for each
    weight: the least sum of expected rises of the loss for the bytes. At first the rise is taken to be the squared error over
    the weight's own square [ours]. With `loss` it is then measured, twice: how much the loss rises when one weight is made
    coarser while all others are as chosen so far [ours]; what is chosen by it is taken where it is better. With `quality` and
    no `sparsity` given, the same 4, 5 or 6 bits for all weights with zeros by global magnitude are tried as well, and taken
    where they are better (`budget_bytes`) or smaller (`max_drop`).

    Args:
        source: a model, or a state dict of dense tensors. Coded are a model's weights, the tensors of two or more dimensions in
            a state dict. Tied weights go once.
        path: file to write; folders are made.
        budget_bytes: largest size of the file.
        max_drop: most that `quality` may fall, in its units. The smallest file found by halving; the quality is that of the
            network in the file.
        bits: 1 to 16, for all weights or by name. In a search several may be given, of which each weight takes one. Default 8;
            in a search 2, 3, 4, 5, 6 and 8 [ours].
        sparsity: fraction of zeros at least, in [0, 1), as `bits`. Default 0; in a search 0, 0.5, 0.6, 0.7, 0.8, 0.85,
            0.9, 0.95 and 0.98 [ours].
        loss: gives the loss of a network on your data, for the choice.
        quality: gives a number that is better when larger, such as the accuracy in percent on validation data.
        prepare: called with each candidate before it is measured or written, such as `pruning.recalibrate` on training data.
            What it changes beside the weights is in the file.
        scales: "channel", "tensor", or "auto": one for each channel where the smaller error is worth its bytes (`quantise`).
        kept_bits: significant bits of biases, of the weights of norms and of BatchNorm's statistics, which are not coded;
            default those of float16 [ours]. 24 keeps float32 as it is. Other tensors are kept as they are.
        metadata: strings to keep.

    Returns:
        Sizes, entropy, bits and sparsity of each weight, quality before and after.

    Raises:
        TypeError: arguments of a wrong kind; a measure for a state dict, which cannot run.
        ValueError: bits outside 1 to 16, sparsity outside [0, 1), NaN or infinite weights, no weight to code, a budget or
            drop that no choice meets. Nothing is written then.
        OSError: the file could not be written.

    Example:
        >>> import tempfile
        >>> from trimtab.deploy import load_compact
        >>> net = torch.nn.Linear(100, 100)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     report = save_compact(net, f"{folder}/net.safetensors", budget_bytes=5000)
        ...     state = load_compact(f"{folder}/net.safetensors")
        >>> report.compact_bytes <= 5000, state["weight"].shape
        (True, torch.Size([100, 100]))
    """
    for name, given in (("loss", loss), ("quality", quality), ("prepare", prepare)):
        if given is not None and not callable(given):
            raise TypeError(f"{name} must be a function of a network, got {type(given).__name__}")
        if given is not None and not isinstance(source, nn.Module):
            raise TypeError(f"{name} needs a model that runs; a state dict does not")
    if budget_bytes is not None:
        whole("budget_bytes", budget_bytes, 1)
    if max_drop is not None:
        non_negative("max_drop", max_drop)
        if quality is None:
            raise ValueError("max_drop needs quality, the function that measures what may drop")
    job = job_of(source, metadata, scales, prepare, kept_bits)
    searched = budget_bytes is not None or max_drop is not None
    taken = {} if searched else fixed(job, bits, sparsity)
    before = number("quality of the network as it is", quality(job.model)) if quality and job.model else None
    with torch.no_grad():
        if not searched:
            weights = job.quantised(taken)
        else:
            layers, free = layers_of(job, bits, sparsity), sparsity is None
            if max_drop is not None and quality is not None and before is not None:
                weights = within_drop(job, layers, quality, before - max_drop, loss, free=free)
            if max_drop is None and budget_bytes is not None:
                weights = within_budget(job, layers, budget_bytes, loss, quality, free=free)
        found = job.file(weights)
        if budget_bytes is not None and len(found.content) > budget_bytes:
            raise ValueError(
                f"max_drop = {max_drop} takes {len(found.content)} bytes at least, more than budget_bytes = {budget_bytes}"
            )
        # what is prepared stands in the model since the file was made, to the bit
        after = float(quality(job.model if prepare and job.model else job.candidate(weights))) if quality else None
    path = Path(path)
    replace_atomically(path, lambda temporary: temporary.write_bytes(found.content))
    sizes = {name: tensor.numel() * tensor.element_size() for name, tensor in job.state.items()}
    in_order = sorted(job.state, key=lambda name: (-job.state[name].element_size(), name))
    labelled = {
        name: (safetensors_label(NAMES[job.state[name].dtype]), tuple(job.state[name].shape), sizes[name])
        for name in in_order
    }
    return CompactReport(
        path=path,
        compact_bytes=len(found.content),
        dense_bytes=dense_file_bytes(labelled),
        code_bytes=found.code_bytes,
        entropy_bytes=sum(row.entropy_bytes for row in found.rows),
        rest_bytes=found.rest_bytes,
        overhead_bytes=len(found.content) - found.code_bytes - found.rest_bytes,
        quality_before=before,
        quality_after=after,
        sha256=found.sha256,
        rows=found.rows,
        left_out=job.left_out,
    )


def load_compact(
    path: str | os.PathLike[str], model: nn.Module | None = None, max_bytes: int | None = None
) -> dict[str, Any]:
    """Read a file of `save_compact`, every bit of the quantised network, and load it into `model` when one is given.

    The hash is checked first, then every count against the sizes in the file, then the tensors are made.

    Args:
        path: file of `save_compact`.
        model: takes the tensors over; names, shapes and dtypes must be its own, else it is left untouched.
        max_bytes: most bytes the tensors may take. Default [ours]: 1 GiB or 1,000 times the file, whichever is more.

    Returns:
        The state dict on the CPU: tensors, tied names sharing one, and what modules gave as extra state.

    Raises:
        FileNotFoundError: no file at `path`.
        ValueError: not a compact file, damaged, from a newer version, too large, or not the model's.

    Example:
        >>> import tempfile
        >>> net, other = torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = save_compact(net, f"{folder}/net.safetensors", bits=4)
        ...     _ = load_compact(f"{folder}/net.safetensors", other)
        >>> torch.allclose(net.bias, other.bias, atol=1e-3), len(other.weight.unique()) <= 15
        (True, True)
    """
    raw, beside = load_raw(path, max_bytes, key=COMPACT_KEY)
    made: dict[int, Tensor] = {}
    state: dict[str, Any] = {}
    rows: list[IndexRow] = []
    aliases: dict[str, str] = {}
    first: dict[int, str] = {}
    for name, (dtype, shape, bits) in raw.items():
        if id(bits) in made:
            aliases[name] = first[id(bits)]
        else:
            made[id(bits)] = torch.from_numpy(bits).view(DTYPES[dtype]).reshape(shape)
            first[id(bits)] = name
            rows.append(IndexRow(name, dtype, shape, bits.size))
        state[name] = made[id(bits)]
    extra = beside["extra"]
    if model is not None:
        try:
            names = names_in_model(Index(tuple(rows), aliases), extra, model)
        except ValueError as error:
            raise ValueError(f"could not read {path}: {error}") from error
        load_own_state(model, {names[name]: value for name, value in {**state, **extra}.items()})
    return {**state, **extra}
