"""Small networks, data and closures that the optimizer tests share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from trimtab.optimizers import ASAM, SAM, CrAM, TwoPassOptimizer

METHODS = ("sam", "asam", "cram", "cram+", "2:4")


def wrap(name: str, base: torch.optim.Optimizer, model: nn.Module | None = None, seed: int = 3) -> TwoPassOptimizer:
    match name:
        case "sam":
            return SAM(base, rho=0.05, model=model)
        case "asam":
            return ASAM(base, rho=0.5, model=model)
        case "cram":
            return CrAM(base, 0.2, (0.3, 0.5, 0.7), plus=False, seed=seed, model=model)
        case "cram+":
            return CrAM(base, 0.2, (0.3, 0.5, 0.7), seed=seed, model=model)
    return CrAM(base, 0.2, (0.5,), pattern=("2:4", "4:8"), seed=seed, model=model)


def mlp(dtype: torch.dtype = torch.float32, bias: bool = True, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(8, 16, bias=bias), nn.Tanh(), nn.Linear(16, 4, bias=bias)).to(dtype)


def normed(seed: int = 0) -> nn.Sequential:
    """With BatchNorm and dropout."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 4))


def batch(seed: int = 1, size: int = 32, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(size, 8, generator=generator).to(dtype)
    return images, torch.randint(4, (size,), generator=generator)


def closure_for(
    model: nn.Module, optimizer: torch.optim.Optimizer, data: tuple[Tensor, Tensor], scaler: Any = None
) -> Callable[[], Tensor]:
    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(data[0]), data[1])
        (loss if scaler is None else scaler.scale(loss)).backward()
        return loss

    return closure


def train(
    model: nn.Module, optimizer: TwoPassOptimizer, steps: int, start: int = 0, dtype: torch.dtype = torch.float32
) -> list[float]:
    """`steps` steps, each on a batch of its own; the losses returned by `step`."""
    losses = []
    for step in range(start, start + steps):
        loss = optimizer.step(closure_for(model, optimizer, batch(100 + step, dtype=dtype)))
        losses.append(float(loss.detach()))
    return losses


def weights(model: nn.Module) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in model.parameters()]


def same(left: list[Tensor], right: list[Tensor]) -> bool:
    """Bit for bit, -0.0 and 0.0 apart."""
    return all(
        torch.equal(a, b) and torch.equal(torch.signbit(a), torch.signbit(b)) for a, b in zip(left, right, strict=True)
    )
