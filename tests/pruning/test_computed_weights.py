"""Weights that a module computes from others: what the product uses is scored and pruned, and stays finite."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

from tests.pruning.nets import bits
from tests.warned import TOY_IS_CUT
from trimtab.observe import summary, weight_distribution
from trimtab.parameters import Rule
from trimtab.pruning import keep_masks, one_shot, sweep

pytestmark = [pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning"), TOY_IS_CUT]


def older_spectral_norm(layer: nn.Module) -> nn.Module:
    for _ in range(20):  # its u and v start at random
        nn.utils.spectral_norm(layer) if not hasattr(layer, "weight_orig") else layer(
            torch.zeros(1, layer.in_channels, 8)
        )
    return layer


FORMS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "weight_norm": parametrizations.weight_norm,
    "weight_norm of inputs": lambda layer: parametrizations.weight_norm(layer, dim=1),
    "weight_norm of all": lambda layer: parametrizations.weight_norm(layer, dim=None),
    "older weight_norm": nn.utils.weight_norm,
    "spectral_norm": parametrizations.spectral_norm,
    "older spectral_norm": older_spectral_norm,
    "orthogonal": lambda layer: parametrizations.orthogonal(layer),
    "torch's pruning": lambda layer: prune.random_unstructured(layer, "weight", 0.1),
}


def net_of(form: str) -> nn.Sequential:
    torch.manual_seed(0)
    net = nn.Sequential(FORMS[form](nn.Conv1d(16, 32, 3)), nn.ReLU(), FORMS[form](nn.Conv1d(32, 16, 3)))
    return net.eval()


def weights(net: nn.Sequential) -> list[Tensor]:
    net(torch.zeros(1, 16, 8))  # older forms compute their weight here
    return [net[0].weight.detach().clone(), net[2].weight.detach().clone()]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("scope", ["global", "layer", "erk"])
def test_the_smallest_effective_weights_go_and_the_others_stay(form: str, scope: str) -> None:
    net = net_of(form)
    before = weights(net)
    pruned = one_shot(net, 0.6, scope=scope)
    assert list(pruned.masks) == ["0.weight", "2.weight"]
    assert pruned.prunable == 2 * 16 * 32 * 3
    assert pruned.count == (2 * math.floor(0.6 * 1536 + 0.5) if scope == "layer" else math.floor(0.6 * 3072 + 0.5))
    after = weights(net)
    for name, old, new in zip(pruned.masks, before, after, strict=True):
        mask = pruned.masks[name]
        torch.testing.assert_close(new, torch.where(mask, old, 0.0), rtol=1e-6, atol=1e-8)
        assert bool((new[~mask] == 0).all())
        assert old[~mask].abs().max() <= old[mask].abs().min()
    magnitudes = torch.cat([old.abs().flatten() for old in before])
    if scope == "global":
        removed = torch.cat([~mask.flatten() for mask in pruned.masks.values()])
        assert magnitudes[removed].max() <= magnitudes[~removed].min()


@pytest.mark.parametrize("form", FORMS)
def test_rows_and_tensors_without_weights_are_zero_and_not_nan(form: str) -> None:
    net = net_of(form).train()

    def score(entry: object) -> Tensor:
        weight: Tensor = entry.parameter.detach()  # type: ignore[attr-defined]
        scores = torch.rand_like(weight) + 1
        scores[:5] = 0  # whole units go first
        return scores * (0 if weight.shape[0] == 16 else 1)  # the second layer wholly

    pruned = one_shot(net, 0.6, score=score)
    assert pruned.removed["2.weight"] == 1536
    for _ in range(2):
        out = net(torch.randn(2, 16, 8, requires_grad=True))
        assert bool(out.isfinite().all())
        assert bool((net[0].weight[:5] == 0).all())
        assert not net[2].weight.any()
    net(torch.randn(2, 16, 8)).sum().backward()
    assert all(bool(p.grad.isfinite().all()) for p in net.parameters() if p.grad is not None)


@pytest.mark.parametrize("form", FORMS)
def test_masks_hold_while_training_goes_on_and_the_rest_trains(form: str) -> None:
    net = net_of(form).train()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
    pruned = one_shot(net, 0.95)
    keep_masks(optimizer, pruned.masks, net)
    kept = net[0].weight.detach().clone()
    generator = torch.Generator().manual_seed(0)
    for _ in range(4):
        optimizer.zero_grad()
        net(torch.randn(4, 16, 8, generator=generator)).square().mean().backward()
        optimizer.step()
        net.eval()
        for name, weight in zip(pruned.masks, weights(net), strict=True):
            assert bool((weight[~pruned.masks[name]] == 0).all())
            assert bool(weight.isfinite().all())
        net.train()
    assert not torch.equal(net[0].weight, kept)


@pytest.mark.parametrize("form", FORMS)
def test_undo_and_sweep_put_every_bit_back(form: str) -> None:
    net = net_of(form)
    before, dense = bits(net), weights(net)
    pruned = one_shot(net, 0.9)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(1.5)
    pruned.undo()
    after = bits(net)
    biases = [name for name in before if name.endswith("bias")]  # undo is for what was pruned
    assert {name: after[name] for name in before if name not in biases} == {
        name: before[name] for name in before if name not in biases
    }
    assert after.keys() == before.keys()
    assert all(torch.equal(one, other) for one, other in zip(dense, weights(net), strict=True))
    before = bits(net)
    zeros = []
    for state in sweep(net, (0.9, 0.5)):
        zeros.append([int((weight == 0).sum()) for weight in weights(net)])
        assert sum(zeros[-1]) == state.count
    assert bits(net) == before
    assert all(torch.equal(one, other) for one, other in zip(dense, weights(net), strict=True))


@pytest.mark.parametrize("form", FORMS)
def test_pruned_twice_and_undone_twice(form: str) -> None:
    net = net_of(form)
    before = bits(net)
    first = one_shot(net, 0.5)
    middle = bits(net)
    second = one_shot(net, 0.8)
    assert sum(int((weight == 0).sum()) for weight in weights(net)) == second.count
    second.undo()
    assert bits(net) == middle
    first.undo()
    assert bits(net) == before


@pytest.mark.parametrize("form", ["weight_norm", "older weight_norm"])
def test_weight_norm_needs_no_further_tensors(form: str) -> None:
    net, other = net_of(form), net_of(form)
    one_shot(net, 0.9)
    assert list(net.state_dict()) == list(other.state_dict())
    other.load_state_dict(net.state_dict())
    assert all(torch.equal(one, two) for one, two in zip(weights(net), weights(other), strict=True))


def test_a_mask_behind_a_parametrization_is_copied_with_the_network() -> None:
    net = net_of("orthogonal")
    pruned = one_shot(net, 0.9)
    twin = copy.deepcopy(net)
    assert torch.equal(twin[0].weight, net[0].weight)
    expected = net[0].weight.detach().clone()
    parametrize.remove_parametrizations(twin[0], "weight")
    assert torch.equal(twin[0].weight, expected)
    assert int((twin[0].weight == 0).sum()) == pruned.removed["0.weight"]


def test_reading_the_weight_changes_nothing() -> None:
    net = net_of("spectral_norm").train()
    before = bits(net)
    with pytest.raises(ValueError, match="unknown score"):
        one_shot(net, 0.5, score="none")
    one_shot(net, 0.5).undo()
    assert bits(net) == before
    assert all(module.training for module in net.modules())


class Doubled(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


def test_an_unknown_parametrization_is_left_out_by_name() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    parametrize.register_parametrization(net[1], "weight", Doubled())
    pruned = one_shot(net, 0.5)
    assert list(pruned.masks) == ["0.weight"]
    reasons = {entry.name: reason for entry, reason in pruned.left_out}
    assert "parametrization Doubled, which is not known" in reasons["1.parametrizations.weight.original"]
    assert bool((net[1].weight != 0).all())


def test_patterns_see_the_weight_and_its_parts() -> None:
    net = net_of("weight_norm")
    assert list(one_shot(net, 0.5, rule=Rule(exclude=("2.weight",))).masks) == ["0.weight"]
    assert list(one_shot(net, 0.5, rule=Rule(include=("2.*original1",))).masks) == ["2.weight"]


def test_groups_run_along_the_inputs_of_the_effective_weight() -> None:
    net = net_of("weight_norm")
    before = weights(net)
    one_shot(net, pattern="2:4")
    for weight, dense in zip(weights(net), before, strict=True):
        groups = weight.movedim(1, -1).reshape(-1, 4)
        assert bool(((groups != 0).sum(1) == 2).all())
        largest = dense.movedim(1, -1).reshape(-1, 4).abs().topk(2, 1).values.sum()
        torch.testing.assert_close(groups.abs().sum(), largest)


@pytest.mark.parametrize("form", ["weight_norm", "spectral_norm", "orthogonal"])
def test_summary_and_distribution_see_the_effective_weight(form: str) -> None:
    net = net_of(form)
    plain = nn.ParameterList(weights(net))
    assert weight_distribution(net) == weight_distribution(plain)
    one_shot(net, 0.75)
    found = summary(net)
    assert (found.prunable, found.sparsity) == (3072, 0.75)
