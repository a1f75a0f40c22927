"""The straight-through module: values and gradients in formats of their own."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from torch.nn.utils import parametrize

from trimtab.precision import MX, StraightThrough, quantize


def test_forward_and_backward_round_apart():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4, 32, generator=generator, requires_grad=True)
    incoming = torch.randn(4, 32, generator=generator)
    y = StraightThrough("e2m1", "e5m2", scaling=MX(), backward_rounding="toward_zero")(x)
    assert torch.equal(y, quantize(x, "e2m1", scaling=MX()))
    y.backward(incoming)
    assert torch.equal(x.grad, quantize(incoming, "e5m2", rounding="toward_zero"))
    assert not torch.equal(x.grad, incoming)


def test_one_side_alone():
    x = torch.tensor([0.3, 100.0], requires_grad=True)
    y = StraightThrough("e2m1")(x)
    y.backward(torch.tensor([0.3, 0.7]))
    assert y.tolist() == [0.5, 6.0]
    assert torch.equal(x.grad, torch.tensor([0.3, 0.7]))  # beyond the largest number too
    x.grad = None
    y = StraightThrough(None, "e2m1")(x)
    assert torch.equal(y, x)
    y.backward(torch.tensor([0.3, 0.7]))
    assert x.grad.tolist() == [0.5, 0.5]


def test_as_a_parametrisation_it_leaves_the_weight_in_full_precision():
    torch.manual_seed(0)
    layer = torch.nn.Linear(8, 4)
    full = layer.weight.detach().clone()
    parametrize.register_parametrization(layer, "weight", StraightThrough("int4", scaling=MX()))
    assert torch.equal(layer.weight, quantize(full, "int4", scaling=MX()))
    x = torch.randn(3, 8)
    layer(x).sum().backward()
    original = layer.parametrizations.weight.original
    assert torch.equal(original, full)
    assert torch.allclose(original.grad, x.sum(0).expand(4, 8))


def test_stochastic_state_survives_saving_and_copying():
    x = torch.randn(500, generator=torch.Generator().manual_seed(1))
    module = torch.nn.Sequential(StraightThrough("e2m1", rounding="stochastic", seed=5))
    fresh = copy.deepcopy(module)
    first = module(x)
    assert torch.equal(fresh(x), first)
    stream = io.BytesIO()
    torch.save(module.state_dict(), stream)
    stream.seek(0)
    twin = copy.deepcopy(module)
    following = module(x)
    assert not torch.equal(following, first)
    assert torch.equal(twin(x), following)
    resumed = torch.nn.Sequential(StraightThrough("e2m1", rounding="stochastic", seed=6))
    resumed.load_state_dict(torch.load(stream, weights_only=True))
    again = copy.deepcopy(resumed)  # before it has drawn anything
    assert torch.equal(resumed(x), following)
    assert torch.equal(again(x), following)


def test_global_generator_is_left_alone():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    StraightThrough("e2m1", rounding="stochastic")(torch.ones(10))
    assert torch.equal(before, torch.get_rng_state())


def test_repr_and_bad_input():
    assert repr(StraightThrough("fp4", "fp8", "stochastic")) == (
        "StraightThrough(forward=e2m1 stochastic, backward=e4m3 nearest)"
    )
    with pytest.raises(ValueError, match="got None for both"):
        StraightThrough(None)
    with pytest.raises(ValueError, match="unknown number format"):
        StraightThrough("e4m3", "nothing")
    with pytest.raises(ValueError, match="rounding must be one of"):
        StraightThrough("e4m3", rounding="odd")
