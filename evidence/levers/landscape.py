"""Negative curvature along training: does it fall as the network nears a minimum?

A perceptron on scikit-learn's digits, five seeds, at the start and after 20, 100 and 400 steps.

python evidence/levers/landscape.py      # five seeds, under a minute -> docs/evidence/levers-landscape.json
"""

from __future__ import annotations

import torch
from figures import measure
from sklearn.datasets import load_digits
from torch import nn

from trimtab.observe.curvature import Hessian, Objective, negativity, spectral_density

STEPS = (0, 20, 100, 400)


def figures(seed: int) -> dict[str, float]:
    """r_e and K of one seed at each place."""
    torch.manual_seed(seed)
    digits = load_digits()
    images = torch.tensor(digits.data[:500], dtype=torch.float32) / 16
    labels = torch.tensor(digits.target[:500])
    net = nn.Sequential(nn.Linear(64, 24), nn.Tanh(), nn.Linear(24, 10))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.3, momentum=0.9)
    found: dict[str, float] = {}
    for step in range(max(STEPS) + 1):
        if step in STEPS:
            objective = Objective(net, nn.functional.cross_entropy, (images, labels))
            numbers = negativity(spectral_density(Hessian(objective), probes=3, steps=60, seed=seed))
            found |= {f"ratio {step}": numbers.ratio, f"k {step}": numbers.k}
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(images), labels).backward()
        optimizer.step()
    return found


if __name__ == "__main__":
    measure("landscape", figures)
