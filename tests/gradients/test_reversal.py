"""GradientReversal: closed forms."""

from __future__ import annotations

import pytest
import torch

from trimtab.gradients import GradientReversal


def test_forward_is_the_identity_and_the_gradient_is_turned_round_twice_over() -> None:
    inputs = torch.tensor([1.0, -2.0], dtype=torch.float64, requires_grad=True)
    reversal = GradientReversal(0.5)
    assert torch.equal(reversal(inputs), inputs)
    (first,) = torch.autograd.grad(reversal(inputs).pow(3).sum(), inputs, create_graph=True)
    torch.testing.assert_close(first, -0.5 * 3 * inputs**2)
    reversal.strength = 0.0
    (none,) = torch.autograd.grad(reversal(inputs).sum(), inputs)
    assert torch.equal(none, torch.zeros(2, dtype=torch.float64))


def test_a_negative_strength_is_refused() -> None:
    with pytest.raises(ValueError, match="strength must be finite and 0 or more, got -1"):
        GradientReversal(-1.0)
