"""Rules of robust exchange: the sheet's numbers, torchjd, liars of every kind, ranks, digits, bad input."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from tests.distributed import on_ranks
from tests.waves import wave
from trimtab import datasets
from trimtab.workers import (
    Krum,
    Mean,
    Median,
    NearestNeighbourAverage,
    TrimmedMean,
    WorkerSimulation,
    sign_flip,
)

RULES: list[Any] = [NearestNeighbourAverage, Median, TrimmedMean, Krum]


def test_nearest_neighbours_equal_the_sheets_numbers() -> None:
    received = torch.cat([wave(4, 3, seed=1), torch.full((1, 3), 9.0, dtype=torch.float64)])
    found = NearestNeighbourAverage(f=1)(received, received[0])
    assert found.tolist() == pytest.approx([0.1817973603, 0.633655334, -0.02500650513], rel=1e-8)


def test_krum_and_trimmed_mean_equal_torchjds() -> None:
    jd = pytest.importorskip("torchjd.aggregation")
    rows = wave(9, 6, seed=2)
    rows[3] *= 30
    for f in (0, 1, 2, 3):
        torch.testing.assert_close(TrimmedMean(f)(rows), jd.TrimmedMean(f)(rows))
        for select in (1, 3):
            torch.testing.assert_close(Krum(f, select)(rows), jd.Krum(f, select)(rows))


@pytest.mark.parametrize("kind", RULES)
@pytest.mark.parametrize("lie", [1e30, math.inf, -math.inf, math.nan])
def test_what_liars_send_moves_the_result_no_further_than_the_honest_lie_apart(kind: Any, lie: float) -> None:
    honest = wave(6, 4, seed=3)
    sent = torch.cat([honest, torch.full((2, 4), lie, dtype=torch.float64)])
    found = kind(f=2)(sent, sent[0])
    assert bool((found >= honest.min(0).values - 1e-9).all())
    assert bool((found <= honest.max(0).values + 1e-9).all())


@settings(max_examples=40, deadline=None)
@given(st.integers(5, 9), st.integers(0, 100))  # of fewer, Krum's two best tie
def test_the_order_of_the_workers_does_not_matter(count: int, seed: int) -> None:
    sent = torch.randn(count, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed + 1))
    for kind in RULES:
        rule = kind(f=0 if kind is Krum else (count - 1) // 2)
        torch.testing.assert_close(rule(sent[order], sent[0]), rule(sent, sent[0]))


def test_without_liars_nearest_neighbours_are_the_mean() -> None:
    sent = wave(5, 4)
    torch.testing.assert_close(NearestNeighbourAverage(f=0)(sent, sent[2]), sent.mean(0))
    torch.testing.assert_close(Mean()(sent), sent.mean(0))


def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    data = datasets.load("digits")
    flat = [split.images.flatten(1).float() / 16 for split in (data.train, data.test)]
    return flat[0], data.train.targets, flat[1], data.test.targets


def accuracy(rule: Any, liars: int) -> float:
    images, targets, tests, wanted = digits()
    torch.manual_seed(0)
    simulation = WorkerSimulation(nn.Linear(64, 10), F.cross_entropy, 10, rule, lr=1.0, liars=liars)
    generator = torch.Generator().manual_seed(1)
    for _ in range(60):
        rows = torch.randint(len(images), (10, 32), generator=generator)
        simulation.step(images[rows], targets[rows])
    return float((simulation.model(0)(tests).argmax(1) == wanted).double().mean())


def test_three_of_ten_who_turn_their_steps_round_stop_the_mean_and_not_nearest_neighbours() -> None:
    clean = accuracy(Mean(), 0)
    assert clean > 0.8
    assert accuracy(NearestNeighbourAverage(f=3), 3) >= 0.9 * clean
    assert accuracy(Mean(), 3) < 0.5 * clean


def test_one_step_of_the_simulation_is_the_workers_own_then_the_rule() -> None:
    torch.manual_seed(0)
    model = nn.Linear(3, 2).double()
    inputs, targets = torch.randn(4, 5, 3, dtype=torch.float64), torch.randn(4, 5, 2, dtype=torch.float64)
    simulation = WorkerSimulation(model, F.mse_loss, 4, NearestNeighbourAverage(f=1), lr=0.3, momentum=0.5, liars=1)
    simulation.step(inputs, targets)
    start = torch.cat([p.detach().flatten() for p in model.parameters()])
    own = []
    for one, target in zip(inputs, targets, strict=True):
        gradient = torch.autograd.grad(F.mse_loss(model(one), target), list(model.parameters()))
        own.append(start - 0.3 * 0.5 * torch.cat([part.flatten() for part in gradient]))
    sent = torch.stack([*own[:3], sign_flip(start, own[3])])
    for worker in range(3):
        torch.testing.assert_close(simulation.points[worker], NearestNeighbourAverage(f=1)(sent, own[worker]))


def on_rank(rank: int, world: int) -> list[Tensor]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1))
    net[1].bias.requires_grad_(False)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter += float(rank) if rank < 2 else 1e6
    NearestNeighbourAverage(f=1).exchange_(net)
    return [parameter.detach() for parameter in net.parameters()]


def test_ranks_exchange_whole_models_and_leave_frozen_weights() -> None:
    found = on_ranks(3, on_rank)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1))
    for rank in (0, 1):
        for parameter, begun in zip(found[rank][:3], list(net.parameters())[:3], strict=True):
            torch.testing.assert_close(parameter, begun.detach() + 0.5)  # the two honest ones
        torch.testing.assert_close(found[rank][3], net[1].bias.detach() + rank)


def test_alone_nothing_is_exchanged() -> None:
    net = nn.Linear(2, 1)
    before = net.weight.detach().clone()
    Median().exchange_(net)
    assert torch.equal(net.weight, before)


@pytest.mark.parametrize("rule", [*(kind(f=1) for kind in RULES), Mean(f=1), Krum(f=1, select=3)], ids=repr)
def test_a_worker_whose_own_vector_is_not_finite_is_not_averaged_in(rule: Any) -> None:
    sent = torch.tensor([[math.nan, 0.0], [1.0, 1.0], [2.0, 1.0], [3.0, 1.0]])
    found = rule(sent, own=sent[0])
    assert bool(found.isfinite().all())
    assert 1 <= float(found[0]) <= 3


BAD: list[tuple[Any, str]] = [
    (lambda: NearestNeighbourAverage(f=2)(wave(4, 2), wave(2)), "of 4 workers fewer than half may lie, got f=2"),
    (lambda: NearestNeighbourAverage(f=1)(wave(4, 2)), "needs the worker's own vector of 2 elements"),
    (lambda: Median(f=-1), "f must be a whole number of 0 or more, got -1"),
    (lambda: Krum(f=1)(wave(3, 2)), r"Krum\(f=1, select=1\) needs 4 workers, got 3"),
    (lambda: TrimmedMean(f=1)(wave(6)), "must be a matrix"),
    (lambda: TrimmedMean(f=1)([wave(6)] * 3), r"got list; torch\.stack joins"),
    (lambda: Krum(f=1, select=4)(torch.tensor([[math.nan], [1.0], [2.0], [3.0]])), "averages 4 vectors, of 4 only 3 are"),
    (lambda: TrimmedMean(f=1)(torch.full((5, 2), math.nan)), "5 of 5 vectors are not finite, f=1 may be wrong"),
    (lambda: WorkerSimulation(nn.Linear(1, 1), F.mse_loss, 4, Mean(), lr=0.1, liars=2), "liars must be a whole number"),
    (lambda: WorkerSimulation(nn.Linear(1, 1), F.mse_loss, 4, Mean(), lr=0.1).step(wave(3, 1), wave(3, 1)), "each of 4"),
]  # fmt: skip


@pytest.mark.parametrize(("act", "words"), BAD)
def test_bad_input_is_one_error(act: Any, words: str) -> None:
    with pytest.raises((TypeError, ValueError), match=words):
        act()
