"""What looks at whole rollouts: advantages, DRPO, DOT, DynamicPO, void turns, G2RL."""

from __future__ import annotations

import itertools
import math
import statistics
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.losses.test_cross_entropies import wave
from trimtab.losses.policy import (
    batch_advantage,
    borderline,
    dot_lengths,
    drpo,
    dynamic_dpo,
    g2rl,
    gradient_features,
    group_advantage,
    void_turn_mask,
)

REWARDS, GROUPS = torch.tensor([1.0, 0, 0, 1, 1, 1, 0, 0]), [0, 0, 0, 0, 1, 1, 2, 2]
ADVANTAGES = [group_advantage, batch_advantage]


def test_the_batch_advantage_of_the_sheet() -> None:
    expected = [1.414213522, -1.414213522, -1.414213522, 1.414213522, 0.0, 0.0, 0.0, 0.0]
    assert batch_advantage(REWARDS.double(), GROUPS).tolist() == pytest.approx(expected, rel=1e-9)


def test_the_group_advantage_equals_the_standard_librarys_deviation() -> None:
    rewards = wave(6, seed=4)
    groups = ["a", "b", "a", "b", "a", "b"]  # need not lie together
    expected = [0.0] * 6
    for start in (0, 1):
        part = rewards[start::2].tolist()
        for at, value in enumerate(part):
            expected[start + 2 * at] = (value - statistics.mean(part)) / (statistics.stdev(part) + 1e-4)
    assert group_advantage(rewards, groups, eps=1e-4).tolist() == pytest.approx(expected, rel=1e-12)
    torch.testing.assert_close(group_advantage(rewards, torch.tensor([7, 9, 7, 9, 7, 9]), eps=1e-4).tolist(), expected)
    assert group_advantage(rewards, np.array(groups), scale="none")[::2].sum().abs() < 1e-12


@pytest.mark.parametrize("advantage", ADVANTAGES)
def test_equal_rewards_and_a_group_of_one_have_exactly_no_advantage(advantage: Any) -> None:
    """The mean of three times 0.1 is not 0.1 in float32; divided by its own rounding it would be no small number."""
    assert advantage(torch.tensor([0.1, 0.1, 0.1, 5.0]), [0, 0, 0, 1]).tolist() == [0.0] * 4
    found = advantage(torch.tensor([0.1, 0.1, 0.1, 1.0, 0.0]), [0, 0, 0, 1, 1])
    assert found[:3].tolist() == [0.0] * 3
    assert found[3] > 0.5


def test_too_long_counts_as_wrong() -> None:
    lengths = torch.tensor([9, 9, 9, 4001, 9, 9, 9, 9])
    changed = REWARDS.clone()
    changed[3] = 0
    torch.testing.assert_close(batch_advantage(REWARDS, GROUPS, lengths=lengths), batch_advantage(changed, GROUPS))
    torch.testing.assert_close(
        batch_advantage(REWARDS, GROUPS, lengths=lengths, max_length=5000), batch_advantage(REWARDS, GROUPS)
    )
    with pytest.raises(ValueError, match=r"lengths must have the shape of rewards \(8,\), got \(1,\)"):
        batch_advantage(REWARDS, GROUPS, lengths=lengths[:1])


@pytest.mark.parametrize("advantage", ADVANTAGES)
def test_bad_rewards_are_refused(advantage: Any) -> None:
    with pytest.raises(ValueError, match="reward 1 is nan: rewards must be finite"):
        advantage(torch.tensor([1.0, math.nan]), [0, 0])
    with pytest.raises(ValueError, match="groups must name a group for each of the 2 rollouts, got 3 labels"):
        advantage(torch.tensor([1.0, 0.0]), [0, 0, 0])
    with pytest.raises(ValueError, match=r"rewards must have the shape \(rollouts,\) and not be empty, got \(1, 2\)"):
        advantage(torch.tensor([[1.0, 0.0]]), [0])
    with pytest.raises(ValueError, match="eps must be finite and 0 or more, got -1"):
        advantage(REWARDS, GROUPS, eps=-1)


def scored(scores: Tensor, lengths: list[int]) -> tuple[Tensor, Tensor]:
    """Log-probabilities (4, 4) whose means over so many tokens are the scores."""
    mask = torch.arange(4)[None] < torch.tensor(lengths)[:, None]
    return scores[:, None].expand(4, 4), mask


def test_drpos_value_and_gradient_of_the_sheet() -> None:
    scores = torch.tensor([-0.5, -0.8, -0.3, -1.0], dtype=torch.float64, requires_grad=True)
    logp, mask = scored(scores, [2, 4, 1, 3])
    loss, info = drpo(logp, logp.detach(), torch.tensor([1, 0, 1, 0]).float(), mask, [0] * 4)
    assert loss.item() == pytest.approx(-0.5843283723, rel=1e-7)
    (found,) = torch.autograd.grad(loss, scores)
    assert found.tolist() == pytest.approx([-0.07585818002, 0.5049998333, -0.92414182, 0.4950001667], rel=1e-6)
    assert info["mixed"] == 1
    even, _ = drpo(logp, logp.detach(), torch.tensor([1.0, 0, 1, 0]), mask, [0] * 4, lam=1e9)
    (found,) = torch.autograd.grad(even, scores)
    assert found[[0, 2]].tolist() == pytest.approx([-0.5, -0.5])  # without a weight on length


def test_drpos_trust_region_of_the_sheet_and_groups_that_do_not_teach() -> None:
    logp, old = (wave(2, 4, seed=1, scale=0.5) - 1).requires_grad_(), wave(2, 4, seed=2, scale=0.5) - 1
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    loss, info = drpo(logp, old, torch.tensor([1.0, 1.0]), mask, [0, 0])  # all equal: the trust region alone
    assert (loss.item(), info["kl"].item()) == (pytest.approx(2.50006992), pytest.approx(0.0500507242))
    assert info["mixed"] == 0
    (found,) = torch.autograd.grad(loss, logp)
    distance = logp - old
    slope = 1e3 * (0.0500507242 - 1e-4) * (distance.exp() - 1) / 6 * mask
    torch.testing.assert_close(found, slope.detach(), rtol=1e-6, atol=0)
    assert drpo(logp, old, torch.tensor([1.0, 1.0]), mask, [0, 0], delta=1.0)[0] == 0
    alone = drpo(logp, logp.detach(), torch.tensor([1.0, 0.0]), mask, [0, 0])[0]
    rows = [torch.cat([one, one]) for one in (logp, logp.detach(), mask)]
    beside = drpo(rows[0], rows[1], torch.tensor([1.0, 0, 0, 0]), rows[2], [0, 0, 1, 1])[0]
    torch.testing.assert_close(beside, alone / 2)  # divided by all groups


def test_drpo_refuses_bad_input() -> None:
    logp, mask = torch.zeros(2, 3), torch.ones(2, 3)
    with pytest.raises(ValueError, match="row 1 of the mask has no token"):
        drpo(logp, logp, torch.ones(2), torch.tensor([[1, 1, 1], [0, 0, 0]]), [0, 0])
    with pytest.raises(ValueError, match=r"rewards must have the shape \(2,\), got \(3,\)"):
        drpo(logp, logp, torch.ones(3), mask, [0, 0, 0])
    with pytest.raises(ValueError, match="lam must be finite and above 0, got 0"):
        drpo(logp, logp, torch.ones(2), mask, [0, 0], lam=0)


def test_dot_cuts_what_the_sheet_cuts_and_nothing_else() -> None:
    lengths = torch.tensor([100] * 31 + [4000])
    right, groups = torch.ones(32, dtype=torch.bool), ["p"] * 32
    assert dot_lengths(lengths, right, groups).tolist() == [100] * 31 + [2290]
    limit = int(statistics.mean(lengths.tolist()) + 3 * statistics.stdev(lengths.tolist()))
    assert limit == 2290
    assert torch.equal(dot_lengths(lengths, right, groups, margin=4000 - 2290 + 1), lengths)
    assert dot_lengths(lengths, right, groups, margin=4000 - 2290)[-1] == 2290
    wrong = right.clone()
    wrong[3] = False
    assert torch.equal(dot_lengths(lengths, wrong, groups), lengths)  # one wrong answer: the group is left alone
    both = dot_lengths(torch.cat([lengths, lengths]), torch.cat([right, wrong]), [0] * 32 + [1] * 32)
    assert both[31] == 2290
    assert both[63] == 4000


def test_dot_refuses_groups_in_which_nothing_can_ever_be_cut() -> None:
    with pytest.raises(
        ValueError, match=r"the largest group has 10 rollouts, .* 2.85 deviations .* alpha=3 would never cut"
    ):
        dot_lengths(torch.arange(10), torch.ones(10), [0] * 10)
    dot_lengths(torch.arange(11), torch.ones(11), [0] * 11)
    with pytest.raises(TypeError, match="lengths must be whole numbers"):
        dot_lengths(torch.ones(32), torch.ones(32), [0] * 32)
    with pytest.raises(ValueError, match=r"one shape \(rollouts,\), got \(32,\) and \(31,\)"):
        dot_lengths(torch.arange(32), torch.ones(31), [0] * 32)


def test_dynamic_dpos_strengths_and_loss_of_the_sheet() -> None:
    chosen, rejected = torch.tensor([-5.0]).double(), torch.tensor([[-4.0, -4.5, -12.0]]).double()
    chosen.requires_grad_()
    loss, info = dynamic_dpo(chosen, rejected, 0 * chosen, 0 * rejected)
    assert loss.item() == pytest.approx(0.9334408769, rel=1e-9)
    betas = [0.5798457666, 0.57585818]
    assert info["beta"].item() == pytest.approx(sum(betas) / 2, rel=1e-8)
    (slope,) = torch.autograd.grad(loss, chosen)
    margin = (betas[0] * -1 + betas[1] * -0.5) / 2
    assert slope.item() == pytest.approx(-sum(betas) / 2 / (1 + math.exp(margin)), rel=1e-8)  # no gradient through beta


@pytest.mark.parametrize("seed", range(5))
def test_the_uppermost_cluster_equals_that_of_all_cuts_tried(seed: int) -> None:
    values = wave(1, 9, seed=seed)
    found = borderline(torch.tensor([99.0]), values)[0]
    ordered = sorted(values[0].tolist(), reverse=True)

    def error(cuts: tuple[int, int]) -> float:
        parts = (ordered[: cuts[0]], ordered[cuts[0] : cuts[1]], ordered[cuts[1] :])
        return sum(sum((one - statistics.mean(part)) ** 2 for one in part) for part in parts)

    first, _ = min(itertools.combinations(range(1, 9), 2), key=error)
    assert sorted(values[0][found].tolist(), reverse=True) == ordered[:first]


def test_few_and_equal_rejected_answers_are_all_borderline_with_plain_beta() -> None:
    for rejected in (torch.tensor([[-3.0, -9.0]]), torch.tensor([[-5.0, -5.0, -5.0]])):
        loss, info = dynamic_dpo(torch.tensor([-5.0]), rejected, torch.zeros(1), torch.zeros_like(rejected), beta=0.3)
        assert info["borderline"] == 1
        expected = -torch.nn.functional.logsigmoid(0.3 * (-5 - rejected).mean())
        torch.testing.assert_close(loss, expected)
    with pytest.raises(
        ValueError, match=r"chosen must have the shape \(b,\) and rejected \(b, k\), got \(1,\) and \(3,\)"
    ):
        dynamic_dpo(torch.zeros(1), torch.zeros(3), torch.zeros(1), torch.zeros(3))
    with pytest.raises(ValueError, match=r"the reference's log-probabilities must have the shapes \(1,\) and \(1, 2\)"):
        dynamic_dpo(torch.zeros(1), torch.zeros(1, 2), torch.zeros(1), torch.zeros(1, 3))
    with pytest.raises(ValueError, match="beta must be finite and above 0, got 0"):
        dynamic_dpo(torch.zeros(1), torch.zeros(1, 2), torch.zeros(1), torch.zeros(1, 2), beta=0)


def test_a_trajectory_with_one_void_turn_goes() -> None:
    code, answer = "so\n```python\nprint(1)\n```", r"thus \boxed{3}"
    turns = [
        [code, answer],
        [code, "hmm", answer],
        ["```python\nprint(", answer],
        [answer],
        ["``` ```"],
        ["<answer>3</answer>"],
    ]
    assert void_turn_mask(turns).tolist() == [True, False, False, True, False, True]
    assert void_turn_mask(turns, productive=lambda turn: "hmm" not in turn).tolist() == [
        True,
        False,
        True,
        True,
        True,
        True,
    ]
    with pytest.raises(ValueError, match="no trajectory was given"):
        void_turn_mask([])
    with pytest.raises(ValueError, match="trajectory 1 has no turn"):
        void_turn_mask([[code], []])
    with pytest.raises(TypeError, match="trajectory 0 must be a sequence of turns, got the text 'thus"):
        void_turn_mask([answer])


def test_g2rl_of_the_sheet() -> None:
    shaped, novelty = g2rl(wave(4, 3, seed=1), torch.tensor([1.0, 1, -1, -1]).double())
    assert novelty.tolist() == pytest.approx([0.5055923639, 0.5182647263, 0.2768079925, 0.8250333617], rel=1e-8)
    assert shaped.tolist() == pytest.approx([1.252796182, 1.259132363, -0.8615960037, -0.5874833192], rel=1e-8)
    assert g2rl(wave(4, 3, seed=1), torch.tensor([5.0, 1, -1, -1]))[0][0] == 3  # the cap
    twice = g2rl(torch.cat([wave(4, 3, seed=1)] * 2), torch.tensor([1.0, 1, -1, -1] * 2).double(), [0] * 4 + [1] * 4)
    assert twice[1][4:].tolist() == pytest.approx(novelty.tolist())
    alone, zero = g2rl(torch.ones(1, 2), torch.tensor([1.0]))[1], g2rl(torch.zeros(2, 2), torch.ones(2))[1]
    assert alone.tolist() + zero.tolist() == [1.0, 1.0, 1.0]
    with pytest.raises(ValueError, match=r"features must have the shape \(2, features\), got \(4, 3\)"):
        g2rl(wave(4, 3), torch.ones(2))
    with pytest.raises(ValueError, match="cap must be finite and above 0, got 0"):
        g2rl(wave(4, 3), torch.ones(4), cap=0)


def test_features_are_the_gradient_by_the_last_hidden_layer() -> None:
    head, hidden = wave(5, 3, seed=1), wave(2, 4, 3, seed=2).requires_grad_()
    tokens, mask = torch.tensor([[0, 4, 2, 1], [3, 3, 0, 0]]), torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    logits = hidden @ head.T
    logp = logits.log_softmax(-1).gather(2, tokens[..., None])[..., 0]
    (by_token,) = torch.autograd.grad((logp * mask).sum(), hidden)
    expected = by_token.sum(1) / mask.sum(1, keepdim=True)
    torch.testing.assert_close(gradient_features(logits, tokens, head, mask), expected)
    with pytest.raises(ValueError, match=r"logits must be \(b, t, words\)"):
        gradient_features(logits, tokens, head.T, mask)
    with pytest.raises(ValueError, match=r"the mask must have the shape \(sequences, tokens\), got"):
        gradient_features(logits[0], tokens[0], head, mask[0])
