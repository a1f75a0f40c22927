"""Batches of unequal size add up to the loss of all of them: every loss by what it divides by; doubt is said."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trimtab.observe.curvature import Hessian, Objective
from trimtab.observe.curvature.counting import OVER_CLASSES, settings_of

CUTS = (2, 1, 4)
"""Samples of the batches; each of its own length, so that neither samples nor equal weights are right."""


class Tokens(nn.Module):
    """(samples, length, 3) -> classes before or after the length."""

    def __init__(self, classes_second: bool = False) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 4)
        self.classes_second = classes_second

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = torch.tanh(self.layer(inputs))
        return outputs.mT if self.classes_second else outputs


def batches(target: Callable[[int, int], Tensor]) -> list[tuple[Tensor, Tensor]]:
    torch.manual_seed(5)
    return [(torch.randn(n, 2 + n, 3, dtype=torch.float64), target(n, 2 + n)) for n in CUTS]


def reals(n: int, length: int) -> Tensor:
    return torch.rand(n, length, 4, dtype=torch.float64)


def classes(n: int, length: int) -> Tensor:
    return torch.randint(4, (n, length)).masked_fill(torch.rand(n, length) < 0.3, -100)


def padded_with_three(n: int, length: int) -> Tensor:
    return torch.randint(4, (n, length))


def shares(n: int, length: int) -> Tensor:
    return torch.softmax(torch.randn(n, 4, length, dtype=torch.float64), 1)


WEIGHT = torch.tensor([1.0, 5.0, 0.5, 2.0], dtype=torch.float64)


def of_all(loss: Any, net: nn.Module, data: list[tuple[Tensor, Tensor]], divisor: float) -> Tensor:
    """Gradient of the summed loss over all batches by what the mean over all divides by."""
    total = sum(loss(net(inputs), target) for inputs, target in data)
    found = torch.autograd.grad(total / divisor, list(net.parameters()))
    return torch.cat([part.reshape(-1) for part in found])


@pytest.mark.parametrize(
    ("mean", "summed", "target", "divisor"),
    [
        (nn.MSELoss(), nn.MSELoss(reduction="sum"), reals, lambda t: t.numel()),
        (F.huber_loss, nn.HuberLoss(reduction="sum"), reals, lambda t: t.numel()),
        (nn.BCEWithLogitsLoss(pos_weight=WEIGHT), nn.BCEWithLogitsLoss(reduction="sum", pos_weight=WEIGHT), reals,
         lambda t: t.numel()),
        (nn.KLDivLoss(reduction="batchmean"), nn.KLDivLoss(reduction="sum"), reals, lambda t: t.shape[0]),
        (functools.partial(F.kl_div, reduction="batchmean"), nn.KLDivLoss(reduction="sum"), reals, lambda t: t.shape[0]),
        (F.cross_entropy, nn.CrossEntropyLoss(reduction="sum"), classes, lambda t: (t != -100).sum()),
        (functools.partial(F.cross_entropy, ignore_index=3), nn.CrossEntropyLoss(reduction="sum", ignore_index=3),
         padded_with_three, lambda t: (t != 3).sum()),
        (nn.CrossEntropyLoss(WEIGHT, label_smoothing=0.1),
         nn.CrossEntropyLoss(WEIGHT, reduction="sum", label_smoothing=0.1), classes, lambda t: WEIGHT[t[t != -100]].sum()),
        (nn.CrossEntropyLoss(WEIGHT), nn.CrossEntropyLoss(WEIGHT, reduction="sum"), shares,
         lambda t: t.shape[0] * t.shape[2]),
    ],
)  # fmt: skip
def test_the_gradient_is_that_of_the_mean_over_all(
    mean: Any, summed: Any, target: Any, divisor: Callable[[Tensor], Any]
) -> None:
    data = batches(target)
    net = Tokens(target is not reals).double()
    wanted = of_all(summed, net, data, float(sum(divisor(t) for _, t in data)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _, found = Objective(net, mean, data).gradient()
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-15)


def test_samples_are_reported_as_samples() -> None:
    objective = Objective(Tokens().double(), nn.MSELoss(), batches(reals))
    objective.loss()
    assert objective.setting().samples == sum(CUTS)


def own(outputs: Tensor, target: Tensor) -> Tensor:
    return (outputs - target).square().mean()


class Squared(nn.MSELoss):
    """Divides by something else, for all that is known."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return (input - target).square().mean()


@pytest.mark.parametrize("loss", [own, Squared()])
def test_an_unknown_divisor_is_said_once(loss: Any) -> None:
    objective = Objective(Tokens().double(), loss, batches(reals))
    with pytest.warns(UserWarning, match=r"shapes differ in more than the first dimension.*count="):
        objective.loss()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        objective.loss()
        counts = Objective(Tokens().double(), own, batches(reals), count=torch.numel)
        whole = Objective(Tokens().double(), nn.MSELoss(), batches(reals))
        counts.weights = whole.weights
        assert counts.loss() == pytest.approx(whole.loss(), rel=1e-12)


def test_weights_that_divide_make_the_divisor_unknown() -> None:
    assert settings_of(functools.partial(F.mse_loss, weight=torch.ones(1)))[0] == ()
    assert settings_of(functools.partial(F.cross_entropy, weight=torch.ones(1)))[0] is OVER_CLASSES


def test_an_ignore_index_in_an_unknown_loss_is_said() -> None:
    data = [(torch.randn(n, 5, 3), torch.full((n, 5), -1)) for n in (2, 3)]
    objective = Objective(Tokens(), lambda o, t: o.square().mean(), data)
    with pytest.warns(UserWarning, match=r"some targets are negative.*<function"):
        objective.loss()


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_no_doubt_where_samples_are_right_or_nothing_is_weighted(reduction: str) -> None:
    equal = [(torch.randn(n, 5, 3), torch.rand(n, 5, 4)) for n in (2, 3)]
    unequal = [(torch.randn(n, n, 3), torch.rand(n, n, 4)) for n in (2, 3)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Objective(Tokens(), own, equal, reduction=reduction).loss()
        Objective(Tokens(), own, unequal[0], reduction=reduction).loss()
        Objective(Tokens(), own, unequal, reduction="sum").loss()


def test_a_partial_loss_says_how_it_reduces() -> None:
    data = batches(reals)
    net = Tokens().double()
    found = Hessian(Objective(net, functools.partial(F.mse_loss, reduction="sum"), data))
    wanted = Hessian(Objective(net, nn.MSELoss(reduction="sum"), data))
    assert found.objective.reduction == "sum"
    vector = torch.ones(found.size, dtype=torch.float64)
    torch.testing.assert_close(found @ vector, wanted @ vector)
    with pytest.raises(ValueError, match="got 'none'"):
        Objective(net, nn.MSELoss(reduction="none"), data)
