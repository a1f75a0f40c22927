"""What runs leave and go on from: recipes, checkpoints, networks, sparse files, tables, summaries."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch

from tests.fuzz.running import Kind
from tests.report.factory import make_summary
from trimtab.deploy import load_sparse, save_sparse
from trimtab.runs.checkpoint import (
    load_checkpoint,
    load_network,
    save_checkpoint,
    save_network,
)
from trimtab.runs.recipe import Recipe, load_recipe
from trimtab.runs.run_folder import RunFolder
from trimtab.studies.summary import Summary
from trimtab.studies.weights.assemble import assemble, kept_measurements
from trimtab.tables.parts import read_table


def _network() -> torch.nn.Module:
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.BatchNorm1d(5))
    with torch.no_grad():
        network[0].weight.masked_fill_(torch.rand(5, 6) < 0.7, 0.0)
    return network


def _same(state: dict[str, Any]) -> None:
    """No bit of a tensor may differ: what was altered is refused."""
    whole = _network().state_dict()
    assert sorted(state) == sorted(whole)
    assert all(torch.equal(state[name], whole[name]) for name in whole)


def _recipe(folder: Path) -> Path:
    (folder / "r.yaml").write_text(
        "name: own\nmethod: var\nseed: 1\nepochs: 3\noptimizer: sgd\nsgd:\n  lr: 1e-2\n  nesterov: true\n"
        "data: {name: digits, root: null}\n"
        "var:\n  strength: 1.0e-5\n  form: variance\npruning:\n  sparsities: [0.5, 0.9]\ntransforms: [centralize]\ntrack: []\n"
    )
    return folder / "r.yaml"


def _checkpoint(folder: Path) -> Path:
    save_checkpoint(folder / "c.safetensors", {"model": _network().state_dict(), "rows": [{"a": 1.5}, ("x", None)]})
    return folder / "c.safetensors"


def _network_file(folder: Path) -> Path:
    save_network(folder / "model.safetensors", _network())
    return folder / "model.safetensors"


def _read_network(folder: Path) -> dict[str, Any]:
    network = _network()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
    load_network(folder / "model.safetensors", network)
    return network.state_dict()


def _sparse(folder: Path) -> Path:
    save_sparse(_network(), folder / "s.safetensors", metadata={"a": "b"})
    return folder / "s.safetensors"


def _run_folder(folder: Path) -> list[Path]:
    """A finished and pruned run of a few seconds."""
    from trimtab.runs.training import train
    from trimtab.studies.prune_run import prune_run

    recipe = Recipe().with_settings({
        "epochs": 1, "data.limit_train": 320, "track": ["gradients"], "track_every": 2,
        "pruning.sparsities": [0.5], "pruning.controls": False, "pruning.recalibrate_batches": 1,
    })  # fmt: skip
    prune_run(train(recipe, folder))
    (folder / "measurements.json").write_text('{"costs": [], "latencies": []}')
    return [
        folder / name for name in ("run.json", "pruning-test.json", "metrics.jsonl", "measurements.json", "recipe.yaml")
    ]


def _assembled(folder: Path) -> Summary:
    run = RunFolder(folder)
    run.metrics()
    costs, latencies = kept_measurements(folder)
    return assemble([run], folder, costs=costs, latencies=latencies)


def _plausible(summary: Any) -> None:
    assert all(0 <= row.sparsity <= 1 for row in summary.rows)


def _summary(folder: Path) -> Path:
    make_summary(("sgd", "var")).write(folder / "summary.json")
    return folder / "summary.json"


def _tables(folder: Path) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table({"step": list(range(40)), "layer": ["a", "b"] * 20, "mean": [math.pi] * 40})
    (folder / "t").mkdir()
    pq.write_table(table, folder / "t" / "part-00000000.parquet", compression="zstd")
    return folder / "t" / "part-00000000.parquet"


KINDS = [
    Kind("recipe", _recipe, lambda folder: load_recipe(folder / "r.yaml")),
    Kind("checkpoint", _checkpoint, lambda folder: load_checkpoint(folder / "c.safetensors")["model"], _same),
    Kind("network", _network_file, _read_network, _same),
    Kind("sparse", _sparse, lambda folder: load_sparse(folder / "s.safetensors"), _same),
    Kind("run-folder", _run_folder, _assembled, _plausible, short=80),
    Kind("summary", _summary, lambda folder: Summary.read(folder / "summary.json"), short=80),
    Kind("table", _tables, lambda folder: read_table(folder / "t")),
]
