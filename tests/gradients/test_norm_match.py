"""NormMatch against numbers worked out apart, and closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from trimtab.gradients import NormMatch


def wave(size: int, seed: int, scale: float = 1.0) -> Tensor:
    k = np.arange(size)
    return torch.tensor(scale * (np.sin(1.3 * k + 0.7 * seed) + 0.5 * np.cos(0.37 * k * k + seed)))


def matched(lever: NormMatch, *gradients: Tensor) -> list[Tensor]:
    branches = [torch.zeros_like(one, requires_grad=True) for one in gradients]
    torch.stack([(a * g).sum() for a, g in zip(lever.match(*branches), gradients, strict=True)]).sum().backward()
    return [one.grad for one in branches if one.grad is not None]


def test_numbers_of_the_formula() -> None:
    lever = NormMatch()
    first, second = matched(lever, wave(4, 1), wave(6, 2, 10.0))
    expected = torch.tensor([5.157999846, 5.691944622, -3.115286866, -6.657904964], dtype=torch.float64)
    torch.testing.assert_close(first, expected, rtol=1e-9, atol=1e-9)
    assert float(second[0]) == pytest.approx(4.264905695, rel=1e-9)
    lever.load_state_dict({"norms": [2.0, 10.0]})
    first, second = matched(lever, wave(4, 1), wave(6, 2, 10.0))
    assert float(first[0]) == pytest.approx(2.971996424, rel=1e-9)
    assert float(second[0]) == pytest.approx(4.593503639, rel=1e-9)
    assert lever.state_dict()["norms"] == pytest.approx([1.988472636, 10.93789428], rel=1e-9)


@pytest.mark.parametrize(("target", "size"), [("mean", 5.0), ("min", 2.0), ("geometric", 4.0)])
def test_without_a_memory_all_norms_are_equal(target: str, size: float) -> None:
    found = matched(NormMatch(0.0, target), torch.tensor([2.0, 0.0]), torch.tensor([8.0]))
    assert [float(one.norm()) for one in found] == pytest.approx([size, size])


def test_factors_are_bounded_and_absent_branches_count_for_nothing() -> None:
    found = matched(NormMatch(0.0, max_factor=2.0), torch.tensor([1.0]), torch.tensor([100.0]))
    assert [float(one) for one in found] == pytest.approx([2.0, 50.5])
    found = matched(NormMatch(), torch.tensor([3.0]), torch.tensor([0.0]), torch.tensor([math.nan]))
    assert float(found[0]) == 3.0
    assert float(found[1]) == 0.0
    assert math.isnan(float(found[2]))


def test_bad_use_is_refused() -> None:
    with pytest.raises(ValueError, match="two branches or more"):
        NormMatch().match(torch.ones(1))
    with pytest.raises(ValueError, match="target must be one of"):
        NormMatch(target="max")
