"""Many workers: liars among ten, slow ones among 256, private gradients by differences and by groups.

python evidence/levers/workers.py      # ten seeds, two CPU minutes -> docs/evidence/levers-workers.json
"""

from __future__ import annotations

import math
from functools import cache
from itertools import product

import torch
from figures import Row, accuracy, best, digits, measure, perceptron
from torch import Tensor
from torch.nn.functional import cross_entropy

from trimtab.workers import (
    GradientDifference,
    GroupClip,
    Krum,
    Mean,
    Median,
    NearestNeighbourAverage,
    Rule,
    TrimmedMean,
    WorkerSimulation,
    coding_plan,
    simulate_stragglers,
)

WORKERS, LIARS = 10, 3
RULES: dict[str, Rule] = {
    "clean": Mean(),
    "mean": Mean(),
    "nearest": NearestNeighbourAverage(LIARS),
    "median": Median(LIARS),
    "trimmed": TrimmedMean(LIARS),
    "krum": Krum(LIARS),
}
N, SCHEMES = 256, ("gradient coding", "selective repetition", "multiplexed")
CODES = [(B, W, lam) for B in (1, 2, 3) for W in (B + 1, 2 * B + 1, 4 * B + 1) for lam in (4, 8, 16, 32, 48, 64)]
CLIENTS, STEPS, SIGMA = 50, 60, 0.3


def liars(name: str, rate: float, seed: int, *, tuning: bool) -> float:
    """Accuracy of the first worker's network after 100 steps of ten workers, three of whom turn their step round threefold."""
    torch.manual_seed(seed)
    parts = digits(seed)
    simulation = WorkerSimulation(
        perceptron(64, 32, 10), cross_entropy, WORKERS, RULES[name], rate, liars=0 if name == "clean" else LIARS
    )
    images, labels = (one.view(WORKERS, 100, *one.shape[1:]) for one in parts.train)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(100):
        rows = torch.randint(100, (32,), generator=generator)
        simulation.step(images[:, rows], labels[:, rows])
    part = parts.validation if tuning else parts.test
    return accuracy(simulation.model(0)(part[0]).nan_to_num(), part[1])


@cache
def rate_of(name: str) -> float:
    return best((0.1, 0.3, 1.0), lambda rate, seed: liars(name, rate, seed, tuning=True))


def private(kind: str, rate: float, clip: float, seed: int, *, tuning: bool) -> float:
    """Accuracy of softmax regression on sixteen principal components after 60 steps of 50 clients, each with noise of its own.

    Every step of every client is released with the noise multiplier SIGMA, by either way, so that both spend alike.
    """
    parts = digits(seed)
    mean = parts.train[0].mean(0)
    axes = torch.linalg.svd(parts.train[0] - mean, full_matrices=False).Vh[:16].T
    images, labels = (parts.train[0] - mean) @ axes, parts.train[1]
    restart = 1 if kind == "full" else 1000
    clients = [GradientDifference(clip, clip, SIGMA, SIGMA, restart, seed=100 * seed + at) for at in range(CLIENTS)]
    point = torch.zeros(17, 10)
    rows = torch.arange(len(images)).view(CLIENTS, -1)

    def logits(images: Tensor, point: Tensor) -> Tensor:
        return images @ point[:16] + point[16]

    for _ in range(STEPS):
        released = []
        for own, client in zip(rows, clients, strict=True):
            errors = logits(images[own], point).softmax(1)
            errors[torch.arange(len(own)), labels[own]] -= 1
            slope = torch.cat([images[own].T @ errors, errors.sum(0, keepdim=True)]) / len(own)
            released.append(client.step(slope, point))
        point = point - rate * torch.stack(released).mean(0)
    part = parts.validation if tuning else parts.test
    return accuracy(logits((part[0] - mean) @ axes, point), part[1])


@cache
def private_of(kind: str) -> tuple[float, float]:
    grid = list(product((0.03, 0.1, 0.3, 1.0), (0.3, 1.0)))
    return best(grid, lambda pair, seed: private(kind, *pair, seed, tuning=True))


def grouped(kind: str, clip: float, seed: int, *, tuning: bool) -> tuple[float, float]:
    """Accuracy after 150 private steps, and epsilon at delta 1e-4; one bound for all, or one for each layer, of one epsilon."""
    torch.manual_seed(seed)
    parts = digits(seed)
    net = perceptron(64, 32, 10)
    groups = {"first": ["0.weight", "0.bias"], "last": ["2.weight", "2.bias"]} if kind == "layers" else None
    count = 1 if groups is None else 2
    lever = GroupClip(net, groups, clip / math.sqrt(count), sigma=1.5 * math.sqrt(count), seed=seed)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.5, momentum=0.9)
    for _ in range(150):
        rows = (torch.rand(len(parts.train[0])) < 0.128).nonzero().flatten()
        optimizer.zero_grad()
        lever.backward(cross_entropy, parts.train[0][rows], parts.train[1][rows])
        optimizer.step()
    part = parts.validation if tuning else parts.test
    return accuracy(net(part[0]), part[1]), lever.epsilon(150, 0.128, 1e-4)


@cache
def clip_of(kind: str) -> float:
    return best((0.1, 0.3, 1.0), lambda clip, seed: grouped(kind, clip, seed, tuning=True)[0])


@cache
def code_of(scheme: str) -> tuple[int, int, int]:
    return best(CODES, lambda code, seed: -simulate_stragglers(N, *code, jobs=200, seed=seed)[scheme])


def figures(seed: int) -> Row:
    """What the table shows, of one seed."""
    found: Row = {}
    for name in RULES:
        found |= {f"{name} accuracy": liars(name, rate_of(name), seed, tuning=False), f"{name} rate": rate_of(name)}
    for scheme in SCHEMES:
        code = code_of(scheme)
        times = simulate_stragglers(N, *code, jobs=200, seed=seed)
        found[f"{scheme} time"] = times[scheme] / times["uncoded"]
        found |= {f"{scheme} {name}": value for name, value in zip(("B", "W", "lam"), code, strict=True)}
        found[f"{scheme} load"] = next(one.load for one in coding_plan(N, *code) if one.name == scheme)
    for kind in ("full", "differences"):
        rate, clip = private_of(kind)
        found |= {
            f"{kind} private": private(kind, rate, clip, seed, tuning=False),
            f"{kind} rate": rate,
            f"{kind} clip": clip,
        }
    for kind in ("one", "layers"):
        found[f"{kind} private accuracy"], found[f"{kind} epsilon"] = grouped(kind, clip_of(kind), seed, tuning=False)
        found[f"{kind} bound"] = clip_of(kind)
    return found


if __name__ == "__main__":
    measure("workers", figures, seeds=10)
