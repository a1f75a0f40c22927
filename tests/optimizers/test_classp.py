"""CLASSP: the sheet's numbers, tasks, the quantile."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from trimtab.optimizers import CLASSP


def wave(*shape: int, seed: int = 0) -> Tensor:
    k = torch.arange(math.prod(shape), dtype=torch.float64)
    return ((1.3 * k + 0.7 * seed).sin() + 0.5 * (0.37 * k * k + seed).cos()).reshape(shape)


EXPECTED = {
    1.0: ([0.7143714129, 1.323109919, -0.2570927005, -1.180259989, 0.02812030342],
          [0.7773763117, 1.728701518, 2.343519523, 0.0, 0.0]),
    2.0: ([0.7143704949, 1.368790594, -0.2178312144, -1.180259989, 0.02812030342],
          [0.60431393, 1.523872773, 2.752468263, 0.0, 0.0]),
}  # fmt: skip


@pytest.mark.parametrize("power", EXPECTED)
def test_three_steps_equal_the_sheets_numbers(power: float) -> None:
    weight = torch.nn.Parameter(wave(5, seed=1))
    optimizer = CLASSP([weight], power=power)
    for seed in (2, 3, 4):
        weight.grad = wave(5, seed=seed)
        optimizer.step()
    assert weight.tolist() == pytest.approx(EXPECTED[power][0], rel=1e-8)
    assert optimizer.state[weight]["moved"].tolist() == pytest.approx(EXPECTED[power][1], rel=1e-8)


def test_the_second_task_moves_least_what_the_first_has_moved_most() -> None:
    weight = torch.nn.Parameter(torch.zeros(2))
    optimizer = CLASSP([weight], lr=1.0, threshold=0.0, scaling=False)
    weight.grad = torch.tensor([10.0, 0.1])
    optimizer.step()
    assert weight.tolist() == pytest.approx([-10.0, -0.1])
    optimizer.start_task()
    before = weight.detach().clone()
    weight.grad = torch.ones(2)
    optimizer.step()
    assert (before - weight).tolist() == pytest.approx([1 / 11.0, 1 / 1.1], rel=1e-4)


def test_a_quantile_lets_the_largest_move() -> None:
    weight = torch.nn.Parameter(torch.zeros(4))
    optimizer = CLASSP([weight], quantile=0.5)
    weight.grad = torch.tensor([0.01, -0.04, 0.02, 0.03])
    optimizer.step()
    assert (weight != 0).tolist() == [False, True, False, True]
    with pytest.raises(ValueError, match=r"quantile must lie in \[0, 1\), got 1"):
        CLASSP([weight], quantile=1)
