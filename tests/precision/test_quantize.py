"""`quantize`: policies, bad input, memory, gradients."""

from __future__ import annotations

import pytest
import torch

from trimtab.precision import MX, PerTensor, named, quantize


def test_it_rounds():
    x = torch.tensor([0.3, -5.2, 100.0, -0.1])
    assert quantize(x, "e2m1").tolist() == [0.5, -6.0, 6.0, -0.0]
    assert quantize(x, "e2m1", rounding="toward_zero").tolist() == [0.0, -4.0, 6.0, -0.0]


def test_the_input_is_not_touched_and_no_gradient_flows():
    x = torch.randn(1000, requires_grad=True)
    before = x.detach().clone()
    result = quantize(x, "e4m3")
    assert torch.equal(x.detach(), before)
    assert not result.requires_grad
    parameter = torch.nn.Parameter(torch.tensor([0.3]))
    assert quantize(parameter, "e2m1", out=parameter) is parameter
    assert parameter.requires_grad
    assert parameter.tolist() == [0.5]


def test_out_that_overlaps_the_input():
    x = torch.linspace(-3, 3, 101)
    expected = quantize(x[:-1], "e2m1")
    shifted = x.clone()
    assert torch.equal(quantize(shifted[:-1], "e2m1", out=shifted[1:]), expected)
    turned = x[:100].clone().view(10, 10)
    assert torch.equal(quantize(turned, "e2m1", out=turned.t()), expected.view(10, 10))


@pytest.mark.parametrize("x", [torch.tensor(0.3), torch.empty(0), torch.empty(3, 0, 2), torch.ones(1, 1, 1) * 0.3])
@pytest.mark.parametrize("scaling", [None, PerTensor(), MX()])
def test_small_shapes(x, scaling):
    if scaling == MX() and x.ndim == 0:
        with pytest.raises(ValueError, match=r"one number\) has no channels or blocks"):
            quantize(x, "e2m1", scaling=scaling)
        return
    for rounding in ("nearest", "stochastic"):
        scaling = MX(rule="ceil") if scaling == MX() and rounding == "stochastic" else scaling  # floor warns
        result = quantize(x, "e2m1", rounding=rounding, scaling=scaling)
        assert result.shape == x.shape
        assert bool(((result - x).abs() < 0.31).all())
    assert quantize(x, "e2m1", overflow="raise", scaling=scaling).shape == x.shape


def test_expanded_input():
    assert quantize(torch.tensor([[0.3], [2.4]]).expand(2, 3), "e2m1").tolist() == [[0.5] * 3, [2.0] * 3]


@pytest.mark.parametrize(
    ("x", "message"),
    [
        ([1.0, float("nan")], "x has NaN, which overflow='raise' refuses for format 'e4m3'"),
        ([1.0, float("inf")], "x has an infinity"),
        ([1.0, -464.1], r"magnitudes up to 464\.1, above the largest number of format 'e4m3', 448"),
    ],
)
def test_raise(x, message):
    x = torch.tensor(x)
    before = x.clone()
    with pytest.raises(ValueError, match=message):
        quantize(x, "e4m3", overflow="raise", out=x)
    assert torch.equal(x.nan_to_num(7.0), before.nan_to_num(7.0))  # nothing was written


def test_raise_lets_pass_what_rounds_into_the_range():
    # 464 is a tie between 448 and 480, and 448 is even; 7 one between 6 and 8, and 6 is odd
    assert quantize(torch.tensor([464.0]), "e4m3", overflow="raise").tolist() == [448.0]
    assert quantize(torch.tensor([6.9]), "e2m1", overflow="raise").tolist() == [6.0]
    with pytest.raises(ValueError, match="up to 7, above"):
        quantize(torch.tensor([7.0]), "e2m1", overflow="raise")
    assert quantize(torch.tensor([7.9]), "e2m1", rounding="toward_zero", overflow="raise").tolist() == [6.0]
    with pytest.raises(ValueError, match="up to 8"):
        quantize(torch.tensor([8.0]), "e2m1", rounding="toward_zero", overflow="raise")
    assert quantize(torch.tensor([7.4]), "int4", overflow="raise").tolist() == [7.0]
    with pytest.raises(ValueError, match=r"up to 7\.5"):
        quantize(torch.tensor([7.5]), "int4", overflow="raise")


@pytest.mark.parametrize("rounding", ["nearest", "toward_zero"])
@pytest.mark.parametrize("name", ["fp16", "e4m3", "e5m2", "e2m1", "int4", "e3m0finite"])
def test_raise_refuses_exactly_where_nan_marks(name, rounding):
    format = named(name)
    near = torch.linspace(0.9, 2.1, 4001) * format.max
    for x in torch.cat([near, near.new_tensor([format.max])]).split(1)[::40]:
        marked = bool(quantize(x, format, rounding=rounding, overflow="nan").isnan())
        if marked:
            with pytest.raises(ValueError, match="overflow='raise'"):
                quantize(x, format, rounding=rounding, overflow="raise")
        else:
            quantize(x, format, rounding=rounding, overflow="raise")


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"x": [1.0]}, TypeError, "x must be a tensor, got list"),
        ({"x": torch.ones(2, dtype=torch.complex64)}, TypeError, "got torch.complex64"),
        ({"x": torch.ones(2, dtype=torch.int32)}, TypeError, "float64, float32, float16, bfloat16, got torch.int32"),
        ({"x": torch.ones(2).to(torch.float8_e5m2)}, TypeError, "got torch.float8_e5m2"),
        ({"x": torch.ones(2).to_sparse()}, TypeError, "torch.sparse_coo"),
        ({"format": "e4m33"}, ValueError, "does not fit into torch.float32"),
        ({"format": "e4n3"}, ValueError, "did you mean e4m3"),
        (
            {"rounding": "odd"},
            ValueError,
            "rounding must be one of 'nearest', 'ties_away', 'toward_zero', 'up', .*got 'odd'",
        ),
        ({"overflow": "wrap"}, ValueError, "overflow must be one of 'saturate', 'inf', 'nan', 'raise', got 'wrap'"),
        ({"overflow": "inf"}, ValueError, "format 'e4m3' has no infinity"),
        ({"scaling": "mx"}, TypeError, "scaling must be None, PerTensor"),
        ({"out": torch.empty(3)}, ValueError, "out must have the shape"),
        ({"out": torch.empty(2, dtype=torch.float64)}, ValueError, "got .2,., torch.float64"),
    ],
)
def test_bad_input(arguments, error, message):
    with pytest.raises(error, match=message):
        quantize(**{"x": torch.ones(2), "format": "e4m3", **arguments})


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_cuda_is_the_cpu():
    x = torch.randn(1 << 20) * torch.exp2(torch.randint(-30, 30, (1 << 20,)).float())
    for name in ("fp16", "bf16", "e4m3", "e5m2", "e2m1", "int8"):
        for rounding in ("nearest", "toward_zero"):
            for scaling in (None, MX()):
                expected = quantize(x, name, rounding=rounding, scaling=scaling)
                assert torch.equal(quantize(x.cuda(), name, rounding=rounding, scaling=scaling).cpu(), expected)
