"""The demo's network and data do what the demo needs."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from trimtab import datasets, models


def test_digits_are_learnt_in_a_few_epochs() -> None:
    data = datasets.load("digits")
    network = models.create("digits_cnn", num_classes=10, in_channels=1, image_size=data.image_size)
    batches = datasets.Batches(data.train, data, 64, seed=0, augment="shift")
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 6 * len(batches))
    for epoch in range(6):
        for images, targets in batches.epoch(epoch):
            optimizer.zero_grad()
            F.cross_entropy(network(images), targets).backward()
            optimizer.step()
            schedule.step()
    network.eval()
    images, targets = next(datasets.Batches(data.validation, data, 500, seed=0, shuffle=False).epoch(0))
    with torch.no_grad():
        assert (network(images).argmax(1) == targets).float().mean() > 0.95
