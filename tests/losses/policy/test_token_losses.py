"""PPO and GPPO: the sheet's numbers, gradients by hand, how tokens are joined, corners, bad input."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.losses.test_cross_entropies import wave
from trimtab.losses.policy import gppo, ppo
from trimtab.losses.policy.tokens import joined

OLD, ADVANTAGE = wave(2, 4, seed=2, scale=0.5) - 1, wave(2, 4, seed=3)
MASK = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])


def new() -> Tensor:
    return (wave(2, 4, seed=1, scale=0.5) - 1).requires_grad_()


def gradient(loss: Any, *arguments: Any, **settings: Any) -> tuple[float, list[Any]]:
    logp = arguments[0].clone().requires_grad_()
    value, _ = loss(logp, *arguments[1:], **settings)
    (found,) = torch.autograd.grad(value, logp)
    return value.item(), found.tolist()


@pytest.mark.parametrize("loss", [ppo, gppo])
def test_the_sheets_value_and_gradient(loss: Any) -> None:
    value, found = gradient(loss, new(), OLD, ADVANTAGE, MASK)
    assert value == pytest.approx(0.1613534623, rel=1e-9)
    assert found[0] == pytest.approx([-0.06571969758, 0.1980182594, 0.2606068882, -0.02666271927], rel=1e-8)
    assert found[1] == pytest.approx([-0.0607019219, -0.1441873466, 0.0, 0.0], rel=1e-8)


def test_ppo_equals_trls_clipped_surrogate_by_hand() -> None:
    ratio, gain = (new() - OLD).exp(), ADVANTAGE
    each = -torch.minimum(ratio * gain, ratio.clamp(0.9, 1.05) * gain)
    found, info = ppo(new(), OLD, gain, MASK, low=0.1, high=0.05, aggregate="none")
    torch.testing.assert_close(found, each * MASK)
    clipped = (ratio.clamp(0.9, 1.05) * gain < ratio * gain) & (MASK != 0)
    assert info["clip"].item() == pytest.approx(clipped.sum().item() / 6)
    assert info["kl"].item() == pytest.approx((((ratio - 1 - ratio.log()) * MASK).sum() / 6).item())


@pytest.mark.parametrize(
    ("log_ratio", "advantage", "value", "slope"),
    [
        (math.log(2.0), 1.0, -1.28, -1.28),  # PPO has no gradient here
        (math.log(0.5), -1.0, 0.8, 0.8),  # nor here
        (math.log(2.0), -1.0, 2.0, 2.0),
        (math.log(0.5), 1.0, -0.5, -0.5),
        (math.log(4.0), -1.0, 3.0, 0.0),  # the dual clip: constant
        (math.log(1.1), 1.0, -1.1, -1.1),
        (25.0, 1.0, -1.28, 0.0),  # held at 20
    ],
)
def test_gppos_gradient_in_each_region(log_ratio: float, advantage: float, value: float, slope: float) -> None:
    old = torch.tensor([[-30.0]], dtype=torch.float64)
    found = gradient(gppo, old + log_ratio, old, torch.tensor([advantage]), torch.ones(1, 1))
    assert found[0] == pytest.approx(value)
    assert found[1][0][0] == pytest.approx(slope)
    plain = gradient(ppo, old + log_ratio, old, torch.tensor([advantage]), torch.ones(1, 1), high=0.28, dual=3.0)
    assert plain[0] == pytest.approx(value)
    clipped = abs(value) in (1.28, 0.8, 3.0)
    assert plain[1][0][0] == pytest.approx(0.0 if clipped else slope)


@pytest.mark.parametrize("loss", [ppo, gppo])
def test_joining_equals_plain_means_over_the_tokens(loss: Any) -> None:
    each, _ = loss(new(), OLD, ADVANTAGE, MASK, aggregate="none")
    rows = [each[0].tolist(), each[1, :2].tolist()]
    expected = {
        "token": sum(map(sum, rows)) / 6,
        "sequence": (sum(rows[0]) / 4 + sum(rows[1]) / 2) / 2,
        "sequence_sum_norm": sum(map(sum, rows)) / 8,
        "sum": sum(map(sum, rows)),
    }
    for how, value in expected.items():
        assert loss(new(), OLD, ADVANTAGE, MASK, aggregate=how)[0].item() == pytest.approx(value)
        assert joined(each, MASK != 0, how).item() == pytest.approx(value)


@pytest.mark.parametrize("loss", [ppo, gppo])
def test_what_is_masked_counts_nowhere_and_what_is_nan_stays(loss: Any) -> None:
    logp, old, gain = new().detach(), OLD.clone(), ADVANTAGE.clone()
    expected = gradient(loss, logp, old, gain, MASK)
    for tensor, poison in ((logp, math.nan), (old, -math.inf), (gain, math.nan)):
        tensor[1, 2:] = poison
    assert gradient(loss, logp, old, gain, MASK.bool()) == expected
    logp[0, 0] = math.nan
    assert math.isnan(loss(logp, old, gain, MASK)[0])
    one = loss(new().detach(), OLD, torch.tensor([0.5, -2.0]), MASK)[0]
    torch.testing.assert_close(one, loss(new().detach(), OLD, torch.tensor([[0.5] * 4, [-2.0] * 4]), MASK)[0])


@pytest.mark.parametrize("loss", [ppo, gppo])
def test_halves_are_computed_in_float32(loss: Any) -> None:
    logp = new().detach().half().requires_grad_()
    value, info = loss(logp, OLD.half(), ADVANTAGE.half(), MASK)
    value.backward()
    assert value.dtype == torch.float32
    assert logp.grad.dtype == torch.float16
    assert value.item() == pytest.approx(0.16135, rel=1e-2)
    assert info["clamped"] == 0
    assert loss(new(), OLD - 30, ADVANTAGE, MASK)[1]["clamped"] == 6


@pytest.mark.parametrize("loss", [ppo, gppo])
def test_bad_input_is_one_clear_error(loss: Any) -> None:
    empty = MASK.clone()
    empty[1] = 0
    with pytest.raises(ValueError, match=r"row 1 of the mask has no token: leave such rows out"):
        loss(new(), OLD, ADVANTAGE, empty)
    assert loss(new(), OLD, ADVANTAGE, empty, aggregate="none")[0][1].abs().sum() == 0
    nothing = loss(new(), OLD, ADVANTAGE, torch.zeros_like(empty), aggregate="none")[1]
    assert {name: value.item() for name, value in nothing.items()} == {"clip": 0, "kl": 0, "clamped": 0}
    with pytest.raises(ValueError, match="row 0 of the mask has no token"):
        loss(new(), OLD, ADVANTAGE, 0 * MASK)
    with pytest.raises(ValueError, match="the mask must hold 0 and 1 only"):
        loss(new(), OLD, ADVANTAGE, 2 * MASK)
    with pytest.raises(ValueError, match=r"old_logp and mask must be of one shape .* got \(1, 4\) and \(2, 4\)"):
        loss(new(), OLD[:1], ADVANTAGE, MASK)
    with pytest.raises(ValueError, match=r"advantage must have the shape \(2,\) or \(2, 4\), got \(3, 1\)"):
        loss(new(), OLD, torch.ones(3, 1), MASK)
    with pytest.raises(TypeError, match=r"logp must be floating-point, got torch\.int64"):
        loss(MASK, OLD, ADVANTAGE, MASK)
    with pytest.raises(ValueError, match=r"aggregate must be one of 'token', .* got 'mean'"):
        loss(new(), OLD, ADVANTAGE, MASK, aggregate="mean")
    with pytest.raises(ValueError, match=r"low must lie in \[0, 1\), got 1"):
        loss(new(), OLD, ADVANTAGE, MASK, low=1)
    with pytest.raises(ValueError, match="dual must be finite and above 1, got 1"):
        loss(new(), OLD, ADVANTAGE, MASK, dual=1)
