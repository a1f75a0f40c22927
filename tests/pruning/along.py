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


def resumed(
    make_net: Callable[[], nn.Module], make_lever: Callable[[], Any], at: int, end: int
) -> tuple[tuple[nn.Module, trimtab.levers.Handle], tuple[nn.Module, trimtab.levers.Handle]]:
    """Networks and handles of a training without a stop, and of one that stopped after `at` of `end` steps and went on."""
    whole, first, second = make_net(), make_net(), make_net()
    for net in (first, second):
        net.load_state_dict(whole.state_dict())
    optimizer, uninterrupted = attached(whole, make_lever())
    torch.manual_seed(1)
    steps(whole, optimizer, range(end))
    one, handle = attached(first, make_lever())
    torch.manual_seed(1)
    steps(first, one, range(at))
    random = torch.get_rng_state()
    two, loaded = attached(second, make_lever())
    second.load_state_dict(first.state_dict())
    two.load_state_dict(one.state_dict())
    loaded.load_state_dict(handle.state_dict())
    torch.set_rng_state(random)
    steps(second, two, range(at, end))
    return (whole, uninterrupted), (second, loaded)


def scaled_steps_with_one_skipped(net: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Three steps of two micro-batches each; the second overflows, so that its GradScaler skips it."""
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    for step, factor in enumerate((1.0, float("inf"), 1.0)):
        optimizer.zero_grad()
        for _ in range(2):
            scaler.scale(net(batch(step)).pow(2).mean() * factor).backward()
        scaler.step(optimizer)
        scaler.update()


def same(one: nn.Module, other: nn.Module) -> bool:
    """Whether all parameters are equal to the bit."""
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def attached(net: nn.Module, lever: Any, optimizer: Any = None) -> tuple[Any, trimtab.levers.Handle]:
    optimizer = sgd(net) if optimizer is None else optimizer
    return optimizer, trimtab.attach(optimizer, lever, model=net)
