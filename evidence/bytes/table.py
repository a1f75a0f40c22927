"""Files of trained networks: python evidence/bytes/table.py LABEL=RUNS ... --out FILE.json [--seeds ...] [--root DATA]

For every finished run below the folder RUNS: its bytes and its quality on test dense, in bfloat16, and pruned and quantised
as asked for by --cases; beside the compact file its order-0 entropy and the same numbers packed by gzip -9, zstd -19 and, where
it is built (README.md), NNCodec's arithmetic coder.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import json
import tempfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors.torch
import torch
import zstandard
from torch import Tensor, nn

from trimtab.deploy import load_compact, save_compact, save_sparse
from trimtab.deploy.compact_quantise import Quantised, quantise
from trimtab.files import write_text
from trimtab.pruning import one_shot, recalibrate
from trimtab.pruning.recalibration import has_batch_norm
from trimtab.runs.evaluation import evaluate
from trimtab.runs.loading import batches_of, load_data, trained_model
from trimtab.runs.metric import metric_of
from trimtab.runs.recipe import Recipe
from trimtab.runs.run_folder import RunFolder
from trimtab.studies.file_forms import Measuring, dense_rows

UNARY = 11
"""Decisions of a magnitude that have a context each in NNCodec's coder, before the Golomb code: its own default."""


def packed(layers: Sequence[npt.NDArray[np.int32]], bits: Sequence[int]) -> dict[str, int]:
    """gzip -9 and zstd -19 of the numbers, one byte each or (at 4 bits and fewer) two to a byte: the smaller."""
    whole = [layer.astype(np.int8).tobytes() for layer in layers]
    halved = [halves(one) if own <= 4 else one for one, own in zip(whole, bits, strict=True)]
    zstd = zstandard.ZstdCompressor(level=19)
    joined = [b"".join(whole), b"".join(halved)]
    return {
        "gzip": min(len(zlib.compress(one, 9)) for one in joined),
        "zstd": min(len(zstd.compress(one)) for one in joined),
    }


def halves(numbers: bytes) -> bytes:
    """Two numbers of four bits to a byte."""
    four = np.frombuffer(numbers + bytes(len(numbers) % 2), np.uint8) & 15
    return bytes((four[::2] | four[1::2] << 4).tobytes())


def container(layers: Mapping[str, Quantised], rest: Mapping[str, Tensor]) -> dict[str, int]:
    """zstd -19 of a plain safetensors file of all that the compact file holds: numbers, scales in bfloat16, other tensors."""
    sizes = []
    for four in (False, True):
        tensors = dict(rest)
        for name, one in layers.items():
            whole = one.numbers.astype(np.int8).tobytes()
            content = halves(whole) if four and one.bits <= 4 else whole
            tensors[name] = torch.frombuffer(bytearray(content), dtype=torch.uint8)
            tensors[f"{name}.scale"] = torch.from_numpy(one.scales).bfloat16()
        sizes.append(len(zstandard.ZstdCompressor(level=19).compress(safetensors.torch.save(tensors))))
    return {"container": min(sizes)}


def deep_cabac(layers: list[npt.NDArray[np.int32]]) -> dict[str, int]:
    """NNCodec's context-adaptive arithmetic coder (ISO/IEC 15938-17) on the same numbers: its stream alone, without headers."""
    if importlib.util.find_spec("deepCABAC") is None:
        return {}
    import deepCABAC

    off = (deepCABAC.HdspMode.AlwaysOff, np.zeros(2, np.int8))
    sizes = []
    for tuned in (0, 1):
        encoder = deepCABAC.Encoder()
        for layer in layers:
            encoder.initCtxModels(UNARY, tuned)
            encoder.encodeLayer(layer, 0, 0, 0, 0, 0, np.zeros(len(layer), np.int32), *off, 0, 0)
        stream = encoder.finish()
        decoder = deepCABAC.Decoder()
        decoder.setStream(stream)
        for layer in layers:
            read = np.zeros_like(layer)
            decoder.initCtxModels(UNARY)
            decoder.decodeLayer(read, 0, 0, 0, 0, *off, 0, 0)
            if not np.array_equal(read, layer):
                raise SystemExit("NNCodec's coder does not give back what it got: it was built or called wrongly")
        sizes.append(len(stream))
    return {"nncodec": min(sizes)}


def forms(
    run: RunFolder,
    recipe: Recipe,
    cases: Sequence[tuple[float, int, int | None]],
    budgets: Sequence[int],
    scratch: Path,
) -> list[dict[str, Any]]:
    """The network as it is, in bfloat16, in every case, its numbers also packed by others, and for every budget."""
    data = load_data(recipe)
    model, batches = trained_model(run, data), batches_of(recipe, data, "test")
    calibration = batches_of(recipe, data, "train").sample(recipe.pruning.recalibrate_batches, recipe.seed)
    prepare = (lambda network: recalibrate(network, calibration)) if has_batch_norm(model) else None
    measuring = Measuring(
        lambda network: evaluate(network, batches, data.num_classes), prepare, recipe.method, recipe.seed, "test", scratch
    )  # fmt: skip
    columns = {"form", "sparsity", "bits", "bytes", metric_of(data.task).column}
    path = scratch / "network.safetensors"

    def saved(network: nn.Module, sparsity: float, shown: int | None, **how: Any) -> dict[str, Any]:
        report = save_compact(network, path, prepare=prepare, **how)
        read = copy.deepcopy(model)
        load_compact(path, read)
        row = measuring.row("compact", sparsity, report.compact_bytes, measuring.quality(read), shown)
        return row.model_dump(include=columns) | {"code": report.code_bytes, "entropy": report.entropy_bytes}

    dense = dense_rows(model, measuring.quality(model), save_sparse(model, path).dense_bytes, measuring)
    rows = [row.model_dump(include=columns) for row in dense]
    names = [row.name for row in save_compact(model, path).rows]
    for sparsity, bits, first in cases:
        pruned = copy.deepcopy(model)
        if sparsity:
            one_shot(pruned, sparsity)
        own = dict.fromkeys(names, bits) | ({} if first is None else {names[0]: first})
        row = saved(pruned, sparsity, bits, bits=own)
        state, held = pruned.state_dict(), load_compact(path)
        found = {name: quantise(name, state[name], own[name], 0.0, 0, "auto") for name in names}
        layers = [one.numbers.astype(np.int32).reshape(state[name].shape) for name, one in found.items()]
        extra = {} if first is None else {"first": first}
        extra |= container(found, {name: held[name] for name in {*held} - {*names}})
        rows.append(row | extra | packed(layers, list(own.values())) | deep_cabac(layers))
    for budget in budgets:
        rows.append(saved(model, 0.0, None, budget_bytes=budget) | {"budget": budget})
    return rows


def case(text: str) -> tuple[float, int, int | None]:
    """SPARSITY:BITS, or SPARSITY:BITS:BITS of the first weight."""
    sparsity, bits, *first = text.split(":")
    return float(sparsity), int(bits), int(first[0]) if first else None


def runs_to_do(
    words: Sequence[str], rows: Sequence[dict[str, Any]], seeds: Sequence[int] | None, root: str | None
) -> list[tuple[str, RunFolder, Recipe]]:
    """Finished runs below the folders of LABEL=RUNS that `rows` does not hold yet, seed after seed."""
    done = {(row["method"], row["seed"]) for row in rows}
    found = []
    for label, _, folder in (word.rpartition("=") for word in words):
        for file in sorted(Path(folder).rglob("model.safetensors")):
            run = RunFolder(file.parent)
            recipe = run.recipe.with_settings({} if root is None else {"data.root": root})
            if run.finished and (label, recipe.seed) not in done and (not seeds or recipe.seed in seeds):
                found.append((label, run, recipe))
    return sorted(found, key=lambda one: one[2].seed)


def main() -> None:
    """One document for all runs; those that it holds already are not done again."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+", metavar="LABEL=RUNS")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="*", help="these alone")
    parser.add_argument("--cases", type=case, nargs="+", default=[], metavar="SPARSITY:BITS[:FIRST]")
    parser.add_argument(
        "--budgets", type=int, nargs="+", default=[], help="bytes; bits and zeros by squared error alone"
    )
    parser.add_argument("--root", help="where the data lie, if not where the recipes say")
    given = parser.parse_args()
    rows = json.loads(given.out.read_text()) if given.out.is_file() else []
    for label, run, recipe in runs_to_do(given.runs, rows, given.seeds, given.root):
        with tempfile.TemporaryDirectory() as folder:
            row = {
                "method": label, "seed": recipe.seed, "epochs": recipe.epochs,
                "forms": forms(run, recipe, given.cases, given.budgets, Path(folder)),
            }  # fmt: skip
        rows.append(row)
        print(run.path, flush=True)
        write_text(given.out, json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
