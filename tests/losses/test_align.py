"""Two paths drawn to each other: values and gradients by hand, refusals."""

from __future__ import annotations

import pytest
import torch

from tests.pruning.waves import wave
from trimtab.losses import align


def test_each_side_gets_the_gradient_of_its_own_term_alone() -> None:
    full, sparse = (wave((3, 4), seed, 2.0).requires_grad_() for seed in (1, 2))
    loss = align(full, sparse)
    loss.backward()
    gap = (full - sparse).detach()
    value = torch.where(gap.abs() < 1, gap.square() / 2, gap.abs() - 0.5).mean()
    assert loss.item() == pytest.approx(20 * value.item())
    torch.testing.assert_close(full.grad, 10 * gap.clamp(-1, 1) / 12)  # not twice that: the other is not followed
    torch.testing.assert_close(sparse.grad, -10 * gap.clamp(-1, 1) / 12)


def test_layers_count_alike_whatever_their_size() -> None:
    one, two = (torch.zeros(1), torch.ones(1)), (torch.zeros(50, 2), torch.full((50, 2), 3.0))
    found = align([one[0], two[0]], [one[1], two[1]], weight=1.0)
    assert found.item() == pytest.approx((2 * 0.5 + 2 * 2.5) / 2)


def test_bad_input_is_named() -> None:
    x = torch.zeros(2)
    for arguments, message in (
        (([], []), "outputs of the same layers"),
        (([x], [x, x]), r"got the shapes \[\(2,\)\] and \[\(2,\), \(2,\)\]"),
        ((x, torch.zeros(3)), r"\[\(2,\)\] and \[\(3,\)\]"),
        ((x, x, -1.0), "weight must be"),
    ):
        with pytest.raises(ValueError, match=message):
            align(*arguments)  # type: ignore[arg-type]
