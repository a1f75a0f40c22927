"""Controls and searched files for the runs of a study: python evidence/bytes/table.py STUDY --out FILE.json [--root DATA]

For every finished run: the numbers of the pruned and quantised weights packed by gzip -9 and zstd -19, the compact file of the
same numbers, its order-0 entropy; and the file that `save_compact` finds for the metric's smallest named cost.
"""

from __future__ import annotations

import argparse
import copy
import json
import tempfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import zstandard
from torch import nn

from trimtab.datasets import DataSet
from trimtab.deploy import load_compact, save_compact
from trimtab.deploy.compact_quantise import quantise, scale_axis
from trimtab.files import write_text
from trimtab.pruning import one_shot, recalibrate
from trimtab.pruning.recalibration import has_batch_norm
from trimtab.runs.evaluation import evaluate
from trimtab.runs.loading import batches_of, load_data, trained_model
from trimtab.runs.metric import metric_of
from trimtab.runs.recipe import Recipe
from trimtab.runs.run_folder import RunFolder
from trimtab.studies.comparison import run_folders

CASES = ((0.0, 8), (0.5, 4), (0.8, 4), (0.9, 4))


def packed(numbers: bytes, bits: int) -> dict[str, int]:
    """gzip -9 and zstd -19 of the numbers, one byte each or (at 4 bits and fewer) two to a byte: the smaller."""
    forms = [numbers]
    if bits <= 4:
        halves = np.frombuffer(numbers, np.uint8) & 15
        forms.append((halves[: halves.size // 2 * 2 : 2] | halves[1::2] << 4).tobytes())
    zstd = zstandard.ZstdCompressor(level=19)
    return {
        "gzip": min(len(zlib.compress(form, 9)) for form in forms),
        "zstd": min(len(zstd.compress(form)) for form in forms),
    }


def controls(model: nn.Module, scratch: Path) -> list[dict[str, Any]]:
    """Every case: the compact file, and the same numbers packed."""
    rows = []
    for sparsity, bits in CASES:
        pruned = copy.deepcopy(model)
        if sparsity:
            one_shot(pruned, sparsity)
        report = save_compact(pruned, scratch / "control.safetensors", bits=bits)
        state = pruned.state_dict()
        numbers = [
            quantise(row.name, state[row.name], bits, 0.0, scale_axis(state[row.name], 0, "auto")).numbers
            for row in report.rows
        ]
        rows.append(
            {
                "sparsity": sparsity, "bits": bits, "file": report.compact_bytes, "code": report.code_bytes,
                "entropy": report.entropy_bytes, "code_over_entropy": report.of_entropy,
                **packed(np.concatenate(numbers).astype(np.int8).tobytes(), bits),
            }
        )  # fmt: skip
    return rows


def searched(model: nn.Module, recipe: Recipe, data: DataSet, scratch: Path) -> dict[str, Any]:
    """The file for the smallest cost that is worth naming, chosen on validation, measured on test."""
    metric = metric_of(data.task)
    calibration = batches_of(recipe, data, "train").sample(recipe.pruning.recalibrate_batches, recipe.seed)

    def value(network: nn.Module, split: str) -> float:
        return float(getattr(evaluate(network, batches_of(recipe, data, split), data.num_classes), metric.column))

    report = save_compact(
        model, scratch / "searched.safetensors", max_drop=metric.costly,
        loss=lambda network: evaluate(network, batches_of(recipe, data, "validation"), data.num_classes).loss,
        quality=lambda network: metric.gain(value(network, "validation")),
        prepare=(lambda network: recalibrate(network, calibration)) if has_batch_norm(model) else None,
    )  # fmt: skip
    read = copy.deepcopy(model)
    load_compact(report.path, read)
    return {
        "file": report.compact_bytes,
        "dense": report.dense_bytes,
        "test": value(read, "test"),
        "before": value(model, "test"),
    }


def main() -> None:
    """One document for all runs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("study", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--root", help="where the data lie, if not where the recipes say")
    given = parser.parse_args()
    rows = []
    for run in run_folders(given.study):
        if not run.finished:
            continue
        recipe: Recipe = run.recipe if given.root is None else run.recipe.with_settings({"data.root": given.root})
        data = load_data(recipe)
        model = trained_model(RunFolder(run.path), data)
        with tempfile.TemporaryDirectory() as folder:
            rows.append(
                {
                    "method": recipe.method, "seed": recipe.seed, "metric": metric_of(data.task).name,
                    "controls": controls(model, Path(folder)), "searched": searched(model, recipe, data, Path(folder)),
                }
            )  # fmt: skip
        print(run.path, rows[-1]["searched"], flush=True)
        write_text(given.out, json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
