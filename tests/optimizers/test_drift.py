"""DriftLearningRate: the sheet's numbers, a curvature that is known, steps of one gradient, ratios of groups."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from trimtab.optimizers import DriftLearningRate


def quadratic(
    curvature: list[float], start: list[float], **settings: float
) -> tuple[nn.Parameter, DriftLearningRate, Callable[[], Tensor]]:
    w, diagonal = nn.Parameter(torch.tensor(start, dtype=torch.float64)), torch.tensor(curvature, dtype=torch.float64)
    optimizer = DriftLearningRate(torch.optim.SGD([w], lr=1.0), **settings)  # type: ignore[arg-type]

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = 0.5 * (diagonal * w * w).sum()
        loss.backward()
        return loss

    return w, optimizer, closure


@pytest.mark.parametrize(("power", "expected"), [(0.5, 0.6750590293), (1.0, 0.2278523465), (0.0, 2.0)])
def test_the_sheets_numbers(power: float, expected: float) -> None:
    w, optimizer, closure = quadratic(
        [1.0, 4.0, 9.0], [1.0, 0.5, -1.0], power=power
    )  # g = [1, 2, -9], Hg = [1, 8, -81]
    optimizer.step(closure)
    assert optimizer.rate == pytest.approx(expected, rel=1e-9)
    assert w.tolist() == pytest.approx([1.0 - expected, 0.5 - 2 * expected, -1.0 + 9 * expected], rel=1e-8)


def test_at_power_one_a_single_curvature_is_just_kept() -> None:
    w, optimizer, closure = quadratic([4.0], [3.0], power=1.0)
    for _ in range(5):
        optimizer.step(closure)
    assert abs(w.item()) == pytest.approx(3.0, rel=1e-6)  # h = 2 / lambda: over the valley and up again


def test_untuned_it_goes_down_where_its_greatest_rate_diverges() -> None:
    w, optimizer, closure = quadratic([0.02, 0.9], [1.0, 1.0])
    for _ in range(200):
        optimizer.step(closure)
    assert float(w.detach().abs().max()) < 1e-2
    assert abs(1 - 5.0 * 0.9) > 1  # a rate of 5


def test_a_flat_place_takes_the_greatest_rate_and_no_gradient_keeps_it() -> None:
    _, optimizer, closure = quadratic([0.0], [3.0])
    optimizer.step(closure)
    assert optimizer.rate is None  # no gradient at all: nothing was learned
    w = nn.Parameter(torch.tensor([1.0]))
    linear = DriftLearningRate(torch.optim.SGD([w], lr=1.0), max_lr=3.0)

    def slope() -> Tensor:
        linear.zero_grad()
        loss = (2.0 * w).sum()
        loss.backward()
        return loss

    linear.step(slope)
    assert linear.rate == 3.0
    assert w.item() == pytest.approx(-5.0)


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_before_the_first_gradient_nothing_moves(decay: float) -> None:
    """By the greatest rate, five here, a weight's decay would have been five times what any later step has."""
    w = nn.Parameter(torch.tensor([2.0]))
    optimizer = DriftLearningRate(torch.optim.AdamW([w], lr=1.0, weight_decay=decay), max_lr=5.0)
    factor = 0.0

    def slope() -> Tensor:
        optimizer.zero_grad()
        loss = (factor * w).sum()
        loss.backward()
        return loss

    for _ in range(2):
        optimizer.step(slope)
    assert (w.item(), optimizer.rate, optimizer.param_groups[0]["lr"]) == (2.0, None, 1.0)
    factor = 2.0
    optimizer.step(slope)
    assert optimizer.rate == 5.0
    assert w.item() < 2.0


def test_between_looks_a_step_takes_one_gradient_and_the_rate_stays() -> None:
    calls = []
    _, optimizer, closure = quadratic([1.0, 4.0], [1.0, 1.0], every=3)

    def counted() -> Tensor:
        calls.append(1)
        return closure()

    rates = []
    for _ in range(6):
        optimizer.step(counted)
        rates.append(optimizer.rate)
    assert len(calls) == 6 + 2
    assert rates[0] == rates[1] == rates[2] != rates[3] == rates[4]
    assert optimizer.steps == 6


@pytest.mark.parametrize("every", [1, 3])
def test_a_scaler_changes_nothing_in_either_kind_of_step(every: int) -> None:
    ends = []
    for scaled in (False, True):
        torch.manual_seed(0)
        net = nn.Linear(3, 2).double()
        optimizer = DriftLearningRate(torch.optim.SGD(net.parameters(), lr=1.0), every=every, model=net)
        scaler = torch.amp.GradScaler("cpu", init_scale=256.0, enabled=scaled)

        def closure(net: nn.Module = net, optimizer: Any = optimizer, scaler: Any = scaler) -> Tensor:
            optimizer.zero_grad()
            loss = net(torch.ones(4, 3, dtype=torch.float64)).square().sum()
            scaler.scale(loss).backward()
            return loss

        for _ in range(4):
            optimizer.step(closure, grad_scaler=scaler)
            scaler.update()
        ends.append(torch.cat([one.detach().flatten() for one in net.parameters()]))
    torch.testing.assert_close(*ends, rtol=1e-7, atol=1e-7)


def test_the_groups_keep_their_rates_as_factors_and_their_momentum_counts() -> None:
    a, b = (nn.Parameter(torch.ones(1, dtype=torch.float64)) for _ in range(2))
    base = torch.optim.SGD([{"params": [a], "lr": 1.0}, {"params": [b], "lr": 0.1, "momentum": 0.5}])
    optimizer = DriftLearningRate(base, power=0.0, max_lr=0.5)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = (a + b).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    assert [a.item(), b.item()] == pytest.approx([0.5, 1 - 0.5 * 0.1 * 0.5])
    assert [group["lr"] for group in base.param_groups] == [1.0, 0.1]


def test_running_statistics_count_once_and_state_goes_on() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    optimizer = DriftLearningRate(torch.optim.SGD(net.parameters(), lr=1.0), ema=0.5, model=net)
    inputs = torch.randn(8, 3)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = net(inputs).square().mean()
        loss.backward()
        return loss

    for _ in range(3):
        optimizer.step(closure)
    assert int(net[1].num_batches_tracked) == 3  # type: ignore[arg-type]
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    again = DriftLearningRate(torch.optim.SGD(net.parameters(), lr=1.0), ema=0.5, model=net)
    again.load_state_dict(torch.load(file, weights_only=True))
    assert again.describe() == optimizer.describe()


@pytest.mark.parametrize(
    ("settings", "words"),
    [({"power": 1.5}, r"power must lie in \[0, 1\], got 1.5"), ({"every": 0}, "every must be"), ({"ema": 1.0}, "ema must lie")],
)  # fmt: skip
def test_values_out_of_range_are_refused(settings: dict[str, float], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        DriftLearningRate(torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0), **settings)  # type: ignore[arg-type]
