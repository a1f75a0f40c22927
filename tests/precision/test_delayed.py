"""Delayed scaling: a memory of magnitudes."""

from __future__ import annotations

import math

import pytest
import torch

from trimtab.precision import Delayed, LowPrecision, PerTensor, named, quantize, shrinkage, shrinkage_sums


def test_the_scale_is_that_of_the_steps_before():
    x = torch.randn(50, 64, generator=torch.Generator().manual_seed(0))
    sizes = [1.0, 3.0, 0.5, 0.25, 0.25, 8.0]
    for choice, used in (("max", [1.0, 1.0, 3.0, 3.0, 0.5, 0.25]), ("most_recent", [1.0, *sizes[:-1]])):
        scaling = Delayed(history=2, choice=choice)
        for size, before in zip(sizes, used, strict=True):
            scale = (x.abs().max() * before) / 448
            expected = (quantize(x * size / scale, "e4m3") * scale).float()
            torch.testing.assert_close(quantize(x * size, "e4m3", scaling=scaling), expected, rtol=1e-6, atol=0)
    assert torch.equal(quantize(x, "e4m3", scaling=Delayed()), quantize(x, "e4m3", scaling=PerTensor()))


def test_growth_saturates_and_the_meter_counts_it_without_changing_the_memory():
    scaling, x = Delayed(history=4), torch.linspace(-1, 1, 100)
    quantize(x, "e4m3", scaling=scaling)
    rounded = quantize(4 * x, "e4m3", scaling=scaling)
    assert float(rounded.max()) == 1.0
    seen = scaling.seen.clone()
    sums = shrinkage_sums(4 * x, rounded, named("e4m3"), scaling)
    assert float(shrinkage(sums).overflow) == pytest.approx(float(((4 * x).abs() > 1).sum() / 100))
    assert torch.equal(scaling.seen, seen)


def test_a_question_and_a_refusal_are_not_remembered():
    scaling = Delayed(history=3)
    assert scaling.scales(torch.tensor([6.0]), "e2m1").item() == 1.0
    assert scaling.of_last(torch.tensor([6.0]), named("e2m1")).item() == 6.0
    quantize(torch.tensor([6.0]), "e2m1", scaling=scaling)
    assert scaling.scales(torch.tensor([600.0]), "e2m1").item() == 1.0
    with pytest.raises(ValueError, match="above the largest number"):
        quantize(torch.tensor([600.0]), "e2m1", scaling=scaling, overflow="raise")
    with pytest.raises(ValueError, match="x has NaN"):
        quantize(torch.tensor([math.nan]), "e2m1", scaling=scaling, overflow="raise")
    assert scaling.seen.tolist() == [6.0]
    assert scaling.of_last(torch.tensor([600.0]), named("e2m1")).item() == 6.0
    assert quantize(torch.tensor([3.0]), "e2m1", scaling=scaling).item() == 3.0


def test_zeros_and_what_is_not_finite():
    scaling = Delayed(history=8)
    assert bool((quantize(torch.zeros(5), "e4m3", scaling=scaling) == 0).all())
    assert quantize(torch.tensor([2.0]), "e4m3", scaling=scaling).item() == 2.0
    rounded = quantize(torch.tensor([1.0, math.nan, math.inf]), "e4m3", scaling=scaling)
    assert rounded[0] == 1.0
    assert bool(rounded[1].isnan())
    assert rounded[2] == 2.0
    assert scaling.seen.tolist() == [0.0, 2.0, 2.0]


def test_it_goes_on_where_it_stood():
    one, x = Delayed(history=3, margin=1), torch.randn(100, generator=torch.Generator().manual_seed(1))
    for size in (1.0, 5.0, 2.0):
        quantize(x * size, "e2m1", scaling=one)
    other = Delayed(history=3, margin=1)
    other.load_state_dict(one.state_dict())
    for size in (3.0, 1.0):
        assert torch.equal(quantize(x * size, "e2m1", scaling=one), quantize(x * size, "e2m1", scaling=other))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Delayed(0), "history of delayed scaling must be a whole number of 1 or more, got 0"),
        (lambda: Delayed(choice="mean"), "choice must be one of 'max', 'most_recent', got 'mean'"),
        (lambda: Delayed(rule="floor"), "got 'floor'"),
        (lambda: Delayed(2).load_state_dict({"seen": torch.ones(3)}), r"at most 2, got shape \(3,\)"),
        (lambda: LowPrecision("e4m3", scaling=Delayed()), "remembers one tensor; LowPrecision rounds many"),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(ValueError, match=message):
        make()
