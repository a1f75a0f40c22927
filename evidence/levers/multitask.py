"""Combiners on two digits laid over each other; SharedOrOwn; occurrence weights.

python evidence/levers/multitask.py      # five seeds, a CPU minute -> docs/evidence/levers-multitask.json
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from figures import Row, accuracy, best, digits, measure, perceptron
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from trimtab.losses import occurrence_weights
from trimtab.multitask import (
    CAGrad,
    Combine,
    Combiner,
    EqualNorm,
    GCond,
    GradientDropout,
    PCGrad,
    SharedOrOwn,
    SimilarityMomentum,
)

RULES: dict[str, Callable[[], Combiner | None]] = {
    "sum": lambda: None,
    "pcgrad": PCGrad,
    "cagrad": CAGrad,
    "gcond": GCond,
    "gcond without conflicts": lambda: GCond(thresholds=(-1, -1, -1)),
    "sam-gs": SimilarityMomentum,
    "equal norm": EqualNorm,
    "gradient dropout": GradientDropout,
}
RATES = (0.001, 0.003, 0.01, 0.03)


def overlaid(data: tuple[Tensor, Tensor], seed: int) -> tuple[Tensor, Tensor]:
    """Each digit with another one over it, two pixels further down and right; both labels."""
    images, labels = data
    other = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    canvas = torch.zeros(len(images), 10, 10)
    canvas[:, :8, :8] = images.view(-1, 8, 8)
    below = torch.zeros_like(canvas)
    below[:, 2:, 2:] = images[other].view(-1, 8, 8)
    return torch.maximum(canvas, below).flatten(1), torch.stack([labels, labels[other]], 1)


class Two(nn.Module):
    """A narrow trunk and two heads."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(100, 24), nn.ReLU())
        self.heads = nn.ModuleList(nn.Linear(24, 10) for _ in range(2))

    def forward(self, x: Tensor) -> list[Tensor]:
        """Logits of both."""
        features = self.trunk(x)
        return [head(features) for head in self.heads]


def together(rule: str, rate: float, seed: int, share: float, *, tuning: bool) -> list[float]:
    """Accuracy of the two tasks after 400 steps; the second loss times `share`."""
    torch.manual_seed(seed)
    parts = digits(seed)
    inputs, labels = overlaid(parts.train, seed)
    net, generator = Two(), torch.Generator().manual_seed(seed)
    # GCond smooths by itself and is made for an optimizer without momentum (paper)
    betas = (0.0 if rule.startswith("gcond") else 0.9, 0.999)
    optimizer = torch.optim.Adam(net.parameters(), lr=rate, betas=betas)
    combiner = RULES[rule]()
    combine = None if combiner is None else Combine(net, combiner)
    for _ in range(400):
        rows = torch.randint(len(inputs), (64,), generator=generator)
        first, second = (cross_entropy(out, labels[rows, at]) for at, out in enumerate(net(inputs[rows])))
        optimizer.zero_grad()
        if combine is None:
            (first + share * second).backward()
        else:
            combine.backward([first, share * second])
        optimizer.step()
    inputs, labels = overlaid(parts.validation if tuning else parts.test, seed + 1)
    return [accuracy(out, labels[:, at]) for at, out in enumerate(net(inputs))]


@cache
def rate_of(rule: str, share: float) -> float:
    return best(RATES, lambda rate, seed: sum(together(rule, rate, seed, share, tuning=True)))


def shared_or_own(kind: str, seed: int, *, alike: bool) -> tuple[float, float]:
    """Mean accuracy of two tasks on 150 digits each, and the share of inputs whose weights are shared.

    Alike: one is told the digit, the other too. Unlike: the second one's pixels are shuffled, so that nothing fits both.
    """
    torch.manual_seed(seed)
    parts = digits(seed, train=300)
    order = torch.arange(64) if alike else torch.randperm(64)
    layer = SharedOrOwn(nn.Linear(64, 32), ("a", "b"))
    if kind != "learnt":
        layer.scores.data.fill_(0.0 if kind == "shared" else 1.0)
        layer.scores.requires_grad_(requires_grad=False)
    head = nn.Linear(32, 10)
    optimizer = torch.optim.Adam([*(p for p in layer.parameters() if p.requires_grad), *head.parameters()], lr=3e-3)
    tasks = {
        "a": (parts.train[0][:150], parts.train[1][:150]),
        "b": (parts.train[0][150:][:, order], parts.train[1][150:]),
    }
    for _ in range(300):
        optimizer.zero_grad()
        loss = sum(cross_entropy(head(layer(x, task=task).relu()), y) for task, (x, y) in tasks.items())
        (loss + layer.penalty()).backward()
        optimizer.step()
    x, y = parts.test
    found = [accuracy(head(layer(given, task=task).relu()), y) for task, given in (("a", x), ("b", x[:, order]))]
    return sum(found) / 2, layer.mask.mean().item()


def rare_targets(seed: int, *, weighted: bool) -> list[float]:
    """Test error of targets that 1000, 100 and 20 of 1000 examples hold, after 300 steps."""
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    teacher = perceptron(8, 16, 3, active=nn.Tanh)
    inputs = torch.randn(3000, 8, generator=generator)
    targets = teacher(inputs).detach()
    targets = (targets - targets.mean(0)) / targets.std(0)
    counts = torch.tensor([1000, 100, 20])
    held = torch.stack([torch.randperm(1000, generator=generator) < count for count in counts], 1).float()
    weights = occurrence_weights(counts).float() if weighted else torch.ones(3)
    net = perceptron(8, 32, 3, active=nn.Tanh)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    for _ in range(300):
        optimizer.zero_grad()
        errors = (net(inputs[:1000]) - targets[:1000]).square() * held
        ((errors * weights).sum() / held.sum()).backward()
        optimizer.step()
    with torch.no_grad():
        return (net(inputs[1000:]) - targets[1000:]).square().mean(0).tolist()


def figures(seed: int) -> Row:
    """What the table shows, of one seed."""
    found: Row = {}
    for rule in RULES:
        for name, share in (("even", 1.0), ("uneven", 0.02)):
            if share == 1 or rule in ("sum", "equal norm", "sam-gs"):
                scores = together(rule, rate_of(rule, share), seed, share, tuning=False)
                found |= {f"{rule} {name}": sum(scores) / 2, f"{rule} {name} worst": min(scores)}
                found[f"{rule} {name} rate"] = rate_of(rule, share)
    for kind in ("shared", "own", "learnt"):
        for name, alike in (("alike", True), ("unlike", False)):
            found[f"{kind} {name}"], found[f"{kind} {name} share"] = shared_or_own(kind, seed, alike=alike)
    for name, weighted in (("plain", False), ("weighted", True)):
        found |= {f"{name} target {at}": error for at, error in enumerate(rare_targets(seed, weighted=weighted))}
    return found


if __name__ == "__main__":
    measure("multitask", figures)
