"""What a sweep over sparsities costs: `sweep` against a deepcopy and `torch.nn.utils.prune` per sparsity.

ResNet-18 (11 million weights), 8 sparsities, global magnitude; CPU time of both ways in turns, one thread. Both give the same
pruned networks. Run: `python benchmarks/sweep.py`
"""

from __future__ import annotations

import copy
import statistics
import time

import torch
from harness import record
from torch import Tensor, nn
from torch.nn.utils import prune

from trimtab.models import create
from trimtab.pruning import sweep

SPARSITIES = (0.3, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98)
TURNS = 2


def layers(model: nn.Module) -> list[tuple[nn.Module, str]]:
    return [(m, "weight") for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]


def by_torch(model: nn.Module, sparsity: float) -> nn.Module:
    pruned = copy.deepcopy(model)
    chosen = layers(pruned)
    prune.global_unstructured(chosen, prune.L1Unstructured, amount=sparsity)
    for module, name in chosen:
        prune.remove(module, name)
    return pruned


def weights(model: nn.Module) -> list[Tensor]:
    return [module.weight for module, _ in layers(model)]


def differing_beyond_ties(model: nn.Module, others: list[nn.Module]) -> int:
    """Weights pruned by one way alone that do not tie with the threshold, over all sparsities."""
    dense = [weight.detach().clone() for weight in weights(model)]
    count = 0
    for pruned, other in zip(sweep(model, SPARSITIES), others, strict=True):
        threshold = next(iter(pruned.thresholds.values()))
        for ours, theirs, before in zip(weights(model), weights(other), dense, strict=True):
            count += int(((ours != theirs) & (before.abs() != threshold)).sum())
    return count


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = create("resnet18", num_classes=10)
    ours: list[float] = []
    theirs: list[float] = []
    by_torch(model, 0.5)  # warms up
    for _ in range(TURNS):
        start = time.process_time()
        for _ in sweep(model, SPARSITIES):
            pass
        middle = time.process_time()
        others = [by_torch(model, sparsity) for sparsity in SPARSITIES]
        ours.append(middle - start)
        theirs.append(time.process_time() - middle)
    differing = differing_beyond_ties(model, others)
    assert differing == 0
    ratio = statistics.median(theirs) / statistics.median(ours)
    record(
        "sweep",
        [
            {
                "question": "8 sparsities of ResNet-18 against deepcopy and torch prune for each",
                "ratio": ratio,
                "bar": ">= 20x",
                "met": ratio >= 20,
                "seconds": statistics.median(ours),
                "torch_seconds": statistics.median(theirs),
                "masks_differing_beyond_ties": differing,
            }
        ],
    )


if __name__ == "__main__":
    main()
