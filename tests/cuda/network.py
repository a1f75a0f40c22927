"""A network that has every kind of layer, its batch, and training steps on a device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

Steps = Callable[..., list[Tensor]]


class Net(nn.Module):
    """Convolution, BatchNorm, a transposed convolution, a grouped one, Linear layers.

    No bias stands before the BatchNorm: its gradient would be rounding alone, which AdamW blows up to a step.
    """

    def __init__(self, norm: bool = True) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1, bias=not norm), nn.BatchNorm2d(8) if norm else nn.Identity(), nn.ReLU(),
            nn.ConvTranspose2d(8, 8, 2, stride=2), nn.Conv2d(8, 8, 3, stride=2, groups=2), nn.ReLU(),
            nn.AdaptiveAvgPool2d(2), nn.Flatten(),
        )  # fmt: skip
        self.head = nn.Sequential(nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 4))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


def network(device: torch.device, *, norm: bool = True, channels_last: bool = False) -> nn.Module:
    """The same weights on every device."""
    torch.manual_seed(0)
    model = Net(norm).to(device)
    return model.to(memory_format=torch.channels_last) if channels_last else model


def batch(device: torch.device, rows: int = 16) -> tuple[Tensor, Tensor]:
    """The same images and labels on every device."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(rows, 3, 8, 8, generator=generator)
    return images.to(device), torch.randint(0, 4, (rows,), generator=generator).to(device)


def loss_of(model: nn.Module, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """Cross-entropy on the batch, under autocast where a dtype is given."""
    images, labels = batch(device)
    with torch.autocast(device.type, dtype or torch.bfloat16, enabled=dtype is not None):
        logits = model(images)
    return nn.functional.cross_entropy(logits.float() if dtype else logits, labels)


def take_steps(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    device: torch.device,
    steps: int = 5,
    dtype: torch.dtype | None = None,
    scaler: Any = None,
) -> list[Tensor]:
    """Weights after so many steps, on the CPU."""
    for _ in range(steps):
        optimizer.zero_grad(set_to_none=True)
        loss = loss_of(model, device, dtype)
        (loss if scaler is None else scaler.scale(loss)).backward()
        if scaler is None:
            optimizer.step()
        else:
            scaler.step(optimizer)
            scaler.update()
    return weights_of(model)


def weights_of(model: nn.Module) -> list[Tensor]:
    """Copies of the parameters on the CPU, contiguous."""
    return [weight.detach().cpu().contiguous().clone() for weight in model.parameters()]


def assert_close(found: list[Tensor], expected: list[Tensor], tolerance: float = 1e-4) -> None:
    """Each tensor within `tolerance` of the expected one's largest entry."""
    for position, (one, other) in enumerate(zip(found, expected, strict=True)):
        scale = float(other.abs().max()) + 1e-12
        assert float((one - other).abs().max()) <= tolerance * scale, f"tensor {position} of shape {tuple(one.shape)}"
