"""Coresets: the sheet's numbers, brute force, exact gradients, quotas of sources, weights bit-equal, bad input."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from tests.waves import wave
from trimtab.curricula import (
    BatchCoreset,
    Moments,
    adam_direction,
    facility_location,
    last_layer_features,
    similarity,
    zeroth_order_features,
)


def test_facility_location_equals_the_sheets_numbers() -> None:
    chosen, stands_for = facility_location(similarity(wave(8, 3, seed=3)), 3)
    assert chosen.tolist() == [0, 1, 2]
    assert stands_for.tolist() == [3, 3, 2]


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 8), st.integers(1, 4), st.integers(0, 1000))
def test_the_greedy_choice_is_near_the_best_and_never_repeats(count: int, wanted: int, seed: int) -> None:
    wanted = min(wanted, count)
    likeness = similarity(wave(count, 2, seed=seed))
    chosen, stands_for = facility_location(likeness, wanted)
    assert len(set(chosen.tolist())) == wanted
    assert float(stands_for.sum()) == count
    assert bool((stands_for >= 1).all())

    def value(places: Any) -> float:
        return float(likeness[list(places)].amax(0).sum())

    best = max(value(places) for places in itertools.combinations(range(count), wanted))
    assert value(chosen.tolist()) >= (1 - 1 / 2.718281828) * best - 1e-9


def test_adam_direction_equals_the_sheets_numbers_and_a_step_of_adam() -> None:
    moments = Moments(wave(4, seed=2) / 10, wave(4, seed=3) ** 2 / 10, 4)  # the next is step 5
    found = adam_direction(wave(4, seed=1), moments)
    assert found.tolist() == pytest.approx([0.2321684539, 0.07800622576, -0.08104254897, -0.3646956748], rel=1e-6)
    weight = nn.Parameter(torch.zeros(6, dtype=torch.float64))
    adam = torch.optim.Adam([weight], lr=1.0)
    for seed in range(3):
        weight.grad = wave(6, seed=seed)
        adam.step()
    before, held = weight.detach().clone(), Moments.of(adam, weight)
    assert held is not None
    expected = adam_direction(wave(6, seed=9), held)
    weight.grad = wave(6, seed=9)
    adam.step()
    torch.testing.assert_close(before - weight.detach(), expected)


def classifier() -> tuple[nn.Linear, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return nn.Linear(7, 4), torch.randn(9, 7), torch.randint(4, (9,))


def test_features_of_the_last_layer_are_its_gradients() -> None:
    layer, hidden, targets = classifier()
    found = last_layer_features(layer(hidden), targets, hidden)
    for at in range(9):
        loss = F.cross_entropy(layer(hidden[at : at + 1]), targets[at : at + 1])
        (expected,) = torch.autograd.grad(loss, layer.weight)
        torch.testing.assert_close(found[at], expected.flatten(), atol=1e-6, rtol=1e-5)


def test_of_many_coordinates_the_largest_stay_whether_made_at_once_or_in_pieces(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    layer, hidden, targets = classifier()
    held = Moments(0.1 * torch.randn(4, 7), torch.rand(4, 7), 3)
    whole = last_layer_features(layer(hidden), targets, hidden, top=10_000, moments=held)
    expected = whole[:, whole.abs().mean(0).topk(5).indices.sort().values]
    torch.testing.assert_close(last_layer_features(layer(hidden), targets, hidden, top=5, moments=held), expected)
    monkeypatch.setattr("trimtab.curricula.coreset_features.PIECE", 9 * 7)  # one class at a time
    torch.testing.assert_close(last_layer_features(layer(hidden), targets, hidden, top=5, moments=held), expected)


def test_zeroth_order_features_are_the_slopes_along_a_direction_and_leave_the_weights_bit_equal() -> None:
    layer, hidden, targets = classifier()
    before = [p.detach().clone() for p in layer.parameters()]

    def losses() -> torch.Tensor:
        return F.cross_entropy(layer(hidden), targets, reduction="none")

    found = zeroth_order_features(losses, layer.parameters(), seed=5)
    assert all(torch.equal(one, held) for one, held in zip(layer.parameters(), before, strict=True))
    generator = torch.Generator().manual_seed(5)
    direction = torch.cat([torch.randn(p.shape, generator=generator).flatten() for p in layer.parameters()])
    for at in range(9):
        loss = F.cross_entropy(layer(hidden[at : at + 1]), targets[at : at + 1])
        gradient = torch.cat([part.flatten() for part in torch.autograd.grad(loss, list(layer.parameters()))])
        torch.testing.assert_close(found[at], float(gradient @ direction) * direction, atol=5e-3, rtol=5e-3)
    assert zeroth_order_features(losses, layer.parameters(), seed=5, top=6).shape == (9, 6)


def test_both_passes_of_zeroth_order_features_drop_the_same_units_and_draw_once() -> None:
    weight, dropout = nn.Parameter(torch.ones(400)), nn.Dropout()
    kept: list[torch.Tensor] = []

    def losses() -> torch.Tensor:
        kept.append(dropout(weight) != 0)
        return torch.stack([kept[-1].float() @ weight])

    torch.manual_seed(3)
    found = zeroth_order_features(losses, [weight], seed=5, top=400)
    after = torch.rand(1)
    assert torch.equal(kept[0], kept[1])
    direction = torch.randn(400, generator=torch.Generator().manual_seed(5))
    torch.testing.assert_close(found[0], (kept[0].float() @ direction) * direction, rtol=1e-2, atol=1e-2)
    torch.manual_seed(3)
    dropout(weight)
    assert torch.equal(after, torch.rand(1))


def test_zeroth_order_features_put_the_weights_back_after_an_error() -> None:
    layer, *_ = classifier()
    before = layer.weight.detach().clone()
    with pytest.raises(RuntimeError, match="no loss"):
        zeroth_order_features(lambda: (_ for _ in ()).throw(RuntimeError("no loss")), [layer.weight])
    assert torch.equal(layer.weight, before)


def test_small_sources_stay_whole_and_the_others_get_their_share() -> None:
    sources = ["large"] * 10 + ["rare"] * 2 + ["middling"] * 4
    chosen = BatchCoreset(ratio=0.5, keep_sources=["rare"]).choose(wave(16, 5), sources)
    counts = [sum(sources[at] == name for at in chosen.indices.tolist()) for name in ("large", "rare", "middling")]
    assert counts == [5, 2, 1]  # 6 left: floor(60 / 14) = 4 and floor(24 / 14) = 1, and one more for the largest
    assert chosen.indices.tolist() == sorted(chosen.indices.tolist())
    assert chosen.weights.tolist() == [1] * 8


def test_weights_count_what_each_stands_for() -> None:
    features = torch.cat([torch.zeros(6, 2), 10 + torch.zeros(2, 2)])
    chosen = BatchCoreset(ratio=0.25, weights=True).choose(features)
    assert chosen.weights.tolist() == [6, 2]


def test_a_coreset_comes_nearer_the_batch_gradient_than_a_random_half() -> None:
    """Imbalanced: two clusters of gradients, 28 against 4."""
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(32, 12, generator=generator) * 0.1
    features[:28, 0] += 1
    features[28:, 1] += 4
    chosen = BatchCoreset(ratio=0.25, weights=True).choose(features)
    weights = chosen.weights / chosen.weights.sum()
    distance = float((weights @ features[chosen.indices] - features.mean(0)).norm())
    others = [
        float((features[torch.randperm(32, generator=generator)[:8]].mean(0) - features.mean(0)).norm())
        for _ in range(50)
    ]
    assert distance < sorted(others)[10]


@pytest.mark.parametrize("way", ["last_layer", "zeroth_order"])
def test_both_ways_in_choose_half(way: str) -> None:
    layer, hidden, targets = classifier()
    coreset = BatchCoreset()
    if way == "last_layer":
        chosen = coreset.by_last_layer(layer(hidden), targets, hidden)
    else:
        chosen = coreset.by_zeroth_order(
            lambda: F.cross_entropy(layer(hidden), targets, reduction="none"), [layer.weight], seed=3
        )
    assert len(chosen.indices) == 4


BAD: list[tuple[Any, str]] = [
    (lambda: BatchCoreset(ratio=0), r"ratio must lie in \(0, 1\], got 0"),
    (lambda: BatchCoreset(metric="cosine"), "metric must be one of 'l1', 'l2', got 'cosine'"),  # type: ignore[arg-type]
    (lambda: BatchCoreset().choose(torch.tensor([[1.0], [float("nan")]])), "those of example 1 are not"),
    (lambda: BatchCoreset().choose(torch.zeros(3)), "features must be a matrix"),
    (lambda: BatchCoreset().choose(torch.zeros(3, 1), ["a"]), "there are 3 examples and 1 sources"),
    (lambda: BatchCoreset(keep_sources=["a"]).choose(torch.zeros(3, 1)), "give the source of each example"),
    (lambda: facility_location(torch.zeros(2, 2), 3), r"count must be a whole number in 1\.\.2, got 3"),
    (lambda: zeroth_order_features(lambda: torch.zeros(1), []), "need at least one parameter"),
    (lambda: zeroth_order_features(lambda: torch.ones(()), [nn.Parameter(torch.ones(1))]), "losses must be one number"),
    (lambda: last_layer_features(torch.zeros(2, 3), torch.zeros(2).long(), torch.zeros(3, 4)), "what the last layer got"),
    (lambda: Moments.of(torch.optim.Adam([nn.Parameter(torch.ones(1))]), nn.Parameter(torch.ones(2))), "does not train this"),
]  # fmt: skip


@pytest.mark.parametrize(("act", "words"), BAD)
def test_bad_input_is_one_error(act: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        act()


def test_directions_of_adam_need_adam() -> None:
    weight = nn.Parameter(torch.ones(1))
    sgd = torch.optim.SGD([weight], lr=0.1, momentum=0.9)
    weight.grad = torch.ones(1)
    sgd.step()
    with pytest.raises(ValueError, match="need Adam or AdamW, got SGD"):
        Moments.of(sgd, weight)
    assert Moments.of(torch.optim.AdamW([weight]), weight) is None
