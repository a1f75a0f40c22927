"""Erdos-Renyi-Kernel densities and N:M patterns."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tests.pruning.nets import Small, bits
from tests.warned import TOY_IS_CUT
from trimtab.parameters import Rule
from trimtab.pruning import erk_densities, one_shot, sweep
from trimtab.pruning.scopes import _rounded

pytestmark = TOY_IS_CUT

SHAPES = st.lists(
    st.one_of(
        st.tuples(st.integers(1, 40), st.integers(1, 40)),
        st.tuples(st.integers(1, 20), st.integers(1, 20), st.just(3), st.just(3)),
    ),
    min_size=1,
    max_size=6,
)


def published_rule(shapes: list[tuple[int, ...]], density: float) -> list[float]:
    """The rule as arXiv 1911.11134 tells it: raise epsilon, and fix the layer of highest probability at 1 each time."""
    dense: set[int] = set()
    while True:
        divisor = right = 0.0
        raw = {}
        for layer, shape in enumerate(shapes):
            size = math.prod(shape)
            if layer in dense:
                right -= size * (1 - density)
            else:
                right += size * density
                raw[layer] = sum(shape) / size
                divisor += raw[layer] * size
        if not raw:
            return [1.0] * len(shapes)
        epsilon = right / divisor
        highest = max(raw.values())
        if highest * epsilon <= 1:
            return [1.0 if layer in dense else epsilon * raw[layer] for layer in range(len(shapes))]
        dense |= {layer for layer, value in raw.items() if value == highest}


@settings(max_examples=80, deadline=None)
@given(shapes=SHAPES, density=st.floats(0.01, 0.99))
def test_erk_equals_the_published_rule(shapes: list[tuple[int, ...]], density: float) -> None:
    found = erk_densities(shapes, density)
    assert found == pytest.approx(published_rule(shapes, density), rel=1e-6, abs=1e-9)
    sizes = [math.prod(shape) for shape in shapes]
    assert sum(d * size for d, size in zip(found, sizes, strict=True)) == pytest.approx(density * sum(sizes))


@settings(max_examples=40, deadline=None)
@given(shapes=SHAPES, sparsity=st.floats(0, 1, exclude_max=True))
def test_erk_total_is_exact_and_each_layer_within_one(shapes: list[tuple[int, ...]], sparsity: float) -> None:
    net = nn.ParameterList([nn.Parameter(torch.rand(shape)) for shape in shapes])
    pruned = one_shot(net, sparsity, scope="erk")
    sizes = [math.prod(shape) for shape in shapes]
    assert pruned.count == math.floor(sparsity * sum(sizes) + 0.5)
    for count, size, density in zip(pruned.removed.values(), sizes, erk_densities(shapes, 1 - sparsity), strict=True):
        assert 0 <= count <= size
        assert abs(count - (1 - density) * size) <= 1 + 1e-6


def test_erk_keeps_narrow_layers_denser() -> None:
    net = nn.Sequential(nn.Linear(10, 10, bias=False), nn.Linear(100, 100, bias=False))
    counts = one_shot(net, 0.9, scope="erk").removed
    assert counts["0.weight"] / 100 < 0.1
    assert counts["1.weight"] / 10000 > 0.9


def test_layer_thresholds_differ_from_the_global_one() -> None:
    net = Small()
    with torch.no_grad():
        net.conv.weight.mul_(100)
    everywhere = one_shot(net, 0.5)
    everywhere.undo()
    each = one_shot(net, 0.5, scope="layer")
    assert len(set(everywhere.thresholds.values())) == 1
    assert len(set(each.thresholds.values())) == 3
    assert everywhere.removed["conv.weight"] < each.removed["conv.weight"]


@pytest.mark.parametrize(("pattern", "keep", "group"), [("2:4", 2, 4), ("4:8", 4, 8), ("1:4", 1, 4), ("3:20", 3, 20)])
def test_groups_run_along_the_input_axis(pattern: str, keep: int, group: int) -> None:
    net = nn.Sequential(nn.Linear(40, 3), nn.Conv2d(40, 5, 3), nn.ConvTranspose2d(40, 7, 2), nn.Embedding(6, 40))
    before = [layer.weight.detach().clone() for layer in net]
    pruned = one_shot(net, pattern=pattern)
    assert pruned.sparsity == pytest.approx(1 - keep / group)
    for layer, weight in zip(net, before, strict=True):
        axis = 0 if isinstance(layer, nn.ConvTranspose2d) else 1
        rows = weight.movedim(axis, -1).reshape(-1, group)
        kept = torch.zeros_like(rows).scatter_(1, rows.abs().topk(keep, dim=1).indices, 1).bool()
        found = layer.weight.detach().movedim(axis, -1).reshape(-1, group)
        assert torch.equal(found, torch.where(kept, rows, 0))


def test_equal_weights_in_a_group_go_by_position() -> None:
    net = nn.Linear(8, 1, bias=False)
    nn.init.ones_(net.weight)
    one_shot(net, pattern="2:4")
    assert net.weight.tolist() == [[0, 0, 1, 1, 0, 0, 1, 1]]


def test_a_pattern_that_does_not_divide_a_weight_is_an_error_that_names_it_unless_asked() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Linear(6, 2))
    before = bits(net)
    for prune in (one_shot, lambda net, **how: list(sweep(net, (None,), **how))):
        with pytest.raises(
            ValueError, match=r"'2:4' does not divide 2 weight\(s\): 0\.weight .*3.*; 2\.weight .*6.*leave_out"
        ):
            prune(net, pattern="2:4")
    assert bits(net) == before
    with pytest.raises(ValueError, match="indivisible must be"):
        one_shot(net, pattern="2:4", indivisible="pad")
    assert one_shot(net, pattern="2:4", rule=Rule(include=("1.*",))).count == 8 * 8 * 9 // 2


def test_ragged_tensors_are_left_out_with_the_reason() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3))
    pruned = one_shot(net, pattern="2:4", rule=Rule(min_ndim=1), indivisible="leave_out")
    reasons = {entry.name: reason for entry, reason in pruned.left_out}
    assert "input axis of 3 is not a multiple of 4" in reasons["0.weight"]
    assert "no input axis" in reasons["1.bias"]
    assert pruned.sparsity == 0.5
    assert bool((net[0].weight != 0).all())
    with pytest.raises(ValueError, match=r"nothing to prune .*multiple of 5"):
        one_shot(net[1], pattern="2:5", indivisible="leave_out")


def test_pattern_fixes_the_sparsity() -> None:
    net = nn.Linear(8, 2)
    assert one_shot(net, 0.5, pattern="4:8").sparsity == 0.5
    with pytest.raises(ValueError, match=r"fixes the sparsity at 0\.5.*0\.9"):
        one_shot(net, 0.9, pattern="2:4")


@pytest.mark.parametrize("scope", ["global", "layer", "erk"])
def test_a_pattern_has_no_scope_and_says_so(scope: str) -> None:
    net, other = nn.Linear(16, 4), nn.Linear(16, 4)
    other.load_state_dict(net.state_dict())
    pruned = one_shot(net, pattern="2:4", scope=scope)
    assert torch.equal(pruned.masks["weight"], one_shot(other, pattern="2:4").masks["weight"])
    assert pruned.scope == "group"  # not what was asked for: nothing was compared there
    assert scope not in repr(pruned)
    assert one_shot(net, 0.5, scope=scope).scope == scope
    with pytest.raises(ValueError, match="unknown scope 'world'"):
        one_shot(net, pattern="2:4", scope="world")


def test_a_pattern_takes_its_own_sparsity_in_any_precision() -> None:
    assert one_shot(nn.Linear(6, 2), np.float32(2 / 3), pattern="1:3").sparsity == pytest.approx(2 / 3)
    for sparsity in (np.float32(0.66), True, "half"):
        with pytest.raises((ValueError, TypeError), match="sparsity"):
            one_shot(nn.Linear(6, 2), sparsity, pattern="1:3")  # type: ignore[arg-type]


@pytest.mark.parametrize("pattern", ["4:4", "0:4", "5:4", "2-4", "2:4 ", "channel", ""])
def test_bad_patterns(pattern: str) -> None:
    with pytest.raises(ValueError, match=r"N:M"):
        one_shot(nn.Linear(8, 2), pattern=pattern)


@pytest.mark.parametrize(
    ("wanted", "limits", "total", "expected"),
    [
        ([1.25, 2.75, 3.75, 0.5], [9, 9, 9, 9], 8, [1, 3, 4, 0]),  # the largest remainders first
        ([1.25, 2.75, 3.75, 0.5], [9, 9, 9, 9], 7, [1, 3, 3, 0]),  # of equal ones the first layer
        ([3.75, 1.25, 2.75, 0.5], [9, 9, 9, 9], 7, [4, 1, 2, 0]),
        ([0.5, 2.0, 0.5, 0.25], [9, 9, 9, 9], 3, [1, 2, 0, 0]),
        ([3.75, 2.5, 0.25], [3, 9, 9], 6, [3, 3, 0]),  # a layer that has no more is passed over
        ([1.5, 1.5], [2, 2], 4, [2, 2]),
        ([1.0, 2.0], [2, 2], 3, [1, 2]),
    ],
)
def test_whole_numbers_by_the_largest_remainder(
    wanted: list[float], limits: list[int], total: int, expected: list[int]
) -> None:
    assert _rounded(wanted, limits, total) == expected
