"""The attached form in real loops: any optimizer, closures, accumulation, GradScaler, DDP and FSDP2."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import trimtab
from trimtab.penalties import L1, HoyerSquare, Penalty, VarianceAmplifier

OPTIMIZERS: dict[str, Callable[[list[nn.Parameter]], torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=1e-3),
    "sgd-fused": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, fused=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01),
    "adamw-fused": lambda p: torch.optim.AdamW(p, lr=0.01, fused=True),
    "adamw-foreach": lambda p: torch.optim.AdamW(p, lr=0.01, foreach=True),
}


def network() -> nn.Module:
    torch.manual_seed(5)
    return nn.Sequential(nn.Linear(6, 9), nn.BatchNorm1d(9), nn.ReLU(), nn.Linear(9, 4)).double()


def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(7)
    inputs = torch.randn(8, 12, 6, dtype=torch.float64, generator=generator)
    return inputs, torch.randint(0, 4, (8, 12), generator=generator)


def weights(net: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in net.parameters()])


def train_by_value(make: str, penalty: Penalty) -> Tensor:
    net = network()
    optimizer = OPTIMIZERS[make](list(net.parameters()))
    for inputs, labels in zip(*data(), strict=True):
        optimizer.zero_grad()
        (nn.functional.cross_entropy(net(inputs), labels) + penalty.value(net)).backward()
        optimizer.step()
    return weights(net)


PENALTY = VarianceAmplifier(1e-4)


@pytest.mark.parametrize("style", ["plain", "closure", "accumulation", "scaler", "scaler-unscale"])
@pytest.mark.parametrize("make", OPTIMIZERS)
def test_attached_equals_value_in_the_loss(make, style):
    expected = train_by_value(make, PENALTY)
    assert float((train_by_value(make, VarianceAmplifier(0.0)) - expected).abs().max()) > 1e-3
    net = network()
    optimizer = OPTIMIZERS[make](list(net.parameters()))
    trimtab.attach(optimizer, PENALTY)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, enabled=style.startswith("scaler"))
    for inputs, labels in zip(*data(), strict=True):

        def loss(inputs: Tensor = inputs, labels: Tensor = labels) -> Tensor:
            return nn.functional.cross_entropy(net(inputs), labels)

        def closure(loss: Callable[[], Tensor] = loss) -> Tensor:
            optimizer.zero_grad()
            result = loss()
            result.backward()
            return result

        if style == "closure":
            optimizer.step(closure)
            continue
        optimizer.zero_grad()
        if style == "accumulation":
            frozen_statistics = copy.deepcopy(net[1])
            for _ in range(2):
                (loss() / 2).backward()
            net[1].load_state_dict(frozen_statistics.state_dict())
        else:
            scaler.scale(loss()).backward()
        if style == "scaler-unscale":
            scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
    torch.testing.assert_close(weights(net), expected, rtol=1e-8, atol=1e-10)


def test_composes_with_another_lever_and_is_gone_after_remove():
    net, other = network(), network()
    optimizers = [torch.optim.SGD(item.parameters(), lr=0.1) for item in (net, other)]
    with trimtab.attach(optimizers[0], L1(1e-3), HoyerSquare(1e-3)):
        pass
    for item, optimizer in zip((net, other), optimizers, strict=True):
        item(data()[0][0]).sum().backward()
        optimizer.step()
    assert torch.equal(weights(net), weights(other))


@pytest.mark.parametrize("step_inside", [False, True])
@pytest.mark.parametrize(
    "penalty", [VarianceAmplifier(1e-3), VarianceAmplifier(1e-2, form="relative"), L1(1e-2), HoyerSquare(1e-2)]
)
def test_under_bf16_autocast_the_penalty_keeps_float32(penalty, step_inside):
    """The task gradient is autocast's; the penalty adds to it as if there were no autocast, in or out of its block."""
    torch.manual_seed(1)
    net, plain = (nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 4)) for _ in range(2))
    plain.load_state_dict(net.state_dict())
    inputs, labels = data()[0][0].float(), data()[1][0]
    optimizers = [torch.optim.SGD(item.parameters(), lr=1.0) for item in (net, plain)]
    trimtab.attach(optimizers[0], penalty)
    leaves = [nn.Parameter(item.detach().double()) for item in net.parameters()]
    penalty.value(leaves).backward()
    before = [item.detach().clone() for item in net.parameters()]
    for item, optimizer in zip((net, plain), optimizers, strict=True):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            outputs = item(inputs)
            assert outputs.dtype == torch.bfloat16
            loss = nn.functional.cross_entropy(outputs, labels)
            if step_inside:
                value = penalty.value(item)
                assert value.dtype == torch.float32
                assert value.item() == pytest.approx(penalty.value(leaves).item(), rel=1e-5)
                loss.backward()
                optimizer.step()
        if not step_inside:
            loss.backward()
            optimizer.step()
    largest = 0.0
    for now, other, start, leaf in zip(net.parameters(), plain.parameters(), before, leaves, strict=True):
        added = torch.zeros_like(start) if leaf.grad is None else leaf.grad.float()
        torch.testing.assert_close(start - now, start - other + added, rtol=1e-4, atol=2e-7)
        largest = max(largest, float(added.abs().max()))
    assert largest > 1e-3


def test_the_autograd_form_under_bf16_autocast_equals_the_attached_one():
    torch.manual_seed(1)
    attached, inside = (nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 4)) for _ in range(2))
    inside.load_state_dict(attached.state_dict())
    penalty = VarianceAmplifier(1e-4)
    optimizers = [torch.optim.AdamW(item.parameters(), lr=0.01) for item in (attached, inside)]
    trimtab.attach(optimizers[0], penalty)
    for inputs, labels in zip(*data(), strict=True):
        for item, optimizer in zip((attached, inside), optimizers, strict=True):
            optimizer.zero_grad()
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss = nn.functional.cross_entropy(item(inputs.float()), labels)
                if item is inside:
                    loss = loss + penalty.value(item)
            loss.backward()
            optimizer.step()
    torch.testing.assert_close(weights(attached), weights(inside), rtol=1e-3, atol=1e-4)
