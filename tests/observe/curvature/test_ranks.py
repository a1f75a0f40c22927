"""Several processes with a part of the data each measure what one process measures on all of it."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from tests.distributed import on_two_ranks
from tests.observe.curvature.networks import CROSS_ENTROPY, labels, network
from trimtab.observe.curvature import (
    GaussNewton,
    Hessian,
    Objective,
    sharpness,
    spectral_density,
    top_eigenvalues,
    trace,
)
from trimtab.observe.landscape import random_directions, section


def doubles(values: Any) -> torch.Tensor:
    """Of Python's numbers as they are: float32 would round two that differ in the last place to two that differ by 1e-7."""
    return torch.tensor(values, dtype=torch.float64)


def measured(rank: int, world: int, folder: str = "") -> dict[str, Any]:
    net, inputs = network("batch norm")
    mine = slice(0, 12) if world == 1 else (slice(0, 5), slice(5, 12))[rank]
    model = nn.parallel.DistributedDataParallel(net) if world > 1 else net
    results: dict[str, Any] = {}
    for reduction in ("mean", "sum"):
        objective = Objective(model, nn.CrossEntropyLoss(reduction=reduction), (inputs[mine], labels()[mine]))
        hessian = Hessian(objective)
        results[reduction] = [
            hessian @ torch.ones(hessian.size, dtype=torch.float64),
            doubles(top_eigenvalues(hessian, 2, tolerance=1e-8).values),
        ]
        results[f"{reduction} samples"] = hessian.setting.samples
    mine = slice(0, 12) if world == 1 else (slice(0, 8), slice(8, 12))[rank]
    batches = [(inputs[mine][i : i + 4], labels()[mine][i : i + 4]) for i in range(0, len(inputs[mine]), 4)]
    objective = Objective(model, CROSS_ENTROPY, batches)  # two batches here, one there
    results["many"] = [
        GaussNewton(objective) @ torch.ones(objective.size, dtype=torch.float64),
        doubles([trace(Hessian(objective), 9).value, spectral_density(Hessian(objective), 2, 4).mean]),
        doubles([sharpness(objective, steps=2).value]),
        doubles(section(objective, random_directions(objective, 1), points=3).losses),
    ]
    return results


def test_two_ranks() -> None:
    alone = measured(0, 1)
    for results in on_two_ranks(measured):
        assert results.keys() == alone.keys()
        for key, expected in alone.items():
            if isinstance(expected, list):
                for one, other in zip(results[key], expected, strict=True):
                    torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-10)
            else:
                assert results[key] == expected == 12


def test_the_process_group_is_what_adds() -> None:
    """Without the sum over ranks, half the data gives another result: the test above can fail."""
    net, inputs = network("batch norm")
    whole, half = (
        Hessian(Objective(net, CROSS_ENTROPY, (inputs[s], labels()[s]))) for s in (slice(0, 12), slice(0, 5))
    )
    vector = torch.ones(whole.size, dtype=torch.float64)
    assert ((whole @ vector) - (half @ vector)).abs().max() > 1e-3
