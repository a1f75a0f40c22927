"""What `trimtab compress` finds, beside the same bits in all weights: python evidence/bytes/search.py LABEL=RUNS ... --out FILE

Also [--max-drop 1.0 | --like bytes.json] [--seeds ...] [--root DATA]. With --like the budget is what the file of 4 bits and
90 % zeros takes in that list of `table.py`, by method and seed, and its quality there is the other's. Else both may cost the
validation split the same drop: the uniform file is one of 4, 5 or 6 bits whose zeros are set by global magnitude; the most
zeros that hold the drop are found by halving, and the smallest of the three files counts. Test is measured once for each.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import io
import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from table import runs_to_do
from torch import nn

from trimtab.cli import main as trimtab
from trimtab.deploy import load_compact, save_compact
from trimtab.files import write_text
from trimtab.pruning import one_shot, recalibrate
from trimtab.pruning.recalibration import has_batch_norm
from trimtab.runs.evaluation import evaluate
from trimtab.runs.loading import batches_of, load_data, trained_model
from trimtab.runs.metric import metric_of
from trimtab.runs.recipe import Recipe
from trimtab.runs.run_folder import RunFolder

BITS = (4, 5, 6)
ZEROS = (0.0, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95)


def searched(run: RunFolder, asked: Sequence[str], root: str | None, scratch: Path) -> dict[str, Any]:
    """What the command says of the file that it chose."""
    words = ["compress", str(run.path), *asked, "--json", "--out", str(scratch / "searched.safetensors")]
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        if trimtab([*words, *(["--root", root] if root else [])]) != 0:
            raise SystemExit(f"the search of {run.path} failed")
    found = json.loads(printed.getvalue())
    return {
        "bytes": found["compact_bytes"], "dense": found["dense_bytes"], "test": found["test"]["after"],
        "test_before": found["test"]["before"], "validation": found["quality_after"],
        "validation_before": found["quality_before"],
        "rows": [[row["name"], row["bits"], round(row["sparsity"], 3)] for row in found["rows"]],
    }  # fmt: skip


def uniform(run: RunFolder, recipe: Recipe, drop: float, scratch: Path) -> dict[str, Any] | None:
    """The smallest file of the same bits in all weights that meets the drop; None where none does."""
    data = load_data(recipe)
    model, metric = trained_model(run, data), metric_of(data.task)
    calibration = batches_of(recipe, data, "train").sample(recipe.pruning.recalibrate_batches, recipe.seed)
    prepare: Callable[[nn.Module], object] | None = None
    if has_batch_norm(model):
        prepare = lambda network: recalibrate(network, calibration)  # noqa: E731

    def quality(network: nn.Module, split: str) -> float:
        found = evaluate(network, batches_of(recipe, data, split), data.num_classes)
        return metric.scale * float(getattr(found, metric.column))

    least = metric.gain(quality(model, "validation")) - drop
    best: dict[str, Any] | None = None
    for bits in BITS:

        def file(zeros: float, bits: int = bits) -> tuple[int, nn.Module]:
            pruned, path = copy.deepcopy(model), scratch / "uniform.safetensors"
            if zeros:
                one_shot(pruned, zeros)
            size = save_compact(pruned, path, bits=bits, prepare=prepare).compact_bytes
            load_compact(path, pruned)
            return size, pruned

        low, high = -1, len(ZEROS)
        while high - low > 1:
            middle = (low + high) // 2
            size, network = file(ZEROS[middle])
            if metric.gain(value := quality(network, "validation")) >= least:
                low = middle
                if best is None or size < best["bytes"]:
                    best = {
                        "bytes": size,
                        "bits": bits,
                        "zeros": ZEROS[middle],
                        "validation": value,
                        "network": network,
                    }
            else:
                high = middle
    if best is not None:
        best["test"] = quality(best.pop("network"), "test")
    return best


def like(file: Path, method: str, seed: int) -> dict[str, Any]:
    """The file of 4 bits and 90 % zeros of a classifier in a list of `table.py`."""
    rows = [
        row
        for own in json.loads(file.read_text()).values()
        for row in own
        if (row["method"], row["seed"]) == (method, seed)
    ]
    form = next(one for one in rows[0]["forms"] if (one["sparsity"], one["bits"]) == (0.9, 4))
    return {"bytes": form["bytes"], "bits": 4, "zeros": 0.9, "test": 100 * form["accuracy"]}


def main() -> None:
    """One document for all runs; those that it holds already are not done again."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+", metavar="LABEL=RUNS")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--max-drop", type=float, default=1.0, help="points of accuracy, or bits per byte")
    parser.add_argument(
        "--like", type=Path, metavar="FILE", help="a list of table.py whose file of 4 bits is the budget"
    )
    parser.add_argument("--seeds", type=int, nargs="*", help="these alone")
    parser.add_argument("--root", help="where the data lie, if not where the recipes say")
    given = parser.parse_args()
    rows = json.loads(given.out.read_text()) if given.out.is_file() else []
    for label, run, recipe in runs_to_do(given.runs, rows, given.seeds, given.root):
        with tempfile.TemporaryDirectory() as folder:
            row = {"method": label, "seed": recipe.seed, "recipe": recipe.name}
            if given.like is None:
                row["uniform"] = uniform(run, recipe, given.max_drop, Path(folder))
                asked = ["--max-drop", str(given.max_drop)]
            else:
                row["uniform"] = like(given.like, label, recipe.seed)
                asked = ["--budget", str(row["uniform"]["bytes"])]
            row["searched"] = searched(run, asked, given.root, Path(folder))
        rows.append(row)
        print(label, recipe.seed, row["searched"]["bytes"], (row["uniform"] or {}).get("bytes"), flush=True)
        write_text(given.out, json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
