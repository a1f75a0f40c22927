"""What the tests of levers that prune along training share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import trimtab


def batch(step: int, size: int = 4) -> Tensor:
    return torch.randn(size, 4, 6, 6, generator=torch.Generator().manual_seed(step))


def steps(net: nn.Module, optimizer: Any, numbers: range, seen: Callable[[], object] = lambda: None) -> None:
    """Train on one batch for each number; `seen` is called after each step."""
    for number in numbers:

        def closure(number: int = number) -> Tensor:
            optimizer.zero_grad()
            loss: Tensor = net(batch(number)).pow(2).mean()
            loss.backward()
            return loss

        optimizer.step(closure)
        seen()


def sgd(net: nn.Module, **settings: Any) -> torch.optim.SGD:
    return torch.optim.SGD(net.parameters(), **{"lr": 0.05, "momentum": 0.9, "weight_decay": 0.01, **settings})


def zeros(net: nn.Module, *names: str) -> int:
    return sum(int((net.get_parameter(name) == 0).sum()) for name in names)


def attached(net: nn.Module, lever: Any, optimizer: Any = None) -> tuple[Any, trimtab.levers.Handle]:
    optimizer = sgd(net) if optimizer is None else optimizer
    return optimizer, trimtab.attach(optimizer, lever, model=net)
