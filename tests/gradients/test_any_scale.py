"""Every norm and deviation against float64, where float32 squares overflow, vanish or add up their rounding."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from trimtab.gradients import AdaptiveClip, Autoscale, ClipNorm, GradientTransform, ZScore
from trimtab.optimizers.norms import global_norm
from trimtab.parameters import Entry
from trimtab.tensors.moments import moments
from trimtab.tensors.norms import joint_norm
from trimtab.tensors.unit_sums import unit_deviations, unit_moments, unit_norms, unit_squares, unit_sums

SCALES = pytest.mark.parametrize("scale", [1e-30, 1e-24, 1e-21, 1.0, 1e18, 1e20, 1e30])
SIZES = pytest.mark.parametrize("rows", [4, 10_000])


def gradient(rows: int, scale: float = 1.0) -> Tensor:
    values = torch.randn(rows, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(rows))
    return (scale * values).float()


def after(transform: GradientTransform, *gradients: Tensor) -> Tensor:
    """The last gradient as the transform leaves it, float64; weights are ones."""
    weight = nn.Parameter(torch.ones_like(gradients[0]))
    for given in gradients:
        weight.grad = given.clone()
        transform.before_step([Entry("weight", weight, 0)])
    assert weight.grad is not None
    return weight.grad.double()


@SCALES
@SIZES
def test_clip_norm(rows, scale):
    given = gradient(rows, scale)
    exact = float(given.double().norm())
    transform = ClipNorm(0.5 * exact)
    left = after(transform, given)
    assert float(transform.signals()["norm"]) == pytest.approx(exact, rel=1e-6)
    factor = min(1.0, 0.5 * exact / (exact + 1e-6))  # 1e-6 as in torch: it rules where norms are smaller
    torch.testing.assert_close(left, given.double() * factor, rtol=1e-6, atol=2e-45)


@SCALES
@SIZES
def test_adaptive_clip(rows, scale):
    given = gradient(rows, scale)
    norms = given.double().norm(dim=1, keepdim=True)
    factor = (0.01 * 2 / norms.clamp_min(1e-6)).clamp_max(1)
    left = after(AdaptiveClip(0.01, exclude_last_linear=False), given)
    torch.testing.assert_close(left, given.double() * factor, rtol=1e-6, atol=2e-45)


@SCALES
@SIZES
def test_autoscale(rows, scale):
    given = gradient(rows, scale)
    transform = Autoscale()
    after(transform, 2 * given, given)
    assert float(transform.signals()["sigma"]) == pytest.approx(float(given.double().std(correction=0)), rel=1e-6)
    assert float(transform.signals()["alpha"]) == pytest.approx(1 / (1 + math.log(2)), rel=1e-6)


@pytest.mark.parametrize("scale", [1.0, 1e18, 1e20, 1e30])
@SIZES
@pytest.mark.parametrize("granularity", ["tensor", "channel"])
def test_z_score(rows, scale, granularity):
    left = after(ZScore(granularity), gradient(rows, scale))
    deviations = left.std(dim=1) if granularity == "channel" else left.std()
    torch.testing.assert_close(deviations, torch.ones_like(deviations), rtol=2e-6, atol=0)


@pytest.mark.parametrize("values", ["normal", "uniform", "signs"])
def test_norms_of_millions_of_entries(values):
    """A sum in one float32 register is off by a percent here, whichever way it is vectorised by half a thousandth."""
    generator = torch.Generator().manual_seed(0)
    given = torch.rand(3_000_001, generator=generator)
    if values == "normal":
        given = torch.randn(3_000_001, generator=generator)
    if values == "signs":
        given = torch.where(given > 0.5, 0.1, -0.1)
    exact = float(given.double().norm())
    assert float(joint_norm([given])) == pytest.approx(exact, rel=1e-6)
    assert global_norm([given], [given]) == pytest.approx(exact, rel=1e-6)
    assert float(unit_squares([given.view(1, -1)]).sqrt()) == pytest.approx(exact, rel=1e-6)
    found = moments([given])
    assert found.variance.item() == pytest.approx(given.double().var(correction=0).item(), rel=1e-6)


@pytest.mark.parametrize("order", [0.5, 1.0, 2.0, 3.5, 10.0, math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_joint_norm_of_any_order(order, dtype):
    scale = 1e200 if dtype == torch.float64 else 1e30
    tensors = [scale * gradient(5).to(dtype), torch.zeros(0, dtype=dtype), scale * gradient(7).to(dtype)]
    together = torch.cat([tensor.flatten().double() / scale for tensor in tensors])
    assert float(joint_norm(tensors, order=order)) / scale == pytest.approx(
        float(torch.linalg.vector_norm(together, order)), rel=1e-6
    )
    before = [tensor.clone() for tensor in tensors]
    joint_norm(tensors, order=order)
    assert all(torch.equal(one, other) for one, other in zip(tensors, before, strict=True))
    assert float(joint_norm([torch.zeros(3, dtype=dtype)], order=order)) == 0
    assert not joint_norm([torch.tensor([1.0, math.nan], dtype=dtype)], order=order).isfinite()


@pytest.mark.parametrize("layout", ["rows", "long rows", "strided", "halves"])
def test_units_of_any_layout(layout, monkeypatch):
    monkeypatch.setattr("trimtab.tensors.unit_sums.PIECE_ON_CPU", 1000)
    rows = {
        "rows": 1e25 * gradient(300).view(3, 400),
        "long rows": 5 + gradient(10_000).view(2, 20_000),
        "strided": gradient(30).view(2, 5, 3, 4).transpose(0, 1),
        "halves": gradient(3000).view(3, 4000).bfloat16(),
    }[layout]
    exact = rows.double().flatten(1)
    torch.testing.assert_close(unit_squares([rows]).squeeze(1), exact.square().sum(1), rtol=1e-6, atol=0)
    scale = exact.abs().sum(1)
    assert bool(((unit_sums([rows]).squeeze(1) - exact.sum(1)).abs() <= 1e-6 * scale).all())
    number, total, within, between = unit_moments(rows).unbind(1)
    found = (within + between - total * total / number) / number
    torch.testing.assert_close(found, exact.var(1, correction=0), rtol=1e-6, atol=0)
    torch.testing.assert_close(unit_norms([rows]).squeeze(1), exact.norm(dim=1), rtol=1e-6, atol=0)
    sums, squares = unit_deviations([rows]).unbind(1)
    assert bool(((sums - exact.sum(1)).abs() <= 1e-6 * scale).all())
    torch.testing.assert_close(squares, exact.var(1, correction=0) * number, rtol=2e-6, atol=0)


@pytest.mark.parametrize("elements", [7, 640, 641, 2048, 9000])
def test_deviations_of_units_however_far_their_mean_and_small_their_size(elements):
    """Rows whose squares float32 holds, loses, or spoils by the mean's are told apart."""
    rows = torch.randn(6, elements, generator=torch.Generator().manual_seed(elements))
    rows = rows * torch.tensor([1.0, 1e-25, 1e25, 1e-3, 1.0, 0.0]).unsqueeze(1)
    rows += torch.tensor([0.1, 0.0, 0.0, 4.0, 1e3, 2.0]).unsqueeze(1)
    exact = rows.double()
    found = unit_deviations([rows, rows[:6]])
    squares = exact.var(1, correction=0) * elements
    assert torch.equal(found[:6], found[6:])
    torch.testing.assert_close(found[:6, 1], squares, rtol=2e-6, atol=0)
    assert bool(((found[:6, 0] - exact.sum(1)).abs() <= 1e-6 * exact.abs().sum(1)).all())
