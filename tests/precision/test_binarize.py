"""Weights of one bit: the published slope, gradients through the scale, indicators, resume, recipes, refusals."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.pruning.waves import wave
from trimtab import attach
from trimtab.precision import Binarize, estimated_slope
from trimtab.precision.binary import BinarySign, power_at
from trimtab.runs.precision_section import Precision, build_precision
from trimtab.runs.recipe import Recipe
from trimtab.studies.precision.logistic import wanted_descents
from trimtab.studies.precision.variants import FormatStudy

POINTS = torch.tensor([-2.0, -1.5, -0.7, -0.1, -0.05, 0.0, 0.05, 0.1, 0.7, 1.5, 2.0], dtype=torch.float64)
SLOPES = {
    1.0: [0.0, 1.0, 1.0, 1.0, 1.0, 1.0],
    2.0: [0.0, 0.4082482905, 0.5976143047, 3.16227766, 3.16227766, 3.16227766],
    3.0: [0.0, 0.2543809428, 0.4228114294, 4.641588834, 4.641588834, 4.641588834],
}


@pytest.mark.parametrize("o", SLOPES)
def test_the_slope_is_the_written_down_one(o: float) -> None:
    expected = torch.tensor(SLOPES[o] + SLOPES[o][-2::-1], dtype=torch.float64)
    torch.testing.assert_close(estimated_slope(POINTS, o), expected, rtol=1e-9, atol=0)
    x = POINTS.clone().requires_grad_()
    signs = BinarySign.apply(x, o, 1.5, 0.1)  # type: ignore[no-untyped-call]
    signs.sum().backward()
    torch.testing.assert_close(x.grad, expected, rtol=1e-9, atol=0)
    assert signs.tolist() == [-1.0] * 5 + [1.0] * 6, "0 counts as positive"


def test_o_grows_as_published() -> None:
    found = [power_at(epoch / 100, 3.0) for epoch in (0, 25, 50, 75, 100)]
    assert found == pytest.approx([1.0, 1.152240935, 1.585786438, 2.234633135, 3.0], abs=1e-9)
    lever = Binarize(total_steps=4, ends=True)
    net = nn.Linear(3, 2, bias=False)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with attach(optimizer, lever, model=net):
        seen = [lever.o]
        for _ in range(5):
            net(torch.ones(1, 3)).sum().backward()
            optimizer.step()
            seen.append(lever.o)
    assert seen == pytest.approx([1.0, 1.152240935, 1.585786438, 2.234633135, 3.0, 3.0], abs=1e-9)


class OfAutograd(nn.Module):
    """The same by autograd: signs with their estimator times the mean magnitude, which is not detached."""

    def __init__(self, weight: Tensor, scale: str | None, o: float) -> None:
        super().__init__()
        self.weight, self.scale, self.o = nn.Parameter(weight.clone()), scale, o

    def forward(self, x: Tensor) -> Tensor:
        signs = BinarySign.apply(self.weight, self.o, 1.5, 0.1)  # type: ignore[no-untyped-call]
        if self.scale is not None:
            dims = None if self.scale == "tensor_mean" else (1, 2, 3)
            signs = signs * self.weight.abs().mean(dims, keepdim=True)
        return nn.functional.conv2d(x, signs)


@pytest.mark.parametrize("scale", ["tensor_mean", "channel_mean", None])
@pytest.mark.parametrize("estimator", ["reste", "ste"])
def test_steps_equal_those_of_autograd(scale: Any, estimator: Any) -> None:
    weight, x = wave((3, 2, 2, 2), 2, 0.8), wave((2, 2, 4, 4), 5)
    net = nn.Conv2d(2, 3, 2, bias=False).double()
    net.weight.data = weight.clone()
    lever = Binarize(estimator, scale=scale, ends=True)
    lever.set_progress(0.6)
    other = OfAutograd(weight, scale, lever.o)
    optimizers = [torch.optim.SGD(each.parameters(), lr=0.05, momentum=0.9) for each in (net, other)]
    with attach(optimizers[0], lever, model=net):
        for _ in range(4):
            outputs = []
            for each, optimizer in zip((net, other), optimizers, strict=True):
                optimizer.zero_grad()
                outputs.append(each(x))
                (outputs[-1] - 1).square().mean().backward()
                optimizer.step()
            torch.testing.assert_close(*outputs)
        assert len(net.weight.abs().unique()) <= (3 if scale == "channel_mean" else 1)
        with lever.full_precision():
            torch.testing.assert_close(net.weight, other.weight)
    torch.testing.assert_close(net.weight, other.weight)
    assert (lever.o == 1) == (estimator == "ste")


def test_indicators_are_those_of_the_step() -> None:
    net = nn.Sequential(nn.Linear(4, 3, bias=False), nn.Linear(3, 2, bias=False)).double()
    weights = [layer.weight.detach().clone() for layer in net]
    lever, optimizer = Binarize(ends=True), torch.optim.SGD(net.parameters(), lr=0.1)
    lever.set_progress(1.0)
    with attach(optimizer, lever, model=net):
        net(wave((5, 4), 1)).square().sum().backward()
        optimizer.step()
        found = lever.describe()
    error = sum((w.sign() * w.abs() ** (1 / 3) - w.sign()).norm().item() for w in weights)
    variance = sum(layer.weight.grad.abs().var().item() for layer in net)
    assert found == pytest.approx({"o": 3.0, "error": error, "stability": variance})


def test_the_first_and_last_layer_stay_full_and_inputs_are_signs_on_demand() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 2))
    seen: list[Tensor] = []
    before = [layer.weight.detach().clone() for layer in net]
    lever = Binarize(activations=True)
    handle = attach(torch.optim.SGD(net.parameters(), lr=0.1), lever, model=net)
    net[1].register_forward_hook(lambda module, args, out: seen.append(args[0]))
    x = torch.randn(5, 4, requires_grad=True)
    net(x).sum().backward()
    assert set(seen[0].unique().tolist()) == {-1.0, 1.0}
    assert x.grad is not None
    assert x.grad.any()
    assert [len(layer.weight.abs().unique()) for layer in net] == [24, 1, 12]
    assert {entry.name: reason for entry, reason in lever.left_out}["0.weight"].startswith("first or last layer")
    with lever.full_precision():
        net(x)
    assert len(seen[1].unique()) > 2
    handle.remove()
    for layer, weight in zip(net, before, strict=True):
        assert torch.equal(layer.weight, weight)


def test_inputs_of_every_layer_that_shares_a_weight_are_signs() -> None:
    net = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    net[1].weight = net[0].weight
    attach(torch.optim.SGD(net.parameters(), lr=0.1), Binarize(activations=True, ends=True), model=net)
    inputs = wave((3, 4), 1).float()
    for layer in net:
        torch.testing.assert_close(layer(inputs), layer(inputs.sign()))


def test_a_resumed_run_goes_on_bit_for_bit() -> None:
    def build() -> tuple[nn.Module, torch.optim.Optimizer, Binarize]:
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 2))
        optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
        lever = Binarize(total_steps=8)
        attach(optimizer, lever, model=net)
        return net, optimizer, lever

    def run(net: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
        for step in steps:
            optimizer.zero_grad()
            net(torch.full((3, 4), float(step))).square().mean().backward()
            optimizer.step()

    net, optimizer, lever = build()
    run(net, optimizer, range(3))
    kept = copy.deepcopy((net.state_dict(), optimizer.state_dict(), lever.state_dict()))
    other, other_optimizer, other_lever = build()
    for part, state in zip((other, other_optimizer, other_lever), kept, strict=True):
        part.load_state_dict(state)  # type: ignore[arg-type]
    run(net, optimizer, range(3, 8))
    run(other, other_optimizer, range(3, 8))
    for one, two in zip(net.parameters(), other.parameters(), strict=True):
        assert torch.equal(one, two)
    assert lever.o == other_lever.o == 3.0
    with pytest.raises(ValueError, match="saved settings"):
        Binarize().load_state_dict(lever.state_dict())


def test_recipes_and_studies_know_binary_as_a_format_of_weights() -> None:
    (lever,) = build_precision(Precision(weights="binary"), 0, None, 100)
    assert isinstance(lever, Binarize)
    assert lever.total_steps == 100
    both = build_precision(Precision(weights="binary", gradients="e4m3"), 0, None)
    assert [type(each).__name__ for each in both] == ["LowPrecision", "Binarize"]
    study = FormatStudy(("binary", "int4"), tensors=("weights",))
    assert study.labels() == ["full", "binary", "int4"]
    assert wanted_descents(study.formats, ("nearest",), ("none",)) == [
        ("full", "nearest", "none"),
        ("int4", "nearest", "none"),
    ]
    for given, message in (
        ({"gradients": "binary"}, "binary is a format of weights alone, got it for gradients"),
        ({"weights": "binary", "scaling": "mx"}, "leave rounding, scaling and master as they are"),
        ({"weights": "binary", "rounding": "stochastic"}, "leave rounding, scaling and master as they are"),
    ):
        with pytest.raises(ValueError, match=message):
            Precision(**given)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="tensors must be weights"):
        FormatStudy(("binary",))
    assert Recipe().with_settings({"precision.weights": "binary"}).precision.rounds


def test_bad_input_is_named() -> None:
    for settings, message in (
        ({"estimator": "tanh"}, "estimator must be one of"),
        ({"o_end": 0.5}, "o_end must"),
        ({"clip": 0.0}, "clip must"),
        ({"interval": 2.0}, r"interval must lie in \(0, 1.5\], got 2.0"),
        ({"scale": "mean"}, "scale must be one of"),
        ({"total_steps": 0}, "total_steps must"),
    ):
        with pytest.raises(ValueError, match=message):
            Binarize(**settings)  # type: ignore[arg-type]
    net = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 3), nn.Linear(3, 2))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with pytest.raises(ValueError, match=r"attach\(\.\.\., model=model\)"):
        attach(optimizer, Binarize(activations=True))
    with pytest.raises(ValueError, match="LBFGS moves weights inside its step"):
        attach(torch.optim.LBFGS(net.parameters()), Binarize(), model=net)
    small = nn.Linear(2, 2)
    with pytest.raises(ValueError, match=r"finds nothing to binarize.*first or last layer"):
        attach(torch.optim.SGD(small.parameters()), Binarize(), model=small)
    with pytest.raises(ValueError, match="o follows total_steps"):
        Binarize(total_steps=3).set_progress(0.5)
    net[1].weight.data[0, 0] = float("nan")
    before = net[1].weight.detach().clone()
    with pytest.raises(ValueError, match=r"1\.weight holds NaN after 0 steps"):
        attach(optimizer, Binarize(), model=net)
    torch.testing.assert_close(net[1].weight, before, equal_nan=True)
