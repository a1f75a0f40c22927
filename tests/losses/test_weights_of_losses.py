"""Balanced terms, occurrence and dynamics weights: the sheet's numbers, what they keep, bad input."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trimtab.losses import DynamicsWeights, balance, occurrence_weights


def test_balanced_terms_have_the_references_value_and_keep_their_gradients_direction() -> None:
    weight = torch.tensor([1.0, 2.0], dtype=torch.float64, requires_grad=True)
    terms = [weight.square().sum(), 1000 * (weight[0] - 3).square()]
    found = balance(terms)
    assert [one.item() for one in found] == [5, 5]
    (gradient,) = torch.autograd.grad(found[1], weight, retain_graph=True)
    (plain,) = torch.autograd.grad(terms[1], weight)
    torch.testing.assert_close(gradient, plain * 5 / 4000)


def test_balance_leaves_terms_of_zero_and_all_with_a_reference_of_zero() -> None:
    zero, two = torch.tensor(0.0, requires_grad=True), torch.tensor(2.0)
    assert [float(one) for one in balance([two, zero * 1])] == [2, 0]
    assert [float(one) for one in balance([zero * 1, two])] == [0, 2]
    assert math.isnan(float(balance([two, torch.tensor(math.nan)])[1]))


def test_occurrence_weights_equal_the_sheets_numbers() -> None:
    assert occurrence_weights([10, 1, 4]).tolist() == pytest.approx([0.5, 5, 1.25])
    assert occurrence_weights([3, 3]).tolist() == pytest.approx([1, 1])
    assert occurrence_weights(torch.tensor([10, 0, 5])).tolist() == pytest.approx([0.75, 0, 1.5])


@given(st.lists(st.integers(0, 10_000), min_size=1, max_size=8).filter(any), st.floats(0, 3))
def test_occurrence_weights_keep_the_size_of_the_loss(counts: list[int], power: float) -> None:
    weights = occurrence_weights(counts, power)
    assert float(weights @ torch.tensor(counts, dtype=torch.float64)) == pytest.approx(sum(counts))
    assert all((weight == 0) == (count == 0) for weight, count in zip(weights.tolist(), counts, strict=True))


STEPS = [[1, 2, 3], [0.9, 1.0, 2.9], [0.8, 1.2, 1.5]]


def test_dynamics_weights_equal_the_sheets_numbers() -> None:
    weights = DynamicsWeights()
    found = [weights([torch.tensor(float(one)) for one in losses]) for losses in STEPS][-1]
    assert found.tolist() == pytest.approx([1.025987734, 0.9517362431, 1.022276023], rel=1e-7)


def test_dynamics_weights_go_on_from_a_saved_state() -> None:
    whole, begun, resumed = DynamicsWeights(), DynamicsWeights(), DynamicsWeights()
    expected = [whole(losses) for losses in STEPS][-1]
    for losses in STEPS[:2]:
        begun(losses)
    resumed.load_state_dict(begun.state_dict())
    assert torch.equal(resumed(STEPS[2]), expected)
    assert repr(resumed) == "DynamicsWeights(decay=0.01, temperature=3.0)"


BAD: list[tuple[Any, str]] = [
    (lambda: balance([]), "balance needs at least one loss"),
    (lambda: balance([torch.tensor(1.0)], 1), r"reference must be a whole number in 0..0, got 1"),
    (lambda: balance([torch.tensor(1.0), torch.tensor(-2.0)]), "losses must be 0 or more .* loss 1 is -2"),
    (lambda: balance([torch.zeros(2)]), r"loss 0 must be a single number, got the shape \(2,\)"),
    (lambda: occurrence_weights([0, 0]), "counts must be one row of finite numbers, 0 or more and not all 0"),
    (lambda: occurrence_weights([1, -1]), "counts must be one row of finite numbers"),
    (lambda: occurrence_weights([1, math.inf]), "counts must be one row of finite numbers"),
    (lambda: DynamicsWeights()([1.0, 0.0]), "losses must be finite and above 0"),
    (lambda: [weigh([1.0] * count) for weigh in [DynamicsWeights()] for count in (2, 3)], "2 losses before, now 3"),
    (lambda: DynamicsWeights(decay=1), r"decay must lie in \[0, 1\), got 1"),
]  # fmt: skip


@pytest.mark.parametrize(("act", "words"), BAD)
def test_bad_input_is_one_error(act: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        act()
