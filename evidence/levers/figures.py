"""What the experiments of this folder share: digits in three parts, small networks, tuning, kept figures."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from trimtab.files import write_text

FOLDER = Path(__file__).parents[2] / "docs" / "evidence"
TUNING = (100, 101)
"""Seeds on whose validation parts settings are chosen; none of them is reported."""
Row = dict[str, float]
T = TypeVar("T")


class Digits(NamedTuple):
    """Images (examples, 64) in 0..1 and labels of scikit-learn's digits."""

    train: tuple[Tensor, Tensor]
    validation: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]


def digits(seed: int, train: int = 1000, validation: int = 300) -> Digits:
    """Parts drawn anew by each seed; what is left over is the test part."""
    from sklearn.datasets import load_digits

    found = load_digits()
    order = torch.randperm(len(found.data), generator=torch.Generator().manual_seed(seed))
    images, labels = torch.tensor(found.data, dtype=torch.float32)[order] / 16, torch.tensor(found.target)[order]
    ends = (0, train, train + validation, len(order))
    parts = [(images[a:b], labels[a:b]) for a, b in itertools.pairwise(ends)]
    return Digits(*parts)


def perceptron(*sizes: int, active: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    """Linear layers of these sizes with the activation between them."""
    layers: list[nn.Module] = []
    for a, b in itertools.pairwise(sizes):
        layers += [nn.Linear(a, b), active()]
    return nn.Sequential(*layers[:-1])


@torch.no_grad()
def accuracy(outputs: Tensor, labels: Tensor) -> float:
    """Share of labels that the largest logit tells."""
    return (outputs.argmax(1) == labels).float().mean().item()


def fit(
    net: nn.Module,
    data: tuple[Tensor, Tensor],
    steps: int,
    lr: float,
    seed: int,
    batch: int = 64,
    loss: Callable[[Tensor, Tensor], Tensor] = nn.functional.cross_entropy,
) -> nn.Module:
    """Adam on batches drawn with repetition."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(net.parameters(), lr=lr)
    for _ in range(steps):
        rows = torch.randint(len(data[0]), (batch,), generator=generator)
        optimizer.zero_grad()
        loss(net(data[0][rows]), data[1][rows]).backward()
        optimizer.step()
    return net


def best(choices: Sequence[T], score: Callable[[T, int], float]) -> T:
    """The choice with the highest mean score over the seeds of `TUNING`; of equal ones the first."""
    means = [sum(score(choice, seed) for seed in TUNING) / len(TUNING) for choice in choices]
    return choices[means.index(max(means))]


def file_of(name: str) -> Path:
    """Where the figures of an experiment are kept."""
    return FOLDER / f"levers-{name}.json"


def measure(name: str, figures: Callable[[int], Row], seeds: int = 5) -> None:
    """Measure so many seeds from 0 on, keep the figures, the CPU seconds and what was chosen, print the means."""
    begun = time.process_time()
    rows = [figures(seed) for seed in range(seeds)]
    kept = {"cpu_seconds": round(time.process_time() - begun), "rows": rows}
    write_text(file_of(name), json.dumps(kept, indent=1) + "\n")
    for key in rows[0]:
        print(f"{key}: {' '.join(f'{row[key]:.4g}' for row in rows)}", flush=True)
    print(f"{name}: {kept['cpu_seconds']} CPU seconds")


def rows_of(name: str) -> list[Row]:
    """The kept figures, one row a seed."""
    found: list[Row] = json.loads(file_of(name).read_text(encoding="utf-8"))["rows"]
    return found
