"""Zeros stay zeros while a pruned network is trained on."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tests.pruning.nets import Small, Tied
from tests.warned import TOY_IS_CUT
from trimtab.optimizers import SAM
from trimtab.pruning import keep_masks, one_shot

pytestmark = TOY_IS_CUT


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
    with pytest.raises(
        ValueError, match=r"1 of 1 masks belong to no .*: 'other'; it holds 'conv\.weight', 'conv\.bias'"
    ):
        keep_masks(optimizer, {"other": masks["conv.weight"]}, net)
    with pytest.raises(ValueError, match=r"shape \(5, 6\)"):
        keep_masks(optimizer, {"conv.weight": masks["head.weight"]}, net)
    with pytest.raises(TypeError, match="must be bool"):
        keep_masks(optimizer, {"conv.weight": masks["conv.weight"].float()}, net)
    with pytest.raises(ValueError, match="holds none"):
        keep_masks(torch.optim.SGD([nn.Parameter(torch.ones(2, 2))], lr=0.1), masks, net)


def test_masks_of_parameters_that_the_optimizer_does_not_hold_are_all_named() -> None:
    net = Small()
    masks = one_shot(net, 0.5).masks
    head = torch.optim.SGD(net.head.parameters(), lr=0.1)
    message = (
        r"2 of 3 masks belong to no parameter of the optimizer: 'conv\.weight', 'up\.weight'; "
        r"it holds 'head\.weight', 'head\.bias'\..*leave its mask out"
    )
    with pytest.raises(ValueError, match=message):
        keep_masks(head, masks, net)
    with pytest.raises(ValueError, match=r"2 of 3 masks.*'conv\.weight', 'up\.weight'"):
        keep_masks(torch.optim.SGD(net.head.named_parameters(prefix="head"), lr=0.1), masks)
    assert not head._optimizer_step_post_hooks  # a refusal leaves no hook
    many = {f"layer{number}": masks["conv.weight"] for number in range(11)}
    with pytest.raises(ValueError, match=r"11 of 11 .*'layer7' and 3 more"):
        keep_masks(head, many, net)
    keep_masks(head, {"head.weight": masks["head.weight"]}, net)
    train(net, head, 2)
    assert revived(net, masks) == 0  # what the optimizer does not hold stays zero by itself


def test_names_from_an_optimizer_over_a_compiled_network() -> None:
    net = Small()
    masks = one_shot(net, 0.5).masks
    optimizer = torch.optim.SGD(torch.compile(net).named_parameters(), lr=0.1, momentum=0.9)
    keep_masks(optimizer, masks)
    train(net, optimizer, 2)
    assert revived(net, masks) == 0


@pytest.mark.parametrize("nesterov", [False, True])
def test_momentum_and_weight_decay_revive_nothing(nesterov: bool) -> None:
    net = Small()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.95, weight_decay=0.01, nesterov=nesterov)
    train(net, optimizer, 3)
    pruned = one_shot(net, 0.9)
    gone = ~pruned.masks["conv.weight"]
    assert bool((optimizer.state[net.conv.weight]["momentum_buffer"][gone] != 0).any())
    keep_masks(optimizer, pruned.masks, net)
    train(net, optimizer, 10)
    assert revived(net, pruned.masks) == 0
