"""Learning rates by rule: the sheet's numbers, and what they do on a quadratic."""

from __future__ import annotations

import math

import pytest
import torch

from trimtab.observe.curvature import denoised_top
from trimtab.optimizers import (
    MomentumReset,
    learning_rate_from_spectrum,
    lora_plus_groups,
    scale_learning_rate,
)


def test_the_sheets_numbers() -> None:
    assert [scale_learning_rate(0.1, 128, 512, rule) for rule in ("linear", "sqrt")] == pytest.approx([0.4, 0.2])  # type: ignore[arg-type]
    found = learning_rate_from_spectrum([10.0, 0.1], "heavy_ball")
    assert (found.lr, found.momentum) == pytest.approx((0.3305785124, 0.6694214876), rel=1e-9)


@pytest.mark.parametrize(("safety", "ends"), [(1.05, False), (0.5, True)])
def test_gradient_descent_is_stable_below_the_limit_and_not_above(safety: float, ends: bool) -> None:
    curvature = torch.tensor([0.5, 3.0, 40.0], dtype=torch.float64)
    lr = learning_rate_from_spectrum(curvature.tolist(), safety=min(safety, 1.0)).lr * max(1.0, safety)
    x = torch.ones(3, dtype=torch.float64)
    for _ in range(300):
        x = x - lr * curvature * x
    assert (float(x.abs().max()) < 1) == ends


def test_heavy_ball_beats_gradient_descent_on_a_quadratic() -> None:
    curvature = torch.tensor([0.1, 10.0], dtype=torch.float64)
    left = []
    for kind in ("gradient_descent", "heavy_ball"):
        found = learning_rate_from_spectrum(curvature.tolist(), kind)  # type: ignore[arg-type]
        weight = torch.nn.Parameter(torch.ones(2, dtype=torch.float64))
        optimizer = torch.optim.SGD([weight], lr=found.lr, momentum=found.momentum)
        for _ in range(60):
            weight.grad = curvature * weight.detach()
            optimizer.step()
        left.append(float(weight.detach().norm()))
    assert left[1] < 1e-2 * left[0]


def test_the_largest_eigenvalue_under_noise_is_found_again() -> None:
    assert denoised_top(3.333333333, 1.0) == pytest.approx(3.0, rel=1e-9)  # the sheet's number, turned round
    assert denoised_top(2.0, 1.0) == 1.0  # the edge of the noise, where a spike is as large as sqrt(s)
    assert denoised_top(7.0, 0.0) == 7.0
    generator, size = torch.Generator().manual_seed(0), 200
    raw = torch.randn(10, size, size, dtype=torch.float64, generator=generator)
    noise = (raw + raw.mT) / (2 * size) ** 0.5  # entries of variance 1 / size: s = 1
    noise[:, 0, 0] += 3.0  # the one eigenvalue of what the noise lies on
    seen = torch.linalg.eigvalsh(noise)[:, -1].tolist()
    assert sum(seen) / 10 == pytest.approx(10 / 3, rel=0.03)  # each wanders by a tenth or so
    assert sum(denoised_top(one, 1.0) for one in seen) / 10 == pytest.approx(3.0, rel=0.03)
    assert math.isnan(denoised_top(1.9, 1.0))
    assert math.isnan(denoised_top(-3.0, 1.0))
    with pytest.raises(ValueError, match="noise must be finite and 0 or more, got -1"):
        denoised_top(1.0, -1.0)


def test_negative_eigenvalues_are_said_and_bad_input_is_refused() -> None:
    assert "1 of 2 eigenvalues are not above 0" in learning_rate_from_spectrum([-1.0, 2.0]).note
    with pytest.raises(ValueError, match=r"eigenvalues must hold one above 0, got \[-1.0\]"):
        learning_rate_from_spectrum([-1.0])
    with pytest.raises(ValueError, match="rule must be one of 'linear', 'sqrt', got 'cubic'"):
        scale_learning_rate(0.1, 1, 2, "cubic")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="from_batch must be finite and above 0, got 0"):
        scale_learning_rate(0.1, 0, 2)
    with pytest.raises(ValueError, match=r"warmup must not be longer than every \(10\), got 11"):
        MomentumReset(10, 11)


def test_adapters_without_both_factors_are_refused() -> None:
    net = torch.nn.ModuleDict({"lora_A": torch.nn.Linear(2, 2), "lora_B": torch.nn.Linear(2, 2)})
    net["lora_B"].requires_grad_(False)
    with pytest.raises(
        ValueError, match=r"no trained parameter of ModuleDict is a second factor .*such as lora_A.weight"
    ):
        lora_plus_groups(net, 0.1)
    net.requires_grad_(True)
    optimizer = torch.optim.AdamW(lora_plus_groups(net, 0.1, 2))
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.2]
    with pytest.raises(ValueError, match="ratio must be finite and 1 or more, got 0"):
        lora_plus_groups(net, 0.1, 0.5)
