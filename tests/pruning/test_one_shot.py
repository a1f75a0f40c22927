"""One-shot pruning: which weights go, how many, and what is refused."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import prune

from tests.pruning.nets import Small, Tied, bits
from tests.warned import TOY_IS_CUT
from trimtab.parameters import Entry, Rule
from trimtab.pruning import one_shot

pytestmark = TOY_IS_CUT

WEIGHTS = ("conv.weight", "up.weight", "head.weight")


def removed(pruned_masks: dict[str, Tensor]) -> Tensor:
    return torch.cat([~mask.flatten() for mask in pruned_masks.values()])


def test_global_magnitude_equals_torch_prune() -> None:
    ours, theirs = Small(), Small()
    theirs.load_state_dict(ours.state_dict())
    pruned = one_shot(ours, 0.8)
    layers = [(module, "weight") for module in (theirs.conv, theirs.up, theirs.head)]
    prune.global_unstructured(layers, prune.L1Unstructured, amount=0.8)
    for name, (module, _) in zip(WEIGHTS, layers, strict=True):
        assert torch.equal(pruned.masks[name], module.weight_mask.bool())
        assert torch.equal(ours.get_parameter(name), module.weight)


@pytest.mark.parametrize("scope", ["global", "layer", "erk"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_exact_counts_and_nothing_but_the_smallest(scope: str, dtype: torch.dtype) -> None:
    net = Small().to(dtype)
    before = {name: net.get_parameter(name).detach().clone() for name in WEIGHTS}
    pruned = one_shot(net, 0.77, scope=scope)
    assert tuple(pruned.masks) == WEIGHTS
    sizes = [mask.numel() for mask in pruned.masks.values()]
    if scope == "layer":
        assert list(pruned.removed.values()) == [math.floor(0.77 * size + 0.5) for size in sizes]
    else:
        assert pruned.count == math.floor(0.77 * sum(sizes) + 0.5)
    for name, mask in pruned.masks.items():
        weight = net.get_parameter(name).detach()
        assert torch.equal(weight, torch.where(mask, before[name], 0))
        assert pruned.removed[name] == int((~mask).sum())
        assert before[name][~mask].abs().max() <= pruned.thresholds[name] <= before[name][mask].abs().min()
    assert pruned.prunable == sum(sizes)
    assert pruned.total == sum(parameter.numel() for parameter in net.parameters())
    assert pruned.sparsity == pruned.count / pruned.prunable
    assert pruned.sparsity_total == pruned.count / pruned.total


@settings(max_examples=30, deadline=None)
@given(
    sparsity=st.floats(0, 1, exclude_max=True),
    scope=st.sampled_from(["global", "erk"]),
    score=st.sampled_from(["magnitude", "layer_magnitude", "random"]),
    levels=st.integers(1, 4),
)
def test_count_is_exact_whatever_the_ties(sparsity: float, scope: str, score: str, levels: int) -> None:
    net = nn.Sequential(nn.Linear(5, 7, bias=False), nn.Linear(3, 4, bias=False))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.randint(1, levels + 1, parameter.shape))
    pruned = one_shot(net, sparsity, scope=scope, score=score)
    assert pruned.count == math.floor(sparsity * 47 + 0.5) == sum(int((p == 0).sum()) for p in net.parameters())


def test_equal_weights_go_by_position() -> None:
    net = nn.Sequential(nn.Linear(4, 2, bias=False), nn.Linear(2, 2, bias=False))
    for parameter in net.parameters():
        nn.init.constant_(parameter, -0.25)
    assert removed(one_shot(net, 0.5).masks).tolist() == [True] * 6 + [False] * 6


def test_layer_magnitude_does_not_see_the_scale_of_a_layer() -> None:
    masks = []
    for scale in (1.0, 1024.0):
        torch.manual_seed(1)
        net = Small()
        with torch.no_grad():
            net.up.weight.mul_(scale)
        relative = one_shot(net, 0.6, score="layer_magnitude")
        masks.append(removed(relative.masks))
        relative.undo()
        plain = removed(one_shot(net, 0.6).masks)
    assert torch.equal(*masks)
    assert not torch.equal(masks[1], plain)


def test_layer_magnitude_against_its_formula() -> None:
    net = Small()
    scores = [(p.abs() / p.pow(2).sum().sqrt()).detach().flatten() for n, p in net.named_parameters() if n in WEIGHTS]
    flat = torch.cat([score.double() for score in scores])
    expected = torch.zeros(flat.numel(), dtype=torch.bool)
    expected[flat.argsort(stable=True)[: math.floor(0.4 * flat.numel() + 0.5)]] = True
    assert torch.equal(removed(one_shot(net, 0.4, score="layer_magnitude").masks), expected)


def test_layer_of_zeros_goes_first_under_layer_magnitude() -> None:
    net = Small()
    nn.init.zeros_(net.head.weight)
    pruned = one_shot(net, 0.5, score="layer_magnitude")
    assert pruned.removed["head.weight"] == net.head.weight.numel()


def test_random_is_seeded_and_spread() -> None:
    torch.manual_seed(3)
    net = nn.Linear(200, 100, bias=False)
    state = torch.get_rng_state()
    masks = []
    for seed in (0, torch.Generator().manual_seed(0), 1):
        pruned = one_shot(net, 0.5, score="random", seed=seed)
        masks.append(pruned.masks["weight"])
        pruned.undo()
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(masks[0], masks[1])
    both = (masks[0] & masks[2]).double().mean()
    assert abs(both - 0.25) < 0.02  # independent draws agree on a quarter


def test_a_callable_decides() -> None:
    net = Small()

    def position(entry: Entry) -> Tensor:
        return torch.arange(entry.parameter.numel(), dtype=torch.float32).view(entry.parameter.shape)

    pruned = one_shot(net, 0.5, score=position, scope="layer")
    assert pruned.score == "position"
    for mask in pruned.masks.values():
        assert not mask.flatten()[: mask.numel() // 2].any()
        assert mask.flatten()[(mask.numel() + 1) // 2 :].all()


def test_tied_weights_count_and_go_once() -> None:
    net = Tied()
    pruned = one_shot(net, 0.5)
    assert list(pruned.masks) == ["embedding.weight"]
    assert (pruned.prunable, pruned.total, pruned.count) == (32, 32, 16)
    assert net.head.weight is net.embedding.weight


def test_left_out_with_reasons() -> None:
    net = Small()
    net.head.weight.requires_grad_(False)
    net.pos_embed = nn.Parameter(torch.ones(1, 4, 3))
    reasons = {entry.name: reason for entry, reason in one_shot(net, 0.5, rule=Rule(), keep_first=True).left_out}
    assert "fewer than 2" in reasons["norm.weight"]
    assert "frozen" in reasons["head.weight"]
    assert "table of positions" in reasons["pos_embed"]
    assert "first layer" in reasons["conv.weight"]
    reasons = {entry.name: reason for entry, reason in one_shot(net, 0.5, keep_last=True).left_out}
    assert "pos_embed" in reasons["pos_embed"]
    assert "last layer" in reasons["head.weight"]


def test_undo_is_bit_exact_and_works_once() -> None:
    net = Small()
    with torch.no_grad():
        net.conv.weight.view(-1)[:3] = torch.tensor([-0.0, 1e-42, torch.inf])
    before = bits(net)
    pruned = one_shot(net, 0.9)
    assert bits(net) != before
    pruned.undo()
    assert bits(net) == before
    with pytest.raises(RuntimeError, match="nothing to undo"):
        pruned.undo()


def test_undo_after_training_restores_all_prunable_weights() -> None:
    net = Small()
    before = bits(net)
    pruned = one_shot(net, 0.5)
    with torch.no_grad():
        net.conv.weight.add_(1)
    pruned.undo()
    assert bits(net) == before


def test_text_names_both_sparsities_and_the_reasons() -> None:
    pruned = one_shot(nn.Sequential(nn.Linear(10, 10), nn.BatchNorm1d(10)), 0.9)
    assert "90 of 100" in repr(pruned)
    assert "90.00%" in repr(pruned)
    assert "69.23%" in repr(pruned)  # of 130
    assert "1.weight" in pruned.table()
    assert "fewer than 2" in pruned.table()


@pytest.mark.parametrize("number", [np.float32(0.9), np.float64(0.9), np.float16(0.9), Fraction(9, 10)])
def test_any_real_number_is_a_sparsity(number: Any) -> None:
    net, other = Small(), Small()
    other.load_state_dict(net.state_dict())
    assert one_shot(net, number).count == one_shot(other, float(number)).count > 0
    assert bits(net) == bits(other)
    assert one_shot(nn.Linear(8, 2), np.int64(0)).count == 0


@pytest.mark.parametrize(
    "sparsity",
    [1.0, -0.1, 90, float("nan"), None, True, False, np.True_, np.float32("nan"), np.float64(1), "0.5", 0.5j, [0.5]],
)
def test_sparsity_out_of_range(sparsity: Any) -> None:
    net = Small()
    before = bits(net)
    with pytest.raises((ValueError, TypeError), match=r"sparsity must (lie in \[0, 1\)|be a number)"):
        one_shot(net, sparsity)
    assert bits(net) == before


@pytest.mark.parametrize("score", ["magnitude", "layer_magnitude", "random"])
@pytest.mark.parametrize("pattern", ["unstructured", "2:4"])
def test_nan_weights_are_named_and_nothing_changes(score: str, pattern: str) -> None:
    net = Small()
    with torch.no_grad():
        net.up.weight[0, 0, 0, 0] = torch.nan
    before = bits(net)
    with pytest.raises(ValueError, match=r"up\.weight holds NaN in 1 of"):
        one_shot(net, None if pattern == "2:4" else 0.5, score=score, pattern=pattern, indivisible="leave_out")
    assert bits(net) == before


def test_infinite_weights_are_kept_or_refused_by_name() -> None:
    net = Small()
    with torch.no_grad():
        net.head.weight[0, :2] = torch.tensor([torch.inf, -torch.inf])
    assert one_shot(net, 0.9).masks["head.weight"][0, :2].all()
    with pytest.raises(ValueError, match=r"head\.weight has the norm inf"):
        one_shot(net, 0.9, score="layer_magnitude")


@pytest.mark.parametrize("net", [nn.ReLU(), nn.BatchNorm1d(4), nn.Linear(0, 3)])
def test_nothing_to_prune(net: nn.Module) -> None:
    with pytest.raises(ValueError, match="nothing to prune"):
        one_shot(net, 0.5)


def test_unknown_names() -> None:
    net = Small()
    with pytest.raises(ValueError, match="did you mean magnitude"):
        one_shot(net, 0.5, score="magnitud")
    with pytest.raises(ValueError, match="unknown scope 'world'"):
        one_shot(net, 0.5, scope="world")
    with pytest.raises(ValueError, match="pattern"):
        one_shot(net, 0.5, pattern="4:2")


@pytest.mark.parametrize(
    ("value", "message"),
    [(torch.full((3, 2), torch.nan), "NaN in 6 of 6"), (torch.ones(2), r"shape \(2,\)")],
)
def test_bad_scores_are_named(value: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=rf"score of weight .*{message}"):
        one_shot(nn.Linear(2, 3), 0.5, score=lambda entry: value)


def test_scores_of_either_sign_order_the_weights() -> None:
    net = nn.Linear(4, 5)
    score = torch.randn(5, 4)
    pruned = one_shot(net, 0.35, score=lambda entry: score)
    gone = torch.zeros(20, dtype=torch.bool)
    gone[score.flatten().argsort()[:7]] = True
    assert torch.equal(~pruned.masks["weight"].flatten(), gone)
    assert pruned.thresholds["weight"] == pytest.approx(float(score.flatten().sort()[0][6]))


def test_sharded_weights_are_refused() -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    net = nn.Linear(4, 4)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        fully_shard(net, mesh=init_device_mesh("cpu", (1,)))
        with pytest.raises(ValueError, match=r"weight is sharded \(DTensor\)"):
            one_shot(net, 0.5)
    finally:
        dist.destroy_process_group()


def test_a_weight_whose_elements_share_memory_stays_and_so_do_the_counts() -> None:
    net = nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 2))
    net[0].weight = nn.Parameter(torch.randn(1, 6).expand(4, 6))
    pruned = one_shot(net, 0.5)
    assert pruned.removed == {"1.weight": 4}
    assert [reason for entry, reason in pruned.left_out if entry.name == "0.weight"] == [
        "its elements share memory (an expanded tensor): none can be zero by itself; clone it"
    ]
