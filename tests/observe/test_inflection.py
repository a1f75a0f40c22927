"""InflectionProbe, CKA, effective rank, cosines of tasks, negativity: closed forms, the sheet's numbers, nothing changed."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import trimtab
from tests.losses.test_cross_entropies import wave
from trimtab.models.gpt import ByteGPT
from trimtab.observe import (
    EffectiveRank,
    InflectionProbe,
    attention_entropy,
    delta_cka,
    effective_rank,
    linear_cka,
    ski,
    task_cosines,
)
from trimtab.observe.curvature import SpectralDensity, negativity
from trimtab.observe.inflection import local_maxima


def test_entropy_of_even_single_and_the_sheets_attention() -> None:
    assert attention_entropy(wave(2, 3, 4, seed=1).softmax(-1)).item() == pytest.approx(1.201864752, rel=1e-9)
    assert attention_entropy(torch.full((3, 5), 0.2)).item() == pytest.approx(math.log(5))
    assert attention_entropy(torch.eye(4)).item() == 0
    blind = torch.tensor([[0.5, 0.5], [math.nan, math.nan]])  # a query that sees no key
    assert attention_entropy(blind).item() == pytest.approx(math.log(2))


def test_the_index_of_the_sheet_its_logarithm_and_its_maxima() -> None:
    entropies, gradients = [2, 1.5, 0.4, 1.8], [1e-2, 1e-3, 2e-4, 5e-2]
    linear = ski(entropies, gradients, scale="linear")
    assert linear == pytest.approx([0.4016064257, 0.6482178715, 1.0, 0.0625], rel=1e-9)
    logs = [math.log10(one) for one in gradients]
    expected = [
        0.5 * (2 - h) / 1.6 + 0.5 * (logs[3] - g) / (logs[3] - logs[2]) for h, g in zip(entropies, logs, strict=True)
    ]
    assert ski(entropies, gradients) == pytest.approx(expected)
    assert ski([1.0, 1.0], [1.0, 1.0]) == [0.0, 0.0]
    assert local_maxima([1.0, 3.0, 3.0, 0.0, 2.0]) == [1, 4]
    assert local_maxima([2.0, 2.0, 3.0]) == [2]
    assert local_maxima([2.0, 2.0, 1.0]) == [0]
    with pytest.raises(ValueError, match=r"the gradient of layer 1 is 0\.0: no logarithm; use scale='linear'"):
        ski([1.0, 2.0], [1.0, 0.0])


def network() -> nn.Module:
    torch.manual_seed(0)
    return ByteGPT(num_classes=16, length=8, dim=16, depth=3, heads=2)


def loss(net: nn.Module, batch: Tensor) -> Tensor:
    return functional.cross_entropy(net(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())


def test_each_number_equals_its_own_computation_and_nothing_is_changed() -> None:
    net = network()
    net.train()
    batch = torch.randint(0, 16, (4, 8), generator=torch.Generator().manual_seed(1))
    for parameter in net.parameters():
        parameter.grad = torch.ones_like(parameter)
    before, random = copy.deepcopy(net.state_dict()), torch.random.get_rng_state()
    attend = functional.scaled_dot_product_attention
    probe = InflectionProbe(net)
    rows = probe.run(batch, loss)
    assert functional.scaled_dot_product_attention is attend
    assert all(torch.equal(one, before[name]) for name, one in net.state_dict().items())
    assert torch.equal(random, torch.random.get_rng_state())
    assert all(torch.equal(one.grad, torch.ones_like(one)) for one in net.parameters())  # type: ignore[arg-type]
    assert net.training
    assert [row.layer for row in rows] == ["layers.0", "layers.1", "layers.2"]

    kept: list[Tensor] = []
    seen: list[float] = []

    def listening(query: Tensor, key: Tensor, value: Tensor, **given: Any) -> Tensor:
        logits = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
        weights = logits.masked_fill(torch.ones(7, 7).triu(1).bool(), -math.inf).softmax(-1)
        seen.append(-(weights * weights.clamp(min=1e-30).log()).sum(-1).mean().item())
        return weights @ value

    hooks = [layer.register_forward_hook(lambda module, given, output: kept.append(output)) for layer in net.layers]  # type: ignore[union-attr]
    functional.scaled_dot_product_attention = listening
    try:
        value = loss(net, batch)
    finally:
        functional.scaled_dot_product_attention = attend
        for hook in hooks:
            hook.remove()
    slopes = torch.autograd.grad(value, kept, retain_graph=True)
    own = list(net.layers[1].parameters())  # type: ignore[index]
    weights = torch.autograd.grad(value, own)
    assert [row.entropy for row in rows] == pytest.approx(seen, rel=1e-5)
    assert [row.activation_gradient for row in rows] == pytest.approx([one.norm().item() for one in slopes], rel=1e-5)
    assert rows[1].parameter_gradient == pytest.approx(
        torch.cat([one.flatten() for one in weights]).norm().item(), rel=1e-5
    )
    assert [row.ski for row in rows] == pytest.approx(ski(seen, [one.norm().item() for one in slopes]), rel=1e-4)
    best = max(rows, key=lambda row: row.ski).layer
    assert probe.candidates(1) == [best]
    table = probe.table(step=7).to_pylist()
    assert len(table) == 12
    assert table[0] == {"step": 7, "layer": "layers.0", "quantity": "entropy", "value": rows[0].entropy}


def test_frozen_weights_and_what_cannot_be_probed() -> None:
    net = network()
    batch = torch.randint(0, 16, (2, 8))
    for parameter in net.layers[0].parameters():  # type: ignore[index]
        parameter.requires_grad_(False)
    rows = InflectionProbe(net, ["layers.0", "layers.1"]).run(batch, loss)
    assert rows[0].parameter_gradient == 0
    assert rows[0].activation_gradient > 0
    with pytest.raises(ValueError, match=r"the network has no layer 'layers\.9'"):
        InflectionProbe(net, ["layers.9"])
    with pytest.raises(ValueError, match="no list of layers of one kind was found"):
        InflectionProbe(nn.Linear(2, 2))
    plain = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    with pytest.raises(ValueError, match="no attention was heard in the layer '0'"):
        InflectionProbe(plain).run(torch.ones(1, 2), lambda net, given: net(given).sum())
    with pytest.raises(RuntimeError, match="nothing was measured yet"):
        InflectionProbe(plain).candidates()


def test_cka_of_the_sheet_and_what_leaves_it_alone() -> None:
    x, y = wave(10, 4, seed=1), wave(10, 3, seed=2)
    assert linear_cka(x, y) == pytest.approx(0.07165754246, rel=1e-9)
    turn = torch.linalg.qr(wave(4, 4, seed=5)).Q
    assert linear_cka(3 * x @ turn + 7, y) == pytest.approx(linear_cka(x, y))
    assert linear_cka(x, x @ turn) == pytest.approx(1)
    wide = wave(5, 40, seed=3)
    assert linear_cka(wide, wide @ torch.linalg.qr(wave(40, 40, seed=4)).Q) == pytest.approx(1)  # by the Gram matrices
    with pytest.raises(ValueError, match="x and y must hold the same examples, got 10 and 5"):
        linear_cka(x, wide)


def test_delta_cka_is_zero_for_a_turned_layer_and_not_for_another() -> None:
    torch.manual_seed(0)
    before, inputs = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 3)), torch.randn(50, 4)
    after = copy.deepcopy(before)
    after[0].weight.data = torch.linalg.qr(torch.randn(6, 6)).Q @ after[0].weight.data
    after[1].weight.data = torch.randn(3, 6)
    found = delta_cka(before, after, inputs, ["0", "1"])
    assert found["0"] < 1e-6
    assert found["1"] > 0.01
    with pytest.raises(ValueError, match="the network has no layer '7'"):
        delta_cka(before, after, inputs, ["7"])


def test_effective_rank_counts_equal_directions() -> None:
    for rank in (1, 3, 5):
        matrix = torch.linalg.qr(wave(8, rank, seed=1)).Q @ torch.linalg.qr(wave(6, rank, seed=2)).Q.T
        assert effective_rank(2 * matrix).item() == pytest.approx(rank, rel=1e-6)
    assert math.isnan(effective_rank(torch.zeros(2, 2)).item())
    net = nn.Sequential(nn.Linear(4, 4), nn.Conv2d(2, 3, 3))
    for parameter in net.parameters():
        parameter.grad = torch.zeros_like(parameter)
    meter, optimizer = EffectiveRank(), torch.optim.SGD(net.parameters(), lr=0.1)
    trimtab.attach(optimizer, meter, model=net)
    optimizer.step()
    expected = {"0.weight": effective_rank(net[0].weight).item(), "1.weight": effective_rank(net[1].weight).item()}
    assert meter.layers() == pytest.approx(expected)
    share = (expected["0.weight"] / 4 + expected["1.weight"] / 3) / 2
    assert meter.signals()["effective_rank"].item() == pytest.approx(share)


def test_cosines_of_tasks_write_no_gradient_and_leave_the_graph() -> None:
    torch.manual_seed(0)
    net, heads = nn.Linear(4, 3), [nn.Linear(3, 1) for _ in range(3)]
    hidden = net(torch.randn(5, 4))
    losses = [head(hidden).square().mean() for head in heads]
    found = task_cosines(losses, net.parameters(), names=["a", "b", "c"])
    rows = torch.stack([
        torch.cat([one.flatten() for one in torch.autograd.grad(each, list(net.parameters()), retain_graph=True)])
        for each in losses
    ]).double()  # fmt: skip
    torch.testing.assert_close(
        found.cosines, functional.cosine_similarity(rows[:, None], rows[None], dim=2), rtol=1e-6, atol=1e-8
    )
    torch.testing.assert_close(found.norms, rows.norm(dim=1), rtol=1e-6, atol=0)
    a, b = found.norms[:2]
    assert found.similarity[0, 1].item() == pytest.approx((2 * a * b / (a**2 + b**2)).item())
    assert all(one.grad is None for one in net.parameters())
    sum(losses).backward()  # type: ignore[union-attr]
    assert [row["layer"] for row in found.table().to_pylist()] == ["a/b", "a/c", "b/c"] * 2
    weight = torch.ones(2, requires_grad=True)
    none = task_cosines([weight.sum(), torch.ones((), requires_grad=True) * 1.0], [weight])
    assert math.isnan(none.cosines[0, 1])
    assert none.norms[1] == 0
    with pytest.raises(ValueError, match="at least two losses are compared, got 1"):
        task_cosines([weight.sum()], [weight])
    with pytest.raises(ValueError, match="no parameter takes a gradient"):
        task_cosines([weight.sum(), weight.sum()], [])


def density(*probes: tuple[list[float], list[float]]) -> SpectralDensity:
    nodes, weights = (tuple(tuple(one[at]) for one in probes) for at in (0, 1))
    return SpectralDensity((), (), 1.0, nodes, weights, 0, 0, 0, 0, 0, len(probes), 100, 0)


def test_negativity_of_the_sheet_over_probes_and_at_the_ends() -> None:
    sheet = ([-0.3, -0.01, 0.2, 5.0], [0.1, 0.4, 0.4, 0.1])
    found = negativity(density(sheet))
    assert (found.ratio, found.k) == (pytest.approx(0.06), pytest.approx(0.2388512096, rel=1e-9))
    two = negativity(density(sheet, ([1.0, 2.0], [0.5, 0.5])))
    assert two.per_run == pytest.approx((0.2388512096, 0.0))
    assert two.standard_error == pytest.approx(0.2388512096 / 2)
    assert two.ratio == pytest.approx(0.03)
    rounding = negativity(density(([-1e-14, 1.0], [0.5, 0.5])))
    assert (rounding.ratio, rounding.k) == (0, 0)
    with pytest.warns(UserWarning, match="no eigenvalue is above 0"):
        assert negativity(density(([-1.0, -2.0], [0.5, 0.5]))).k == math.inf
    with pytest.raises(ValueError, match="power must be finite and above 0, got 0"):
        negativity(density(sheet), power=0)
