"""Pruning once with calibration data: a small language model, what other runtimes make of zeros, what the solver takes.

python evidence/sparsity_evidence.py text RUNS --root TEXT     # networks of evidence/sparsity/README.md
python evidence/sparsity_evidence.py runtimes                  # latency in ONNX Runtime, OpenVINO (where installed) and PyTorch
python evidence/sparsity_evidence.py solver                    # time and memory of SparseGPT
python evidence/sparsity_evidence.py wanda                     # passes, time and memory of Wanda on 100 M weights
python evidence/sparsity_evidence.py tables                    # the figures into the page
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from evidence_page import fill, spread, table
from torch import nn
from torch.profiler import ProfilerActivity, profile

from trimtab.deploy import CsrLinear, export_onnx, save_macko, save_sparse
from trimtab.files import write_text
from trimtab.parameters import Rule
from trimtab.pruning import Pruned, Wanda, one_shot, owl, sparse_gpt
from trimtab.runs.evaluation import evaluate
from trimtab.runs.loading import batches_of, load_data, trained_model
from trimtab.runs.run_folder import RunFolder
from trimtab.studies.statistics import estimate, paired_difference

FIGURES = Path(__file__).parent.parent / "docs" / "evidence" / "sparsity.json"
LAYERS = Rule(include=("layers.*",), frozen=True)
METHODS = ("magnitude", "wanda", "sparse_gpt", "owl, wanda", "owl, sparse_gpt")
POINTS = ("50 %", "60 %", "2:4")
TEXTS = 128


def kept() -> dict[str, Any]:
    return json.loads(FIGURES.read_text(encoding="utf-8")) if FIGURES.is_file() else {}


def keep(part: str, found: Any) -> None:
    write_text(FIGURES, json.dumps(kept() | {part: found}, indent=1) + "\n")


def pruned_by(method: str, point: str, model: nn.Module, data: Sequence[Any]) -> Pruned:
    """Prune the linear layers inside the transformer's layers."""
    how: dict[str, Any] = {"rule": LAYERS}
    sparsity: Any = None
    if point == "2:4":
        how["pattern"] = point
    else:
        sparsity = float(point.split()[0]) / 100
    if method.startswith("owl"):
        sparsity = owl(model, data, sparsity, rule=LAYERS)
    if method.endswith("sparse_gpt"):
        return sparse_gpt(model, data, sparsity, **how)
    score: Any = Wanda(data) if method.endswith("wanda") else "magnitude"
    return one_shot(model, sparsity, score=score, scope="row" if method.endswith("wanda") else "layer", **how)


def text(runs: Path, root: str) -> None:
    """Every method at every point of each network; networks that are in the figures already are left."""
    rows = kept().get("text", [])
    for place in sorted(runs.glob("seed*")):
        folder = RunFolder(place)
        if not folder.finished or folder.recipe.seed in {row["seed"] for row in rows}:
            continue
        recipe = folder.recipe
        recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update={"root": root})})
        data = load_data(recipe)
        model = trained_model(folder, data).eval()
        sample = batches_of(recipe, data, "train").sample(TEXTS // recipe.data.batch_size, recipe.seed)
        calibration = [batch[0] if isinstance(batch, tuple | list) else batch for batch in sample]

        def row(
            method: str, point: str, net: nn.Module, pruned: Pruned | None, own: Any = (recipe, data)
        ) -> dict[str, Any]:
            quality = evaluate(net, batches_of(own[0], own[1], "test"), own[1].num_classes)
            with tempfile.TemporaryDirectory() as scratch:
                stored = save_sparse(net, Path(scratch) / "net.safetensors")
                packed = save_macko(net, Path(scratch) / "net.macko")
            return {
                "seed": own[0].seed, "method": method, "point": point, "bits_per_byte": quality.bits_per_byte,
                "perplexity": quality.perplexity, "sparsity": 0.0 if pruned is None else pruned.sparsity,
                "sparse_bytes": stored.sparse_bytes, "dense_bytes": stored.dense_bytes, "macko_bytes": packed.macko_bytes,
            }  # fmt: skip

        found = [row("dense", "dense", model, None)]
        for point in POINTS:
            for method in METHODS:
                if point == "2:4" and method.startswith("owl"):
                    continue
                pruned = pruned_by(method, point, model, calibration)
                found.append(row(method, point, model, pruned))
                print(found[-1], flush=True)
                pruned.undo()
        rows += found
        keep("text", rows)


def network(sparsity: float, size: int = 1024) -> nn.Sequential:
    """Three linear layers, pruned by magnitude."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(size, size), nn.ReLU(), nn.Linear(size, size), nn.ReLU(), nn.Linear(size, size))
    if sparsity:
        one_shot(net, sparsity)
    return net.eval()


def runtimes() -> None:
    """Milliseconds of the processor for one pass, one thread; each runtime against itself with the dense network."""
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    versions: dict[str, str] = {"torch": torch.__version__}
    for batch in (1, 64):
        calls: dict[tuple[str, float], Callable[[], object]] = {}
        inputs = torch.randn(batch, 1024)
        with tempfile.TemporaryDirectory() as scratch:
            for sparsity in (0.0, 0.5, 0.9, 0.95):
                net = network(sparsity)
                file = Path(scratch) / f"{sparsity}.onnx"
                export_onnx(net, file, inputs)
                calls["PyTorch, dense layers", sparsity] = _torch(net, inputs)
                if sparsity:
                    layers = [CsrLinear(one) if isinstance(one, nn.Linear) else one for one in net]
                    calls["PyTorch, CsrLinear", sparsity] = _torch(nn.Sequential(*layers), inputs)
                calls["ONNX Runtime", sparsity] = _onnx(file, inputs, versions)
                if importlib.util.find_spec("openvino"):
                    calls["OpenVINO", sparsity] = _openvino(file, inputs, versions)
            times = _processor_seconds(list(calls.values()))
        for (runtime, sparsity), seconds in zip(calls, times, strict=True):
            rows.append({"runtime": runtime, "batch": batch, "sparsity": sparsity, "milliseconds": 1e3 * seconds})
    keep("runtimes", {"versions": versions, "cores": os.cpu_count(), "rows": rows})


def _processor_seconds(calls: Sequence[Callable[[], object]], rounds: int = 9, each: float = 0.02) -> list[float]:
    """The least over rounds in which every call has its turn: what a busy machine takes away is not counted."""

    def spent(call: Callable[[], object], times: int) -> float:
        begin = time.process_time()
        for _ in range(times):
            call()
        return (time.process_time() - begin) / times

    for call in calls:
        call()
    times = [max(1, round(each / max(spent(call, 5), 1e-6))) for call in calls]
    found = [[spent(call, count) for call, count in zip(calls, times, strict=True)] for _ in range(rounds)]
    return [min(column) for column in zip(*found, strict=True)]


def _torch(net: nn.Module, inputs: torch.Tensor) -> Callable[[], object]:
    def call() -> object:
        with torch.no_grad():
            return net(inputs)

    return call


def _onnx(file: Path, inputs: torch.Tensor, versions: dict[str, str]) -> Callable[[], object]:
    import onnxruntime

    versions["onnxruntime"] = onnxruntime.__version__
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    fed = {session.get_inputs()[0].name: inputs.numpy()}
    return lambda: session.run(None, fed)


def _openvino(file: Path, inputs: torch.Tensor, versions: dict[str, str]) -> Callable[[], object]:
    import openvino

    versions["openvino"] = openvino.__version__.split("-")[0]
    options = {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32"}
    request = openvino.Core().compile_model(str(file), "CPU", options).create_infer_request()
    given = inputs.numpy()
    return lambda: request.infer([given])


def solver() -> None:
    """SparseGPT of layers of 1024 inputs on one core: seconds of the processor, and the most memory that it needs.

    The copy for undo is not counted; the masks, a byte for each weight, are.
    """
    torch.set_num_threads(1)
    rows = []
    cases: list[tuple[int, dict[str, Any]]] = [
        (outputs, how) for outputs in (1024, 4096) for how in ({"sparsity": 0.5}, {"pattern": "2:4"})
    ]
    for outputs, how in cases:
        seconds = []
        for seed in range(5):
            torch.manual_seed(seed)
            net, data = nn.Linear(1024, outputs, bias=False), [torch.randn(64, 1024) for _ in range(20)]
            begin = time.process_time()
            sparse_gpt(net, data, by="layer", **how)
            seconds.append(time.process_time() - begin)
        net = nn.Linear(1024, outputs, bias=False)
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
            sparse_gpt(net, data, by="layer", **how)
        events = [event for event in seen.profiler.kineto_results.events() if event.name() == "[memory]"]
        peak = max(accumulate(event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())))
        gram = 4 * 1024**2
        rows.append(
            {
                "outputs": outputs,
                "how": next(iter(how.values())),
                "seconds": sorted(seconds)[2],
                "grams": (peak - 4 * net.weight.numel()) / gram,
            }
        )
        print(rows[-1], flush=True)
    keep("solver", rows)


def language_model(layers: int) -> nn.Module:
    """Weights as they are drawn: 98.6 million with 12 layers."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(vocab_size=16_384, n_positions=256, n_embd=768, n_layer=layers, n_head=12, use_cache=False)
    model: nn.Module = GPT2LMHeadModel(config).eval()
    return model


def _peak(call: Callable[[], object]) -> int:
    """Most bytes that are held at once beyond those that were there."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        kept = call()
    events = [event for event in seen.profiler.kineto_results.events() if event.name() == "[memory]"]
    del kept
    return int(max(accumulate(event.nbytes() for event in sorted(events, key=lambda event: event.start_ns()))))


def wanda() -> None:
    """Wanda at 50 %: passes through the layers, seconds of the processor beside those of a pass, memory by layers."""
    torch.set_num_threads(1)
    data = list(torch.randint(16_384, (4, 1, 128), generator=torch.Generator().manual_seed(1)))
    rule = Rule(include=("transformer.h.*",), frozen=True)
    model = language_model(12)
    layers = [module for name, module in model.named_modules() if type(module).__name__ == "Conv1D"]
    calls: list[int] = []
    for layer in layers:
        layer.register_forward_pre_hook(lambda *_: calls.append(1))

    def a_pass(net: Any) -> None:
        with torch.no_grad():
            for batch in data:
                net.transformer(batch)

    def pruned(net: nn.Module, **how: Any) -> Pruned:
        score = Wanda(data, forward=lambda net, batch: net.transformer(batch), **how)  # type: ignore[operator]
        return one_shot(net, 0.5, score=score, rule=rule)

    a_pass(model)
    found: dict[str, Any] = {"weights": sum(parameter.numel() for parameter in model.parameters()), "tokens": 512}
    for name, how in (("one pass", {"propagate": False}), ("layer by layer", {})):
        begin = time.process_time()
        a_pass(model)
        middle = time.process_time()
        calls.clear()
        found["chosen"] = (done := pruned(model, **how)).prunable
        found[name] = {
            "passes": len(calls) / (len(layers) * len(data)),
            "seconds": time.process_time() - middle,
            "seconds of a pass": middle - begin,
        }
        done.undo()
        print(name, found[name], flush=True)
    held: dict[str, int] = {}
    for count in (3, 6):
        net = language_model(count)
        weights = sum(
            p.numel() for name, p in net.named_parameters() if name.startswith("transformer.h.") and p.ndim > 1
        )
        held[str(count)] = _peak(lambda net=net: pruned(net)) - 5 * weights  # type: ignore[misc]
    found["bytes beside copy and masks, by layers"] = held
    print(found, flush=True)
    keep("wanda", found)


def _text_tables(rows: list[dict[str, Any]]) -> dict[str, str]:
    """Quality and bytes at each point, and what is claimed of the order of methods."""
    seeds = sorted({row["seed"] for row in rows})

    def of(method: str, point: str, field: str) -> dict[int, float]:
        return {row["seed"]: row[field] for row in rows if (row["method"], row["point"]) == (method, point)}

    def cell(method: str, point: str) -> str:
        bits = of(method, point, "bits_per_byte")
        return spread(estimate(bits.values()), digits=3) if bits else ""

    dense = estimate(of("dense", "dense", "bits_per_byte").values())
    lines = [["dense", spread(dense), "", ""]]
    lines += [[method, *(cell(method, point) for point in POINTS)] for method in METHODS]
    perplexity = [
        ["dense", f"{sum(of('dense', 'dense', 'perplexity').values()) / len(seeds):.2f}", "", ""],
        *(
            [method, *(_mean(of(method, point, "perplexity")) for point in POINTS)]
            for method in METHODS
        ),
    ]  # fmt: skip
    sizes = [
        [
            "dense",
            *[
                "{:,.0f}".format(next(iter(of("dense", "dense", field).values())))
                for field in ("dense_bytes", "macko_bytes")
            ],
        ]
    ]
    sizes += [
        [
            point,
            *[
                f"{sum(of('wanda', point, field).values()) / len(seeds):,.0f}"
                for field in ("sparse_bytes", "macko_bytes")
            ],
        ]
        for point in POINTS
    ]
    contrasts = []
    for own, other in (
        ("sparse_gpt", "wanda"),
        ("wanda", "magnitude"),
        ("owl, wanda", "wanda"),
        ("owl, sparse_gpt", "sparse_gpt"),
    ):
        cells = []
        for point in POINTS:
            pairs = [sorted(of(method, point, "bits_per_byte").items()) for method in (own, other)]
            cells.append(spread(paired_difference(*pairs), signed=True) if all(pairs) else "")
        contrasts.append([f"{own} - {other}", *cells])
    head = [f"bits per byte, {len(seeds)} seeds", *POINTS]
    return {
        "text": table(head, lines),
        "perplexity": table(["perplexity of a byte, mean", *POINTS], perplexity),
        "bytes": table(["Wanda's network", "sparse file, float32", "MACKO file, float16"], sizes),
        "contrasts": table(["difference in bits per byte, paired by seed", *POINTS], contrasts),
    }


def _wanda_table(found: dict[str, Any]) -> str:
    """Passes, and processor seconds beside those of a pass."""
    lines = []
    for name, how in (("one pass", "`propagate=False`"), ("layer by layer", "layer by layer (default)")):
        own = found[name]
        ratio = own["seconds"] / own["seconds of a pass"]
        lines.append([how, f"{own['passes']:.1f}", f"{own['seconds']:.1f}", f"{ratio:.1f}"])
    head = [
        f"{found['chosen']:,} weights at 50 %",
        "passes through the layers",
        "processor seconds",
        "of a pass, times",
    ]
    return table(head, lines)


def _mean(found: dict[int, float]) -> str:
    return f"{sum(found.values()) / len(found):.2f}" if found else ""


def tables() -> None:
    """The figures of the JSON file into the page."""
    found = kept()
    blocks = _text_tables(found["text"])
    rows = found["runtimes"]["rows"]
    names = list(dict.fromkeys(row["runtime"] for row in rows))
    lines = []
    for batch in (1, 64):
        for name in names:
            times = {
                row["sparsity"]: row["milliseconds"] for row in rows if (row["runtime"], row["batch"]) == (name, batch)
            }
            base = times.get(0.0) or next(
                row["milliseconds"]
                for row in rows
                if (row["runtime"], row["batch"], row["sparsity"]) == (names[0], batch, 0.0)
            )
            cells = [f"{times[one]:.2f} ({base / times[one]:.2f}x)" if one in times else "" for one in (0.5, 0.9, 0.95)]
            lines.append([name, str(batch), f"{times[0.0]:.2f}" if 0.0 in times else "", *cells])
    blocks["runtimes"] = table(
        ["milliseconds (times faster than dense)", "batch", "dense", "50 %", "90 %", "95 %"], lines
    )
    lines = [
        [f"{row['outputs']:,} x 1,024", str(row["how"]), f"{row['seconds']:.2f}", f"{row['grams']:.2f}"]
        for row in found["solver"]
    ]
    blocks["solver"] = table(["layer", "one core", "seconds", "Gram matrices beside the copy for undo"], lines)
    if "wanda" in found:
        blocks["wanda"] = _wanda_table(found["wanda"])
    lines = []
    for row in found["gpu"]["rows"]:
        ratio = [
            f"{row[form][0]:,} -> {row[form][1]:,} ({row[form][0] / row[form][1]:.2f}x)" for form in ("eager", "graph")
        ]
        lines.append([f"{row['size']:,}", f"{row['rows']:,}", *ratio])
    blocks["gpu"] = table(["layers of size", "rows", "called, microseconds", "as a CUDA graph, microseconds"], lines)
    assert all(math.isfinite(row["bits_per_byte"]) for row in found["text"])
    fill(FIGURES.with_suffix(".md"), blocks)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["text", "runtimes", "solver", "wanda", "tables"])
    parser.add_argument("runs", nargs="?", type=Path)
    parser.add_argument("--root", default="")
    given = parser.parse_args()
    if given.part == "text":
        if given.runs is None:
            parser.error("text needs the folder of the runs")
        text(given.runs, given.root)
    else:
        {"runtimes": runtimes, "solver": solver, "wanda": wanda, "tables": tables}[given.part]()


if __name__ == "__main__":
    main()
