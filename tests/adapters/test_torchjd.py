"""torchjd both ways: its aggregators in Combine, our combiners in its place; the same numbers on both sides."""

from __future__ import annotations

import doctest
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.waves import wave

pytest.importorskip("torchjd")
import torchjd.aggregation as jd
from torchjd import autojac

from trimtab.adapters import torchjd as adapter
from trimtab.multitask import CAGrad, Combine, Combiner, EqualNorm, GCond, GradientDropout, PCGrad

ROWS = wave(3, 12, seed=2) - 0.2


@pytest.mark.parametrize("rule", [jd.Mean(), jd.Sum(), jd.MGDA(), jd.IMTLG(), jd.TrimmedMean(1)], ids=str)
def test_a_combiner_of_torchjds_rule_gives_its_result(rule: Any) -> None:
    torch.testing.assert_close(adapter.from_torchjd(rule)(ROWS), rule(ROWS))


@pytest.mark.parametrize("combiner", [PCGrad(), CAGrad(), EqualNorm(), GradientDropout(), GCond()], ids=repr)
def test_an_aggregator_of_our_rule_gives_its_result(combiner: Any) -> None:
    aggregator = adapter.to_torchjd(type(combiner)())
    assert isinstance(aggregator, jd.Aggregator)
    torch.testing.assert_close(aggregator(ROWS), combiner(ROWS))


def test_our_pcgrad_of_two_losses_is_theirs() -> None:
    torch.testing.assert_close(PCGrad()(ROWS[:2]), jd.PCGrad()(ROWS[:2]))


def net_and_losses() -> tuple[torch.nn.Linear, list[Tensor]]:
    torch.manual_seed(0)
    net = torch.nn.Linear(4, 1)
    outputs = net(torch.randn(8, 4))
    return net, [(outputs - aim).square().mean() for aim in (1.0, -2.0, 0.5)]


@pytest.mark.parametrize("rule", [jd.MGDA(), jd.TrimmedMean(1)], ids=str)
def test_combine_with_their_rule_equals_their_backward_with_it(rule: Any) -> None:
    net, losses = net_and_losses()
    Combine(net, adapter.from_torchjd(rule)).backward(losses)
    theirs, losses = net_and_losses()
    autojac.backward(losses)
    autojac.jac_to_grad(theirs.parameters(), rule)
    for one, other in zip(net.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)


RULES = {
    "GradVac": jd.GradVac,
    "PCD": jd.PCD,
    "ExcessMTL": lambda: jd.ExcessMTL(n_warmup_steps=1),
    "SDMGrad": jd.SDMGradWeighting,
    "CRMOGM": lambda: jd.CRMOGMWeighting(jd.MGDAWeighting()),
}


@pytest.mark.parametrize("name", RULES)
def test_what_their_rule_remembers_is_saved_and_comes_back(name: str, tmp_path: Path) -> None:
    steps = [wave(3, 12, seed=seed) - 0.2 for seed in range(5)]

    def all_of(combiner: Combiner, rows: list[Tensor]) -> list[Tensor]:
        return [combiner(one) for one in rows]

    torch.manual_seed(0)
    expected = all_of(adapter.from_torchjd(RULES[name]()), steps)
    torch.manual_seed(0)
    first = adapter.from_torchjd(RULES[name]())
    found = all_of(first, steps[:2])
    torch.save(first.state_dict(), tmp_path / "state.pt")
    second = adapter.from_torchjd(RULES[name]())
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    found += all_of(second, steps[2:])
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    torch.manual_seed(0)
    anew = all_of(adapter.from_torchjd(RULES[name]()), steps[2:])
    assert not all(torch.equal(one, other) for one, other in zip(anew, expected[2:], strict=True))


def test_a_state_of_another_rule_is_refused_and_what_cannot_be_saved_is_named() -> None:
    state = adapter.from_torchjd(jd.GradVac(beta=0.3)).state_dict()
    with pytest.raises(ValueError, match="the saved state is of"):
        adapter.from_torchjd(jd.GradVac(beta=0.7)).load_state_dict(state)
    rule = jd.GradVac()
    rule.gramian_weighting.solver = object()
    with pytest.raises(ValueError, match=r"GradVacWeighting\.solver is of the type object, which cannot be saved"):
        adapter.from_torchjd(rule).state_dict()


def test_their_rule_gives_each_parameter_a_gradient_of_its_own_dtype() -> None:
    net = torch.nn.ModuleList([torch.nn.Linear(2, 2), torch.nn.Linear(2, 2).bfloat16()])
    outputs = net[1](net[0](torch.ones(3, 2)).bfloat16())
    losses = [outputs[:, 0].float().mean(), outputs[:, 1].float().square().mean()]
    Combine(net, adapter.from_torchjd(jd.TrimmedMean(0))).backward(losses)
    assert all(one.grad is not None and one.grad.dtype == one.dtype for one in net.parameters())


def test_their_backward_with_our_rule_equals_combine_with_it() -> None:
    net, losses = net_and_losses()
    Combine(net, CAGrad()).backward(losses)
    theirs, losses = net_and_losses()
    autojac.backward(losses)
    autojac.jac_to_grad(theirs.parameters(), adapter.to_torchjd(CAGrad()))
    for one, other in zip(net.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)


def test_a_weighted_combiner_goes_by_the_gramian_alone() -> None:
    aggregator = adapter.to_torchjd(PCGrad())
    assert isinstance(aggregator, jd.GramianWeightedAggregator)
    weights = aggregator.gramian_weighting((ROWS @ ROWS.T).float())
    assert weights.dtype == torch.float32
    torch.testing.assert_close(weights.double() @ ROWS, PCGrad()(ROWS), rtol=1e-5, atol=1e-5)


def test_its_example_runs() -> None:
    result = doctest.testmod(adapter, globs={**vars(adapter)})
    assert result.attempted
    assert not result.failed
