"""TrAct: the sheet's numbers, convolutions against unfolded inputs, what stays, what is refused."""

from __future__ import annotations

import contextlib
import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from trimtab.gradients import TrAct, first_layer


def wave(shape: tuple[int, ...], seed: int) -> Tensor:
    k = torch.arange(math.prod(shape), dtype=torch.float64)
    return ((1.3 * k + 0.7 * seed).sin() + 0.5 * (0.37 * k * k + seed).cos()).reshape(shape)


EXPECTED = {
    (6, 4): [[2.406780874, 0.5951913679, 0.9961107999, 0.3735714448], [-2.798870158, 0.9315078799, -1.992856741, -0.919394344]],
    (3, 5): [[-1.600294916, 0.3321888691, -0.2891043312, -1.448274461, -0.8182929625],
             [-1.066762691, -0.3502877042, 0.7225168192, -2.097997265, 1.749506015]],
}  # fmt: skip


@pytest.mark.parametrize("shape", EXPECTED)
def test_the_sheets_numbers_on_both_branches(shape: tuple[int, int]) -> None:
    layer = nn.Linear(shape[1], 2, bias=False).double()
    with TrAct(layer, strength=0.1):
        layer(wave(shape, 6)).backward(wave((shape[0], 2), 7))
    torch.testing.assert_close(
        layer.weight.grad, torch.tensor(EXPECTED[shape], dtype=torch.float64), rtol=1e-8, atol=1e-8
    )


def test_both_branches_give_the_same() -> None:
    """One row more than inputs, and the same moment from the rows written twice: no change by duplication."""
    found = []
    for times in (1, 4):  # 3 rows of 5, then 12
        layer = nn.Linear(5, 2, bias=False).double()
        with TrAct(layer):
            layer(wave((3, 5), 6).repeat(times, 1)).backward(wave((3, 2), 7).repeat(times, 1) / times)
        found.append(layer.weight.grad)
    torch.testing.assert_close(found[0], found[1], rtol=1e-9, atol=1e-9)


def test_a_large_strength_leaves_the_plain_direction() -> None:
    plain, layer = (nn.Linear(4, 2).double() for _ in range(2))
    plain(wave((6, 4), 1)).backward(wave((6, 2), 2))
    with TrAct(layer, strength=1e8):
        layer(wave((6, 4), 1)).backward(wave((6, 2), 2))
    assert plain.weight.grad is not None
    assert layer.weight.grad is not None
    torch.testing.assert_close(1e8 * layer.weight.grad, plain.weight.grad, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(layer.bias.grad, plain.bias.grad)


CONVOLUTIONS = [
    lambda: nn.Conv2d(3, 4, 3, padding=1),
    lambda: nn.Conv2d(3, 4, (2, 3), stride=2, dilation=(1, 2), padding=(0, 1), padding_mode="reflect"),
    lambda: nn.Conv2d(3, 4, 3, padding="same"),
    lambda: nn.Conv1d(3, 4, 3, stride=2, padding=1),
]


@pytest.mark.parametrize("build", CONVOLUTIONS)
def test_a_convolution_is_a_product_with_its_patches(build: Any) -> None:
    torch.manual_seed(0)
    plain = build().double()
    layer = copy.deepcopy(plain)
    inputs = torch.randn(2, 3, 7, *([] if isinstance(plain, nn.Conv1d) else [8]), dtype=torch.float64)
    ends = plain(inputs)
    upstream = torch.randn_like(ends)
    ends.backward(upstream)
    with TrAct(layer, strength=0.2):
        layer(inputs).backward(upstream)
    # patches by the layer's own linearity: the outputs of one weight at a time
    probe = copy.deepcopy(plain)
    patches = []
    with torch.no_grad():
        for at in range(probe.weight[0].numel()):
            probe.weight.zero_()
            probe.bias.zero_()
            probe.weight[0].flatten()[at] = 1.0
            patches.append(probe(inputs)[:, 0].flatten())
    a = torch.stack(patches, 1)
    moment = a.T @ a / len(a) + 0.2 * torch.eye(a.shape[1], dtype=torch.float64)
    expected = torch.linalg.solve(moment, plain.weight.grad.flatten(1).T).T
    torch.testing.assert_close(layer.weight.grad.flatten(1), expected, rtol=1e-8, atol=1e-8)


def test_the_module_stays_what_it_was_and_forgets_it() -> None:
    net = nn.Sequential(nn.Linear(4, 2), nn.ReLU(), nn.Linear(2, 1))
    keys, inputs = list(net.state_dict()), torch.randn(5, 4)
    before = net(inputs)
    acting = TrAct(first_layer(net))
    assert torch.equal(net(inputs), before)
    assert list(net.state_dict()) == keys
    assert isinstance(net[0].weight, nn.Parameter)
    other = copy.deepcopy(net)
    nn.init.zeros_(other[0].weight)
    assert not torch.equal(other(inputs), before)  # a copy is of its own weights
    with pytest.raises(ValueError, match="acts on this Linear already"):
        TrAct(net[0])
    acting.remove()
    with torch.no_grad():
        net(inputs)
    net(inputs).sum().backward()
    plain = copy.deepcopy(net)
    plain.zero_grad()
    plain(inputs).sum().backward()
    assert torch.equal(net[0].weight.grad, plain[0].weight.grad)


def test_an_error_in_the_forward_pass_leaves_the_parameter() -> None:
    layer = nn.Linear(4, 2)
    with TrAct(layer):
        with pytest.raises(RuntimeError):
            layer(torch.zeros(3, 5))
        assert isinstance(layer.weight, nn.Parameter)


def test_two_uses_in_one_pass_are_solved_apart() -> None:
    layer = nn.Linear(4, 2, bias=False).double()
    inputs, upstream = [wave((6, 4), seed) for seed in (1, 2)], wave((6, 2), 3)
    each = []
    with TrAct(layer):
        for one in inputs:
            layer.zero_grad()
            layer(one).backward(upstream)
            assert layer.weight.grad is not None
            each.append(layer.weight.grad.clone())
        layer.zero_grad()
        (layer(inputs[0]) + layer(inputs[1])).backward(upstream)
    torch.testing.assert_close(layer.weight.grad, each[0] + each[1])


def test_autocast_and_half_inputs_are_solved_in_float32() -> None:
    layer = nn.Linear(4, 2)
    reference = copy.deepcopy(layer)
    inputs = wave((64, 4), 1).float()
    with TrAct(layer), torch.autocast("cpu", torch.bfloat16):
        layer(inputs).sum().backward()
    with TrAct(reference):
        reference(inputs).sum().backward()
    assert layer.weight.grad.dtype == torch.float32  # type: ignore[union-attr]
    torch.testing.assert_close(layer.weight.grad, reference.weight.grad, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("rows", [3, 64])
def test_a_backward_pass_after_autocast_is_solved_in_float32(rows: int) -> None:
    layer, inputs, found = nn.Linear(8, 2, bias=False), wave((rows, 8), 1).float(), []
    for solved in (False, True):
        layer.zero_grad()
        with TrAct(layer) if solved else contextlib.nullcontext():
            with torch.autocast("cpu", torch.bfloat16):
                outputs = layer(inputs)
            outputs.backward(torch.ones_like(outputs))  # outside, as torch advises
        assert layer.weight.grad is not None
        found.append(layer.weight.grad.double())
    moment = inputs.double().T @ inputs.double() / rows + 0.1 * torch.eye(8, dtype=torch.float64)
    expected = torch.linalg.solve(moment, found[0].T).T
    assert (found[1] - expected).norm() < 1e-2 * expected.norm()  # what autograd casts is rounded to bfloat16


def test_what_it_refuses() -> None:
    with pytest.raises(TypeError, match="takes a Linear, Conv1d or Conv2d, got Embedding"):
        TrAct(nn.Embedding(3, 2))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="groups=2"):
        TrAct(nn.Conv2d(4, 4, 3, groups=2))
    with pytest.raises(ValueError, match="strength must be finite and above 0"):
        TrAct(nn.Linear(2, 2), strength=0)
    with pytest.raises(ValueError, match=r"0\.weight, is of a Embedding"):
        first_layer(nn.Sequential(nn.Embedding(3, 2), nn.Linear(2, 2)))
    layer = nn.Linear(2, 1)
    with TrAct(layer):
        (slope,) = torch.autograd.grad(layer(torch.ones(1, 2)).square().sum(), layer.weight, create_graph=True)
        with pytest.raises(RuntimeError, match="once_differentiable"):
            slope.sum().backward()
