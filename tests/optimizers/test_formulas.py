"""Each method against a plain float64 loop, against a peer, and with its distinguishing term removed."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import pytorch_optimizer
import torch
from torch import Tensor, nn

from tests.optimizers.nets import batch, mlp, same, train, weights
from trimtab.optimizers import ASAM, SAM, CrAM

RATE, MOMENTUM = 0.1, 0.9
Gradient = Callable[[list[Tensor]], list[Tensor]]


def gradient_function(model: nn.Module, step: int) -> Gradient:
    images, labels = batch(100 + step, dtype=torch.float64)

    def gradient(values: list[Tensor]) -> list[Tensor]:
        leaves = [value.clone().requires_grad_() for value in values]
        named = dict(zip((name for name, _ in model.named_parameters()), leaves, strict=True))
        loss = nn.functional.cross_entropy(torch.func.functional_call(model, named, (images,)), labels)
        return list(torch.autograd.grad(loss, leaves))

    return gradient


def sam_gradient(gradient: Gradient, w: list[Tensor], rho: float) -> list[Tensor]:
    g = gradient(w)
    norm = sum(float((one**2).sum()) for one in g) ** 0.5
    return gradient([one + rho * slope / (norm + 1e-12) for one, slope in zip(w, g, strict=True)])


def asam_gradient(gradient: Gradient, w: list[Tensor], rho: float, eta: float) -> list[Tensor]:
    g = gradient(w)
    t = [one.abs() + eta if one.ndim > 1 else torch.ones_like(one) for one in w]
    norm = sum(float(((scale * slope) ** 2).sum()) for scale, slope in zip(t, g, strict=True)) ** 0.5
    return gradient([a + rho * b**2 * c / (norm + 1e-12) for a, b, c in zip(w, t, g, strict=True)])


def cram_gradient(gradient: Gradient, w: list[Tensor], rho: float, k: float, sparse: bool, plus: bool) -> list[Tensor]:
    g = gradient(w)
    moved = [one + rho * slope for one, slope in zip(w, g, strict=True)]
    magnitudes = torch.cat([one.abs().flatten() for one in moved if one.ndim > 1])
    order = magnitudes.argsort(stable=True)
    gone = torch.zeros(len(magnitudes), dtype=torch.bool)
    gone[order[: int(k * len(magnitudes) + 0.5)]] = True
    masks, start = [], 0
    for one in moved:
        masks.append(
            gone[start : start + one.numel()].view(one.shape) if one.ndim > 1 else torch.zeros_like(one).bool()
        )
        start += one.numel() if one.ndim > 1 else 0
    h = gradient([one.masked_fill(mask, 0) for one, mask in zip(moved, masks, strict=True)])
    if sparse:
        h = [one.masked_fill(mask, 0) for one, mask in zip(h, masks, strict=True)]
    return [one + slope for one, slope in zip(h, g, strict=True)] if plus else h


def reference(rule: Callable[[Gradient, list[Tensor]], list[Tensor]], steps: int = 8) -> list[Tensor]:
    """SGD with momentum on the gradients that `rule` makes, in plain float64."""
    model = mlp(torch.float64)
    w = weights(model)
    velocity = [torch.zeros_like(one) for one in w]
    for step in range(steps):
        g = rule(gradient_function(model, step), w)
        velocity = [MOMENTUM * v + one for v, one in zip(velocity, g, strict=True)]
        w = [one - RATE * v for one, v in zip(w, velocity, strict=True)]
    return w


def ours(make: Callable[[torch.optim.Optimizer], torch.optim.Optimizer], steps: int = 8) -> list[Tensor]:
    model = mlp(torch.float64)
    train(model, make(torch.optim.SGD(model.parameters(), RATE, MOMENTUM)), steps, dtype=torch.float64)
    return weights(model)


def assert_close(left: list[Tensor], right: list[Tensor]) -> None:
    for a, b in zip(left, right, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def distance(left: list[Tensor], right: list[Tensor]) -> float:
    return max(float((a - b).abs().max()) for a, b in zip(left, right, strict=True))


def test_sam_is_the_formula() -> None:
    expected = reference(lambda gradient, w: sam_gradient(gradient, w, 0.05))
    actual = ours(lambda base: SAM(base, rho=0.05))
    assert_close(actual, expected)
    assert distance(actual, reference(lambda gradient, w: gradient(w))) > 1e-3  # the perturbation matters


def test_asam_is_the_formula() -> None:
    expected = reference(lambda gradient, w: asam_gradient(gradient, w, 0.5, 0.01))
    actual = ours(lambda base: ASAM(base))
    assert_close(actual, expected)
    assert distance(actual, reference(lambda gradient, w: sam_gradient(gradient, w, 0.5))) > 1e-3  # |w| matters


@pytest.mark.parametrize(("sparse", "plus"), [(True, True), (True, False), (False, True), (False, False)])
def test_cram_is_the_formula(sparse: bool, plus: bool) -> None:
    expected = reference(lambda gradient, w: cram_gradient(gradient, w, 0.2, 0.6, sparse, plus))
    actual = ours(lambda base: CrAM(base, 0.2, (0.6,), sparse_grad=sparse, plus=plus))
    assert_close(actual, expected)
    # Each term matters: the compression, the mask on the gradient, the added dense gradient.
    assert distance(actual, reference(lambda gradient, w: cram_gradient(gradient, w, 0.2, 0.0, sparse, plus))) > 1e-3
    assert distance(actual, reference(lambda g, w: cram_gradient(g, w, 0.2, 0.6, not sparse, plus))) > 1e-3
    assert distance(actual, reference(lambda g, w: cram_gradient(g, w, 0.2, 0.6, sparse, not plus))) > 1e-3
    assert distance(actual, reference(lambda g, w: cram_gradient(g, w, 0.0, 0.6, sparse, plus))) > 1e-6


@pytest.mark.parametrize("adaptive", [False, True])
def test_against_pytorch_optimizer(adaptive: bool) -> None:
    # Its adaptive form has eta = 0 and scales every tensor, so the network has no biases.
    model, twin = mlp(torch.float64, bias=False), mlp(torch.float64, bias=False)
    base = torch.optim.SGD(model.parameters(), RATE, MOMENTUM)
    mine = ASAM(base, rho=0.5, eta=0.0) if adaptive else SAM(base, rho=0.5)
    peer = pytorch_optimizer.SAM(
        twin.parameters(), torch.optim.SGD, rho=0.5, adaptive=adaptive, lr=RATE, momentum=MOMENTUM
    )
    train(model, mine, 5, dtype=torch.float64)
    for step in range(5):
        images, labels = batch(100 + step, dtype=torch.float64)

        def closure(images: Tensor = images, labels: Tensor = labels) -> Tensor:
            peer.zero_grad()
            loss = nn.functional.cross_entropy(twin(images), labels)
            loss.backward()
            return loss

        closure()
        peer.step(closure)
    assert distance(weights(model), weights(twin)) < 1e-8  # its norm is taken in float32


def test_norm_is_over_all_groups_together() -> None:
    model = mlp(torch.float64)
    halves = [{"params": list(model[0].parameters())}, {"params": list(model[2].parameters()), "lr": RATE}]
    train(model, SAM(torch.optim.SGD(halves, RATE, MOMENTUM), rho=0.05), 8, dtype=torch.float64)
    assert_close(weights(model), reference(lambda gradient, w: sam_gradient(gradient, w, 0.05)))


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW])
def test_rho_zero_is_the_base_optimizer_bit_for_bit(optimizer: type[torch.optim.Optimizer]) -> None:
    model, twin = mlp(), mlp()
    train(model, SAM(optimizer(model.parameters(), lr=0.01), rho=0.0), 5)
    plain = optimizer(twin.parameters(), lr=0.01)
    for step in range(5):
        images, labels = batch(100 + step)
        plain.zero_grad()
        nn.functional.cross_entropy(twin(images), labels).backward()
        plain.step()
    assert same(weights(model), weights(twin))
