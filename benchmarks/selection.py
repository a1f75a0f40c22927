"""What exact global selection costs: `one_shot` against `torch.nn.utils.prune.global_unstructured`.

Float32 weights in the shapes of ResNet-50 (23 million) and of 14 Transformer blocks of width 768 (99 million); 90 % removed
by magnitude over all layers; one thread. CPU time in turns (torch's way once at 99 million). Memory is the greatest growth of
the process over the bytes of the weights, each way in a process of its own. Run: `python benchmarks/selection.py`
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from harness import peak_extra_bytes, record
from torch import Tensor, nn
from torch.nn.utils import prune

from trimtab.models import create
from trimtab.pruning import one_shot

SPARSITY = 0.9
REPEATS = {"resnet50": 3, "transformer": 1}


def network(name: str) -> nn.Module:
    torch.manual_seed(0)
    if name == "resnet50":
        return create("resnet50", num_classes=1000)
    width = 768
    shapes = [(3 * width, width), (width, width), (4 * width, width), (width, 4 * width)] * 14
    return nn.ModuleList([nn.Linear(inputs, outputs, bias=False) for outputs, inputs in shapes])


def layers(model: nn.Module) -> list[tuple[str, nn.Module]]:
    return [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(weight := getattr(module, "weight", None), Tensor) and weight.ndim > 1
    ]


def torchs_way(model: nn.Module) -> None:
    prune.global_unstructured([(m, "weight") for _, m in layers(model)], prune.L1Unstructured, amount=SPARSITY)


def memory(name: str, way: str) -> float:
    """Peak growth over the bytes of the prunable weights."""
    model = network(name)
    weights = sum(module.weight.numel() for _, module in layers(model))
    call: Callable[[], Any] = (lambda: torchs_way(model)) if way == "torch" else (lambda: one_shot(model, SPARSITY))
    return peak_extra_bytes(call) / (4 * weights)


def memory_of_own_process(name: str, way: str) -> float:
    command = [sys.executable, __file__, "--memory", name, way]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])


def compare(name: str) -> dict[str, Any]:
    model = network(name)
    dense = {label: module.weight.detach().clone() for label, module in layers(model)}
    ours: list[float] = []
    theirs: list[float] = []
    among_ties = beyond_ties = 0
    one_shot(model, SPARSITY).undo()
    for turn in range(max(3, REPEATS[name])):
        start = time.process_time()
        pruned = one_shot(model, SPARSITY)
        ours.append(time.process_time() - start)
        pruned.undo()
        if turn < REPEATS[name]:
            start = time.process_time()
            torchs_way(model)
            theirs.append(time.process_time() - start)
            for label, module in layers(model):
                other = module.weight_mask.bool() != pruned.masks[f"{label}.weight"]
                # Only weights that tie with the threshold may be chosen otherwise.
                ties = int((dense[label][other].abs() == pruned.thresholds[f"{label}.weight"]).sum())
                among_ties += ties
                beyond_ties += int(other.sum()) - ties
                prune.remove(module, "weight")
                with torch.no_grad():
                    module.weight.copy_(dense[label])
        assert all(torch.equal(module.weight, dense[label]) for label, module in layers(model))
    assert beyond_ties == 0
    own, other_memory = memory_of_own_process(name, "ours"), memory_of_own_process(name, "torch")
    ratio = statistics.median(theirs) / statistics.median(ours)
    return {
        "question": f"global selection of 90 % of {pruned.prunable:,} float32 weights ({name}) against torch prune",
        "ratio": ratio,
        "bar": ">= 10x less CPU time",
        "met": ratio >= 10,
        "memory_over_weights": own,
        "memory_bar": "<= 2.0",
        "memory_met": own <= 2.0,
        "torch_memory_over_weights": other_memory,
        "seconds": statistics.median(ours),
        "torch_seconds": statistics.median(theirs),
        "masks_differing_beyond_ties": beyond_ties,
        "masks_differing_among_ties": among_ties,
    }


def main() -> None:
    torch.set_num_threads(1)
    if len(sys.argv) == 4 and sys.argv[1] == "--memory":
        print(memory(sys.argv[2], sys.argv[3]))
        return
    record("selection", [compare(name) for name in REPEATS])


if __name__ == "__main__":
    main()
