"""Parameters that were replaced after pruning: nothing acts on what no model uses, and it is said."""

from __future__ import annotations

import copy
import pickle
import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize

from trimtab.pruning import keep_masks, one_shot


def test_undo_names_what_was_replaced_and_puts_the_others_back() -> None:
    net = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 4))
    before = net[0].weight.detach().clone()
    pruned, head = one_shot(net, 0.5), net[1]
    zeros = int((head.weight == 0).sum())
    net[1] = nn.Linear(8, 6)
    with pytest.warns(UserWarning, match=r"1 pruned weight\(s\) were replaced in Sequential since: 1\.weight"):
        pruned.undo()
    assert torch.equal(net[0].weight, before)
    assert int((head.weight == 0).sum()) == zeros  # not a weight of the network any more


def test_undo_refuses_when_nothing_is_left() -> None:
    net = nn.Sequential(nn.Linear(8, 8))
    pruned = one_shot(net, 0.5)
    net[0] = nn.Linear(8, 8)
    with pytest.raises(RuntimeError, match=r"none of the pruned weights \(0\.weight\) is a parameter of Sequential"):
        pruned.undo()


def test_undo_after_the_parametrization_was_taken_off() -> None:
    net = nn.Sequential(nn.Linear(8, 8), parametrizations.weight_norm(nn.Linear(8, 4)))
    pruned = one_shot(net, 0.5)
    parametrize.remove_parametrizations(net[1], "weight")
    zeros = int((net[1].weight == 0).sum())
    with pytest.warns(UserWarning, match=r"since: 1\.weight"):
        pruned.undo()
    assert int((net[1].weight == 0).sum()) == zeros == pruned.removed["1.weight"]


def test_a_copy_has_no_way_back() -> None:
    pruned = one_shot(nn.Linear(8, 8), 0.5)
    for other in (copy.deepcopy(pruned), pickle.loads(pickle.dumps(pruned))):
        assert torch.equal(other.masks["weight"], pruned.masks["weight"])
        with pytest.raises(RuntimeError, match="a copy, which belongs to no model"):
            other.undo()
    pruned.undo()


def test_masks_end_where_a_parameter_was_replaced() -> None:
    net = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 4))
    pruned, old = one_shot(net, 0.5), net[1].weight
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    keep_masks(optimizer, pruned.masks, net)
    net[1] = nn.Linear(8, 4)
    for parameter in (net[0].weight, old):
        parameter.grad = torch.ones_like(parameter)
    with (
        pytest.warns(UserWarning, match=r"'1\.weight': replaced in Sequential since the masks were put on"),
        pytest.warns(UserWarning, match=r"Sequential no longer holds 2 parameter\(s\) that the optimizer steps"),
    ):
        optimizer.step()
    assert bool((net[0].weight[~pruned.masks["0.weight"]] == 0).all())
    assert bool((old[~pruned.masks["1.weight"]] != 0).all())


def test_masks_over_weights_that_are_not_zero_are_named() -> None:
    net = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 4))
    pruned = one_shot(net, 0.5)
    optimizer = torch.optim.SGD(net[1].parameters(), lr=0.1)
    masks = {"1.weight": pruned.masks["1.weight"]}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        keep_masks(optimizer, masks, net).remove()
    net[1] = nn.Linear(8, 4)
    with pytest.warns(UserWarning, match=r"1 mask\(s\) remove weights that are not zero now: '1\.weight'"):
        keep_masks(torch.optim.SGD(net[1].parameters(), lr=0.1), masks, net)


def test_a_perturbation_leaves_dead_rows_of_weight_norm_alone() -> None:
    from trimtab.optimizers import SAM

    net = nn.Sequential(parametrizations.weight_norm(nn.Linear(6, 4)))
    masks = one_shot(net, 0.5, score=lambda entry: torch.arange(24.0).view(4, 6)).masks  # rows 0 and 1 wholly
    optimizer = SAM(torch.optim.SGD(net.parameters(), lr=0.1), rho=0.5, model=net)
    keep_masks(optimizer, masks, net)
    seen = []

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        seen.append(net[0].weight.detach().clone())
        loss = net(torch.ones(2, 6)).square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    assert not torch.equal(seen[0], seen[1])
    assert bool((seen[1][:2] == 0).all())
    assert bool(net[0].weight.isfinite().all())
