"""Train with L1, prune once, recalibrate, save, load: `python examples/prune_in_your_loop.py [FOLDER]`, some ten seconds."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import nn

import trimtab


def accuracy(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> float:
    """Share of the images whose largest output is their label."""
    model.eval()
    with torch.no_grad():
        return float((model(images).argmax(1) == labels).double().mean())


def main(folder: Path, epochs: int = 8) -> dict[str, float]:
    """The whole job; accuracies of the dense, the pruned and the loaded network."""
    torch.manual_seed(0)
    digits = trimtab.datasets.load("digits")
    batches = trimtab.datasets.Batches(digits.train, digits, 64, seed=0, augment="shift")
    test = next(iter(trimtab.datasets.Batches(digits.test, digits, len(digits.test), seed=0).epoch(0)))
    model = trimtab.models.create("resnet_digits", num_classes=10, in_channels=1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=epochs * len(batches))
    trimtab.attach(optimizer, trimtab.penalties.L1(1e-4), model=model)
    for epoch in range(epochs):
        model.train()
        for images, labels in batches.epoch(epoch):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images), labels).backward()
            optimizer.step()
            schedule.step()
    found = {"dense": accuracy(model, *test)}
    trimtab.pruning.one_shot(model, 0.8)
    trimtab.pruning.recalibrate(model, batches.epoch(0), batches=10)
    found["pruned"] = accuracy(model, *test)
    report = trimtab.deploy.save_sparse(model, folder / "small.safetensors")
    again = trimtab.models.create("resnet_digits", num_classes=10, in_channels=1)
    trimtab.deploy.load_sparse(folder / "small.safetensors", again)
    found["loaded"] = accuracy(again, *test)
    print(report)
    return found


if __name__ == "__main__":
    place = Path(sys.argv[1] if len(sys.argv) > 1 else ".")
    for name, value in main(place).items():
        print(f"{name}: {value:.1%}")
