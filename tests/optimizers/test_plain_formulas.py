"""DiffGrad, AdamP and SGDP against numbers worked out apart, peers, and what tells each from Adam and SGD."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import pytorch_optimizer as peers
import torch
from torch import Tensor, nn

from trimtab.optimizers import SGDP, AdamP, DiffGrad

SHAPES = [(3, 4), (5, 2, 3, 3), (7,), (6, 6), (3, 4)]


def wave(shape: tuple[int, ...], seed: int) -> Tensor:
    k = np.arange(math.prod(shape))
    return torch.tensor((np.sin(1.3 * k + 0.7 * seed) + 0.5 * np.cos(0.37 * k * k + seed)).reshape(shape))


def perpendicular(gradient: Tensor, weight: Tensor) -> Tensor:
    g, w = gradient.flatten(1), weight.flatten(1)
    return (g - (g * w).sum(1, keepdim=True) / (w * w).sum(1, keepdim=True) * w).view_as(gradient)


def after(build: Callable[[list[Tensor]], Any], perpendicular_ones: bool = False) -> Tensor:
    weight = nn.Parameter(wave((3, 4), 1))
    first, optimizer = weight.detach().clone(), build([weight])
    for seed in (2, 3, 4, 5):
        weight.grad = wave((3, 4), seed)
        if perpendicular_ones:
            weight.grad = perpendicular(weight.grad, first)
        optimizer.step()
    return weight.detach()


@pytest.mark.parametrize(
    ("build", "perpendicular_ones", "expected"),
    [
        (
            lambda p: DiffGrad(p, lr=0.01), False,
            [[0.8953046632, 1.01819516, -0.5289972555, -1.176195653],
             [0.006706129518, 0.4315341297, 0.7293509053, 0.1385762574],
             [-0.5362775797, 0.262588215, 1.369426644, 0.5658232884]],
        ),
        (
            lambda p: DiffGrad(p, lr=0.01, weight_decay=0.1), False,
            [[0.8938786119, 1.016423976, -0.5286270202, -1.172191261],
             [0.006697544233, 0.4311845158, 0.7288049824, 0.1385219694],
             [-0.5334453418, 0.2624443042, 1.366760399, 0.5655493867]],
        ),
        (
            lambda p: AdamP(p, lr=0.01, weight_decay=0.1), False,
            [[0.8799658159, 1.0187936, -0.5148313309, -1.170657867],
             [-0.01166211295, 0.4181414375, 0.7424075508, 0.1517180948],
             [-0.5271841383, 0.2469768851, 1.358934437, 0.5790032905]],
        ),
        (
            lambda p: AdamP(p, lr=0.01, weight_decay=0.1), True,
            [[0.8667864912, 1.038695848, -0.5099274465, -1.208535068],
             [-0.01175612658, 0.4084662154, 0.7297150812, 0.149425377],
             [-0.5650322542, 0.2502113165, 1.363327825, 0.5878020706]],
        ),
        (
            lambda p: SGDP(p, lr=0.01, momentum=0.9, weight_decay=0.1), True,
            [[0.8808357907, 1.053656656, -0.4756466719, -1.188227039],
             [-0.009969289443, 0.3671780159, 0.7419760088, 0.1940659119],
             [-0.5435480768, 0.2179740398, 1.36147384, 0.6095307118]],
        ),
    ],
)  # fmt: skip
def test_numbers_of_the_formula(build, perpendicular_ones, expected):
    found = after(build, perpendicular_ones)
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-8, atol=1e-9)


# the peer's AdamP adds eps before the correction of v, so it is made small
PEERS = {
    "diffgrad": (DiffGrad, peers.DiffGrad, {"lr": 0.01, "weight_decay": 0.0}, {}),
    "adamp": (AdamP, peers.AdamP, {"lr": 0.01, "weight_decay": 0.1, "eps": 1e-13}, {}),
    "adamp-nesterov": (
        AdamP,
        peers.AdamP,
        {"lr": 0.01, "weight_decay": 0.1, "nesterov": True, "delta": 1.0, "eps": 1e-13},
        {},
    ),
    "adamp-all": (AdamP, peers.AdamP, {"lr": 0.01, "weight_decay": 0.1, "delta": 5.0, "eps": 1e-13}, {}),
}


@pytest.mark.parametrize("name", PEERS)
@pytest.mark.parametrize("foreach", [None, False])
def test_fifty_steps_equal_the_peer(name, foreach):
    ours, peer, settings, more = PEERS[name]
    one, other = ([nn.Parameter(wave(shape, k)) for k, shape in enumerate(SHAPES)] for _ in range(2))
    mine, theirs = ours(one, foreach=foreach, **settings), peer(other, **settings, **more)
    for step in range(50):
        for k, (a, b) in enumerate(zip(one, other, strict=True)):
            gradient = wave(tuple(a.shape), 10 * step + k)
            if k in (0, 1) and step % 3:
                gradient = perpendicular(gradient, a.detach())
            a.grad, b.grad = gradient.clone(), gradient.clone()
        mine.step()
        theirs.step()
        for a, b in zip(one, other, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_the_remembered_gradient_is_a_copy():
    """With the gradient itself the difference would be 0 and xi one half, Adam at half the rate."""
    weight = nn.Parameter(torch.zeros(4, dtype=torch.float64))
    optimizer = DiffGrad([weight], lr=1.0)
    weight.grad = torch.zeros(4, dtype=torch.float64)
    places = [50.0, -50.0]
    for value in places:
        weight.grad.fill_(value)
        before = weight.detach().clone()
        optimizer.step()
    m, v = 0.9 * 0.1 * 50 - 0.1 * 50, 50.0**2 * (1 - 0.999**2)
    step = math.sqrt(1 - 0.999**2) / (1 - 0.9**2) * m / (math.sqrt(v) + 1e-8)
    torch.testing.assert_close(weight.detach(), before - step, rtol=1e-9, atol=0)


def test_small_gradients_step_half_as_far_as_adam():
    one, other = nn.Parameter(torch.ones(3, dtype=torch.float64)), nn.Parameter(torch.ones(3, dtype=torch.float64))
    mine, adam = DiffGrad([one], lr=0.1), torch.optim.Adam([other], lr=0.1)
    for step in range(5):
        one.grad, other.grad = (torch.full((3,), 1e-4 * (1 + step), dtype=torch.float64) for _ in range(2))
        mine.step()
        adam.step()
    torch.testing.assert_close(1 - one, (1 - other) / 2, rtol=2e-3, atol=0)


def on_the_sphere(build: Callable[[list[Tensor]], Any]) -> float:
    """How much longer weights become in 300 steps on a loss that does not depend on their length."""
    weight = nn.Parameter(wave((2, 6), 3))
    target, optimizer = wave((2, 6), 8), build([weight])
    begin = float(weight.detach().norm())
    for _ in range(300):
        optimizer.zero_grad()
        (-(nn.functional.cosine_similarity(weight, target, dim=1)).sum()).backward()
        optimizer.step()
    return float(weight.detach().norm()) / begin


def test_weights_whose_scale_does_not_matter_do_not_grow():
    grown = on_the_sphere(lambda p: torch.optim.SGD(p, lr=0.5, momentum=0.9))
    kept = on_the_sphere(lambda p: SGDP(p, lr=0.5, momentum=0.9))
    assert kept - 1 < 0.6 * (grown - 1), (grown, kept)


def test_the_step_of_a_scale_invariant_weight_is_perpendicular_to_it():
    weight = nn.Parameter(wave((2, 6), 3))
    optimizer = SGDP([weight], lr=0.5, momentum=0.9)
    for _ in range(4):
        optimizer.zero_grad()
        nn.functional.cosine_similarity(weight, wave((2, 6), 8), dim=1).sum().backward()
        before = weight.detach().clone()
        optimizer.step()
        along = ((weight.detach() - before) * before).sum(1)
        torch.testing.assert_close(along, torch.zeros(2, dtype=torch.float64), rtol=0, atol=1e-7)


def test_outputs_of_a_transposed_convolution_are_told_by_the_model():
    torch.manual_seed(0)
    net = nn.ConvTranspose2d(3, 5, 2, bias=False).double()
    start = net.weight.detach().clone()
    gradient = perpendicular(wave((3, 5, 2, 2), 1).movedim(1, 0), start.movedim(1, 0)).movedim(0, 1)
    found = []
    for model in (net, None):
        net.weight.data.copy_(start)
        optimizer = AdamP(net.parameters(), lr=0.1, betas=(0.9, 0.5), model=model)
        net.weight.grad = gradient.clone()
        optimizer.step()
        step = net.weight.detach() - start
        found.append(float((step * start).movedim(1, 0).flatten(1).sum(1).abs().max()))
    assert found[0] < 1e-6 < found[1]


@pytest.mark.parametrize("build", [AdamP, SGDP])
def test_parameters_that_become_others_are_judged_as_what_they_are(build):
    """One in the middle is replaced, one takes another shape; all together and one at a time stay the same."""
    runs = []
    for foreach in (True, False):
        held = [nn.Parameter(wave(shape, at)) for at, shape in enumerate([(2, 3), (4, 2), (3, 3)])]
        optimizer = build(held, lr=0.1, delta=5.0, foreach=foreach)

        def step(optimizer=optimizer, held=held):
            for at, parameter in enumerate(held):
                parameter.grad = wave(tuple(parameter.shape), at + 7)
            optimizer.step()

        step()
        held[1] = optimizer.param_groups[0]["params"][1] = nn.Parameter(wave((5, 7), 3))
        step()
        step()
        optimizer.state.pop(held[0])
        held[0].grad = None
        held[0].data = wave((6, 2), 4)
        step()
        runs.append(held)
        if foreach:
            gone = {id(owner) for plan in optimizer._plans.values() for owner in plan.owners} - {
                id(one) for one in held
            }
            assert not gone  # what is no longer trained is not kept
    for one, other in zip(*runs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("build", [DiffGrad, AdamP, SGDP])
def test_conventions_of_torch(build):
    one, other = nn.Parameter(wave((3, 4), 1)), nn.Parameter(wave((3, 4), 1))
    mine, turned = build([("w", one)], lr=torch.tensor(0.01)), build([other], lr=0.01, maximize=True)
    one.grad = wave((3, 4), 2)
    other.grad = -one.grad
    assert mine.step(lambda: 3.0) == 3.0
    turned.step()
    torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)
    assert mine.state[one]["step"] == 1
    with pytest.raises(ValueError, match="lr must be finite and 0 or more, got -1"):
        build([one], lr=-1.0)


def test_bad_values_are_refused():
    weight = [nn.Parameter(torch.ones(2, 2))]
    for settings, words in (
        ({"momentum": 1.0}, r"momentum must lie in \[0, 1\), got 1"),
        ({"delta": 0.0}, "delta must be finite and above 0, got 0"),
        ({"wd_ratio": 2.0}, r"wd_ratio must lie in \[0, 1\], got 2"),
    ):
        with pytest.raises(ValueError, match=words):
            SGDP(weight, **settings)
    with pytest.raises(ValueError, match="betas must be two numbers"):
        DiffGrad(weight, betas=0.9)
