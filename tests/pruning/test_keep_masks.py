"""Zeros stay zeros while a pruned network is trained on."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tests.pruning.nets import Small, Tied
from trimtab.optimizers import SAM
from trimtab.pruning import keep_masks, one_shot


def train(net: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        x = torch.randn(4, 4, 6, 6, generator=generator)

        def closure(x: Tensor = x) -> Tensor:
            optimizer.zero_grad()
            loss = net(x).pow(2).mean()
            loss.backward()
            return loss

        optimizer.step(closure)


def revived(net: nn.Module, masks: dict[str, Tensor]) -> int:
    return sum(int((net.get_parameter(name)[~mask] != 0).sum()) for name, mask in masks.items())


@pytest.mark.parametrize("kind", ["sgd", "adamw", "sam"])
def test_pruned_weights_stay_zero_and_the_others_train(kind: str) -> None:
    net = Small()
    optimizer: torch.optim.Optimizer
    if kind == "adamw":
        optimizer = torch.optim.AdamW(net.parameters(), lr=0.05)
    else:
        optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
    if kind == "sam":
        optimizer = SAM(optimizer, rho=0.05, model=net)
    train(net, optimizer, 2)  # fills the momenta of weights that will be pruned
    pruned = one_shot(net, 0.8)
    kept = net.conv.weight[pruned.masks["conv.weight"]].detach().clone()
    handle = keep_masks(optimizer, pruned.masks, net)
    for _ in range(3):
        train(net, optimizer, 1)
        assert revived(net, pruned.masks) == 0
    assert not torch.equal(net.conv.weight[pruned.masks["conv.weight"]], kept)
    handle.remove()
    train(net, optimizer, 1)
    assert revived(net, pruned.masks) > 0  # without the handle momentum revives them


def test_names_from_the_optimizer_and_of_tied_weights() -> None:
    net = Tied()
    masks = one_shot(net, 0.5).masks
    optimizer = torch.optim.SGD(net.named_parameters(), lr=0.1)
    keep_masks(optimizer, masks)
    keep_masks(torch.optim.SGD(net.parameters(), lr=0.1), {"head.weight": masks["embedding.weight"]}, net)
    net(torch.tensor([1, 2])).sum().backward()
    optimizer.step()
    assert revived(net, masks) == 0


def test_bad_masks() -> None:
    net = Small()
    masks = one_shot(net, 0.5).masks
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with pytest.raises(ValueError, match="no names"):
        keep_masks(optimizer, masks)
    with pytest.raises(ValueError, match="holds none"):
        keep_masks(torch.optim.SGD(Small().parameters(), lr=0.1), masks, net)
    with pytest.raises(ValueError, match="'other' belongs to no parameter"):
        keep_masks(optimizer, {"other": masks["conv.weight"]}, net)
    with pytest.raises(ValueError, match=r"shape \(5, 6\)"):
        keep_masks(optimizer, {"conv.weight": masks["head.weight"]}, net)
    with pytest.raises(TypeError, match="must be bool"):
        keep_masks(optimizer, {"conv.weight": masks["conv.weight"].float()}, net)
    with pytest.raises(ValueError, match="holds none"):
        keep_masks(torch.optim.SGD([nn.Parameter(torch.ones(2, 2))], lr=0.1), masks, net)
