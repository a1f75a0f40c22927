"""Seven starts on CAGrad's toy of two losses, 20,000 steps of Adam at 1e-3, as in arXiv 2506.06130. Nothing is random.

python evidence/levers/valleys.py      # some CPU minutes -> docs/evidence/levers-valleys.json
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from figures import Row, measure
from torch import Tensor

from trimtab.multitask import CAGrad, Combiner, PCGrad, SimilarityMomentum

STARTS = ((-8, 5), (-3, 7.5), (0, 10), (3, 7.5), (8, 5), (-10, -2.5), (10, -2.5))
RULES: dict[str, Callable[[], Combiner | None]] = {
    "sum": lambda: None,
    "pcgrad": PCGrad,
    "cagrad": CAGrad,
    "sam-gs": lambda: SimilarityMomentum(betas=(0.9, 0.9)),
    "sam-gs printed": lambda: SimilarityMomentum(betas=(0.9, 0.9), reduce="all", normalise=False),
}


def valleys(place: Tensor) -> Tensor:
    """The two losses of CAGrad's toy at points (..., 2), as printed in arXiv 2506.06130."""
    x, y = place.unbind(-1)
    low = 5e-6
    f1 = ((0.5 * (-x - 7) - (-y).tanh()).abs().clamp(min=low)).log() + 6
    f2 = ((0.5 * (-x + 3) + (-y).tanh() + 2).abs().clamp(min=low)).log() + 6
    g1 = ((-x + 7).square() + 0.1 * (-y - 8).square()) / 10 - 20
    g2 = ((-x - 7).square() + 0.1 * (-y - 8).square()) / 10 - 20
    c1, c2 = (0.5 * y).tanh().clamp(min=0), (-0.5 * y).tanh().clamp(min=0)
    return torch.stack([c1 * f1 + c2 * g1, c1 * f2 + c2 * g2], -1)


def reached(rule: str) -> Row:
    """Of the seven starts: how many end on the Pareto set (|x| <= 7, y = -8), in its middle, how far from it."""
    places = torch.tensor(STARTS, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([places], lr=1e-3, betas=(0.9, 0.9 if rule.startswith("sam-gs") else 0.999))
    rules = [RULES[rule]() for _ in STARTS]
    for _ in range(20_000):
        losses = valleys(places)
        slopes = torch.stack(
            [torch.autograd.grad(losses[:, at].sum(), places, retain_graph=True)[0] for at in (0, 1)], 1
        )
        places.grad = torch.stack(
            [one.sum(0) if rule is None else rule(one) for one, rule in zip(slopes, rules, strict=True)]
        )
        optimizer.step()
    x, y = places.detach().unbind(1)
    apart = (x.square() + (y + 8).square()).sqrt()
    there = (x.abs() <= 7.5) & ((y + 8).abs() < 1)
    return {
        f"{rule} on the set": float(there.sum()), f"{rule} in the middle": float((apart < 1).sum()),
        f"{rule} distance": float(apart.mean()),
    }  # fmt: skip


def figures(seed: int) -> Row:
    """All rules."""
    found: Row = {}
    for rule in RULES:
        found |= reached(rule)
    return found


if __name__ == "__main__":
    measure("valleys", figures, seeds=1)
