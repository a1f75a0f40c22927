"""The choice of bits and zeros: the budget is kept, the loss decides, the drop holds."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from tests.deploy.test_compact_file import small_net
from tests.deploy.test_sparse_file import same_bits
from trimtab.deploy import load_compact, save_compact
from trimtab.deploy.compact_choice import Layer, Option, allocate
from trimtab.deploy.compact_job import job_of
from trimtab.deploy.compact_quantise import quantise
from trimtab.deploy.compact_search import layers_of
from trimtab.deploy.compact_uniform import ZEROS, uniform
from trimtab.pruning import one_shot


def test_the_budget_is_kept_and_used(tmp_path: Path) -> None:
    net = small_net()
    reports = [save_compact(net, tmp_path / "f", budget_bytes=budget) for budget in (4000, 9000, 30_000)]
    for report, budget in zip(reports, (4000, 9000, 30_000), strict=True):
        assert budget / 2 < report.compact_bytes <= budget
    errors = [report.rows[1].squared_error for report in reports]
    assert errors[0] > 2 * errors[1] > 4 * errors[2]


def test_the_choice_is_the_least_rise_for_the_bytes() -> None:
    rises = [np.array([0.0, 1.0, 5.0]), np.array([0.0, 8.0, 9.0])]
    sizes = [(100.0, 50.0, 10.0), (100.0, 60.0, 5.0)]
    layers = [
        Layer(str(at), torch.zeros(1), None, tuple(Option(bits, 0.0, size, 0.0) for bits, size in enumerate(own)), rise)
        for at, (own, rise) in enumerate(zip(sizes, rises, strict=True))
    ]
    for limit in (200, 150, 110, 55, 15):
        taken = allocate(layers, limit)
        size = sum(option.size for option in taken)
        cost = sum(rise[option.bits] for option, rise in zip(taken, rises, strict=True))
        every = [(sizes[0][a] + sizes[1][b], rises[0][a] + rises[1][b]) for a in range(3) for b in range(3)]
        assert size <= limit
        assert cost == min(other for bytes_of, other in every if bytes_of <= size)  # by trying all of them


def test_loss_decides_which_weight_is_kept(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64))
    wanted = net[1].weight.detach().clone()

    def loss(model: Any) -> float:
        return float((model[1].weight - wanted).square().sum())  # the first weight does not matter

    report = save_compact(net, tmp_path / "f", budget_bytes=4500, loss=loss)
    errors = {row.name: row.squared_error for row in report.rows}
    assert errors["1.weight"] < 0.3 * errors["0.weight"]


def test_max_drop_is_kept_and_prepare_is_in_the_file(tmp_path: Path) -> None:
    net = small_net()
    wanted = {name: tensor.clone() for name, tensor in net.state_dict().items()}

    def quality(model: nn.Module) -> float:
        state = model.state_dict()
        return 100 - 100 * float(
            (state["4.weight"] - wanted["4.weight"]).square().sum() / wanted["4.weight"].square().sum()
        )

    def prepare(model: Any) -> None:
        model[1].running_mean.fill_(7)

    sizes = [
        save_compact(net, tmp_path / "f", max_drop=drop, quality=quality, prepare=prepare).compact_bytes
        for drop in (1.0, 20.0)
    ]
    assert sizes[1] < sizes[0]
    again = small_net(3)
    load_compact(tmp_path / "f", again)
    assert quality(again) >= 80
    assert again[1].running_mean.unique().tolist() == [7]
    assert net[1].running_mean.abs().max() == 0


def test_zeros_of_the_uniform_file_are_those_of_global_magnitude() -> None:
    net = small_net()
    pruned = copy.deepcopy(net)
    one_shot(pruned, 0.7)
    job = job_of(net)
    found = uniform(job, layers_of(job, None, None), 4, 0.7).weights
    for name, one in found.items():
        assert one.values.ne(0).logical_and(pruned.state_dict()[name] == 0).sum() == 0
        assert same_bits(one.values, quantise(name, pruned.state_dict()[name], 4, 0.0, 0, "auto").values)


def test_the_same_bits_for_all_are_taken_where_they_are_better(tmp_path: Path) -> None:
    net = small_net()
    whole = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    job = job_of(net)
    layers = layers_of(job, None, None)
    borne = [uniform(job, layers, 4, zeros) for zeros in ZEROS if zeros <= 0.7]

    def quality(model: nn.Module) -> float:  # bears nothing but the finest files and these uniform ones
        state = model.state_dict()
        lost = max(float((state[name] - whole[name]).square().sum() / whole[name].square().sum()) for name in job.axes)
        as_one = any(all(same_bits(state[name], one.values) for name, one in own.weights.items()) for own in borne)
        return 100.0 if lost < 1e-3 or as_one else 50.0

    report = save_compact(net, tmp_path / "f", max_drop=1.0, quality=quality)
    assert report.compact_bytes == borne[-1].size
    assert report.quality_after == 100
    budget = save_compact(net, tmp_path / "f", budget_bytes=borne[-1].size, quality=quality)
    assert budget.quality_after == 100
    listed = save_compact(net, tmp_path / "f", budget_bytes=borne[-1].size, quality=quality, sparsity=(0.0, 0.9))
    assert listed.quality_after == 50  # only the sparsities that were named
