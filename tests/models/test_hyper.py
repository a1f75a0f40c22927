"""A network that predicts another's weights: the encoding, sizes, gradients, several at once, refusals."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.func import functional_call

from trimtab.models.hyper import MagnitudeInvariant, encode, magnitude_slope


def test_the_encoding_is_the_written_down_one_and_of_constant_norm() -> None:
    found = encode(torch.tensor([[0.0, 0.25, 1.0]], dtype=torch.float64))
    expected = torch.tensor([[1.0, 0.9238795325, 6.123233996e-17, 0.0, 0.3826834324, 1.0]], dtype=torch.float64)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)
    torch.testing.assert_close(encode(torch.rand(9, 3)).norm(dim=-1), torch.full((9,), 3**0.5))


def test_what_is_predicted_does_not_grow_with_the_input_and_without_the_encoding_it_does() -> None:
    torch.manual_seed(0)
    target = nn.Linear(8, 1)
    slopes = [
        magnitude_slope(MagnitudeInvariant(2, (64, 64), target, encoded=each).change, 2) for each in (True, False)
    ]
    assert abs(slopes[0]) < 0.1
    assert slopes[1] == pytest.approx(1.0, abs=1e-4)


def test_parameters_are_the_start_and_a_change_and_both_are_trained() -> None:
    torch.manual_seed(0)
    target = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 3))
    hyper = MagnitudeInvariant(1, (6,), target)
    x = torch.tensor([0.3])
    parameters = hyper(x)
    change = hyper.change(x)
    assert {name: tuple(p.shape) for name, p in parameters.items()} == {
        name: tuple(p.shape) for name, p in target.named_parameters()
    }
    flat = torch.cat([p.flatten() for p in target.parameters()])
    torch.testing.assert_close(torch.cat([p.flatten() for p in parameters.values()]), flat + change)
    functional_call(target, parameters, torch.randn(4, 1, 4, 4)).square().sum().backward()
    assert hyper.start.grad is not None
    assert all(p.grad is not None and p.grad.any() for p in hyper.h.parameters())
    assert all(p.grad is None for p in target.parameters())


def test_several_networks_are_predicted_at_once() -> None:
    target, xs, data = nn.Linear(3, 2), torch.rand(5, 1), torch.randn(4, 3)
    hyper = MagnitudeInvariant(1, (6,), target)
    together = torch.func.vmap(lambda parameters: functional_call(target, parameters, data))(hyper(xs))
    for place, x in enumerate(xs):
        torch.testing.assert_close(together[place], functional_call(target, hyper(x), data))


def test_it_learns_the_path_of_a_ridge_regression() -> None:
    torch.manual_seed(0)
    inputs = torch.randn(64, 4)
    inputs -= inputs.mean(0)
    labels = inputs @ torch.randn(4, 1)
    target = nn.Linear(4, 1, bias=False)
    hyper = MagnitudeInvariant(1, (32,), target)
    optimizer = torch.optim.Adam(hyper.parameters(), lr=3e-3)
    for _ in range(400):
        strengths = torch.rand(8, 1)
        weights = hyper(strengths)["weight"].squeeze(1)
        errors = (weights @ inputs.T - labels.T).square().mean(1)
        optimizer.zero_grad()
        (errors + strengths.squeeze(1) * weights.square().sum(1)).mean().backward()
        optimizer.step()
    for strength in (0.0, 0.3, 1.0):
        best = torch.linalg.solve(inputs.T @ inputs / 64 + strength * torch.eye(4), inputs.T @ labels / 64)
        found = hyper(torch.tensor([strength]))["weight"].detach().T
        assert (found - best).norm().item() < 0.15 * best.norm().item()


def test_bad_input_is_named() -> None:
    target = nn.Linear(3, 2)
    hyper = MagnitudeInvariant(1, (6,), target)
    for x, message in (
        (torch.tensor([1.5]), r"must lie in \[0, 1\], got 1.5 to 1.5"),
        (torch.tensor([float("nan")]), r"must lie in \[0, 1\]"),
        (torch.rand(2), r"must have 1 numbers in the last dimension, got shape \(2,\)"),
    ):
        with pytest.raises(ValueError, match=message):
            hyper(x)
    for arguments, message in (
        ((0, (6,), target), "inputs must be"),
        ((1, (0,), target), "hidden must be"),
        ((1, (6,), nn.ReLU()), "no floating-point parameters"),
    ):
        with pytest.raises(ValueError, match=message):
            MagnitudeInvariant(*arguments)  # type: ignore[arg-type]
