"""Products of rounded operands on the device: those of the CPU, to what sums in another order leave; and they repeat."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import trimtab
from trimtab.precision import RECIPES, LowPrecision


def gradients(recipe: str, device: torch.device | str) -> list[torch.Tensor]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32 * 36, 64), nn.Linear(64, 10)).to(
        device
    )
    trimtab.attach(torch.optim.SGD(net.parameters()), LowPrecision(matmul=recipe), model=net)
    x = torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(1)).to(device)
    out = net(x)
    out.square().mean().backward()
    return [out.detach(), *(parameter.grad for parameter in net.parameters() if parameter.grad is not None)]


@pytest.mark.parametrize("recipe", [name for name in RECIPES if name not in ("nvfp4", "mxfp4-unbiased", "quartet-ii")])
def test_recipes_without_random_numbers_equal_the_cpus(recipe, device):
    for one, other in zip(gradients(recipe, device), gradients(recipe, "cpu"), strict=True):
        # an activation that another order of a sum moves over a rounding's edge moves by a step of the format
        assert ((one.cpu() - other).norm() / other.norm()).item() < 0.02


@pytest.mark.parametrize("recipe", ["nvfp4", "mxfp4-unbiased", "quartet-ii"])
def test_random_recipes_repeat_and_are_near_the_cpus(recipe, device):
    first, again, there = (gradients(recipe, where) for where in (device, device, "cpu"))
    for one, same, other in zip(first, again, there, strict=True):
        torch.testing.assert_close(one, same, rtol=1e-5, atol=1e-6)
        assert ((one.cpu() - other).norm() / other.norm()).item() < 1.0
