"""Scores of examples: the sheet's numbers, autograd, loops, first-order change of a step; along a run; bad input."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.distributed import on_two_ranks
from tests.waves import wave
from trimtab import datasets
from trimtab.observe import ExampleScores
from trimtab.observe.examples import (
    el2n,
    example_gradients,
    gradient_variance,
    grand,
    influence,
    input_gradients,
    tracin,
    within_class,
)


def test_el2n_equals_the_sheets_numbers_and_the_norm_of_the_losss_gradient() -> None:
    logits, targets = wave(3, 4, seed=2).requires_grad_(), torch.arange(3)
    found = el2n(logits, targets)
    assert found.tolist() == pytest.approx([0.5615594398, 0.5377560651, 0.6906726487], rel=1e-9)
    (gradient,) = torch.autograd.grad(F.cross_entropy(logits, targets, reduction="sum"), logits)
    torch.testing.assert_close(found, gradient.norm(dim=1))


def test_variance_of_gradients_equals_the_sheets_numbers() -> None:
    found = gradient_variance(wave(3, 4, 2, 2, seed=1))
    assert found.tolist() == pytest.approx([0.8099882838, 0.7179448161, 0.6421539902, 0.6835872274], rel=1e-9)
    assert within_class(found, torch.tensor([0, 0, 1, 1])).tolist() == pytest.approx([1, -1, -1, 1])
    assert within_class(found, torch.tensor([0, 1, 2, 2]))[:2].tolist() == [0, 0]


def test_influence_equals_the_sheets_numbers() -> None:
    found = influence(list(wave(2, 3, 4, seed=1)), list(wave(2, 2, 4, seed=2)), [0.1, 0.01])
    expected = [0.2033269091, 0.25099847, -0.1021413288, 0.01626995837, -0.2445162363, -0.08224046033]
    assert found.flatten().tolist() == pytest.approx(expected, rel=1e-8)


def network() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(48, 5)
    ).double()


def data(count: int = 7) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    return (
        torch.randn(count, 1, 6, 6, generator=generator, dtype=torch.float64),
        torch.randint(5, (count,), generator=generator),
    )


def loop(net: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    net = copy.deepcopy(net).eval()
    rows = []
    for one, kind in zip(inputs, targets, strict=True):
        loss = F.cross_entropy(net(one[None]), kind[None])
        rows.append(torch.cat([part.flatten() for part in torch.autograd.grad(loss, list(net.parameters()))]))
    return torch.stack(rows)


def test_gradients_of_examples_equal_a_loop_and_leave_the_model_bit_equal() -> None:
    net, (inputs, targets) = network(), data()
    net.train()
    before, random = copy.deepcopy(net.state_dict()), torch.get_rng_state()
    expected = loop(net, inputs, targets)
    torch.testing.assert_close(example_gradients(net, inputs, targets), expected)
    torch.testing.assert_close(grand(net, inputs, targets), expected.norm(dim=1))
    input_gradients(net, inputs, targets)
    example_gradients(net, inputs, targets, layer=net[5])
    assert all(torch.equal(one, before[name]) for name, one in net.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    assert net.training
    assert all(p.grad is None for p in net.parameters())


def test_the_last_layer_in_closed_form_equals_autograd() -> None:
    net, (inputs, targets) = network(), data()
    whole = example_gradients(net, inputs, targets)
    size = sum(p.numel() for p in net[5].parameters())
    torch.testing.assert_close(example_gradients(net, inputs, targets, layer=net[5]), whole[:, -size:])


def test_gradients_in_the_input_equal_a_loop() -> None:
    net, (inputs, targets) = network().eval(), data(3)
    for one, kind, found in zip(inputs, targets, input_gradients(net, inputs, targets), strict=True):
        given = one[None].clone().requires_grad_()
        (expected,) = torch.autograd.grad(net(given)[0, kind], given)
        torch.testing.assert_close(found, expected[0])


def test_a_checkpoint_is_looked_at_instead_of_the_model() -> None:
    net, other, (inputs, targets) = network(), network(), data()
    for parameter in other.parameters():
        parameter.data.mul_(1.3)
    torch.testing.assert_close(grand(net, inputs, targets, other.state_dict()), grand(other, inputs, targets))
    with pytest.raises(ValueError, match=r"the checkpoint lacks 0\.bias and"):
        grand(net, inputs, targets, {"0.weight": net[0].weight})


def test_influence_is_the_first_order_change_of_a_step() -> None:
    net, (inputs, targets) = network().eval(), data(2)
    rate = 1e-5
    (found,) = tracin(net, (inputs[:1], targets[:1]), (inputs[1:], targets[1:]), rates=[rate]).flatten().tolist()
    before = F.cross_entropy(net(inputs[1:]), targets[1:]).item()
    gradient = torch.autograd.grad(F.cross_entropy(net(inputs[:1]), targets[:1]), list(net.parameters()))
    with torch.no_grad():
        for parameter, part in zip(net.parameters(), gradient, strict=True):
            parameter -= rate * part
    after = F.cross_entropy(net(inputs[1:]), targets[1:]).item()
    assert before - after == pytest.approx(found, rel=1e-2)


def seen(rows: list[list[bool]]) -> ExampleScores:
    """Four examples, right or wrong in each epoch."""
    scores = ExampleScores(len(rows[0]))
    for row in rows:
        right = torch.tensor(row)
        logits = torch.stack([right.double(), 1 - right.double()], 1)
        scores.see(torch.arange(len(row)), logits, torch.zeros(len(row), dtype=torch.long))
        scores.end_epoch()
    return scores


def test_forgetting_counts_falls_from_right_to_wrong_and_never_learned_is_infinite() -> None:
    epochs = [
        [True, False, False, True],
        [False, True, False, True],
        [True, False, False, True],
        [False, False, False, True],
    ]
    assert seen(epochs).values("forgetting").tolist() == [2, 1, math.inf, 0]


def test_el2n_along_a_run_is_the_mean_over_the_visits() -> None:
    scores, targets = ExampleScores(3), torch.tensor([0, 1])
    batches = [wave(2, 4, seed=seed) for seed in range(3)]
    for logits in batches:
        scores.see(torch.tensor([2, 0]), logits, targets)
    scores.end_epoch()
    expected = torch.stack([el2n(logits, targets) for logits in batches]).mean(0)
    found = scores.values("el2n")
    torch.testing.assert_close(found[[2, 0]], expected)
    assert math.isnan(found[1])
    table = scores.table()
    assert table.column_names == ["id", "target", "visits", "el2n", "forgetting"]
    assert table["target"].to_pylist() == [1, None, 0]
    assert table["el2n"].to_pylist()[1] is None


def test_a_look_gives_means_over_checkpoints_and_self_influence() -> None:
    net, (inputs, targets) = network(), data()
    states = []
    for factor in (1.0, 1.1, 0.9):
        states.append(
            {name: one * factor if one.is_floating_point() else one for name, one in net.state_dict().items()}
        )
    scores = ExampleScores(10)
    ids = torch.arange(9, 2, -1)
    batches = [(ids[:4], inputs[:4], targets[:4]), (ids[4:], inputs[4:], targets[4:])]
    scores.look(net, batches, ("el2n", "grand", "vog", "tracin"), states, rates=[0.3, 0.2, 0.1])
    nets = [copy.deepcopy(net).eval() for _ in states]
    for one, state in zip(nets, states, strict=True):
        one.load_state_dict(state)
    sizes = [loop(one, inputs, targets).norm(dim=1) for one in nets]
    expected = {
        "el2n": torch.stack([el2n(one(inputs), targets) for one in nets]).mean(0),
        "grand": torch.stack(sizes).mean(0),
        "tracin": sum(rate * size.square() for rate, size in zip((0.3, 0.2, 0.1), sizes, strict=True)),
        "vog_raw": gradient_variance(torch.stack([input_gradients(one, inputs, targets) for one in nets])),
    }
    expected["vog"] = within_class(expected["vog_raw"], targets)
    for name, wanted in expected.items():
        torch.testing.assert_close(scores.values(name)[ids], wanted)
        assert bool(scores.values(name)[:3].isnan().all())


def test_saved_and_loaded_scores_go_on() -> None:
    rows = [[True, False, True, False], [False, True, True, False], [True, True, False, False]]
    whole, begun, resumed = seen(rows), seen(rows[:2]), ExampleScores(4)
    resumed.load_state_dict(begun.state_dict())
    right = torch.tensor(rows[2])
    resumed.see(torch.arange(4), torch.stack([right.double(), 1 - right.double()], 1), torch.zeros(4, dtype=torch.long))
    resumed.end_epoch()
    assert resumed.table().equals(whole.table())
    with pytest.raises(ValueError, match="the state is of 4 examples, these scores of 5"):
        ExampleScores(5).load_state_dict(begun.state_dict())


def on_rank(rank: int, world: int) -> Tensor:
    scores, targets = ExampleScores(4), torch.zeros(2, dtype=torch.long)
    for epoch in range(2):  # the examples change places between the ranks, right in the first epoch alone
        ids = torch.tensor([0, 1]) if (rank + epoch) % 2 == 0 else torch.tensor([2, 3])
        scores.see(ids, torch.tensor([[1.0, 0.0]] * 2 if epoch == 0 else [[0.0, 1.0]] * 2), targets)
        scores.end_epoch()
    return torch.stack([scores.values("forgetting"), scores.values("el2n")])


def test_ranks_put_their_visits_together() -> None:
    first, second = on_two_ranks(on_rank)
    assert torch.equal(first, second)
    assert first[0].tolist() == [1, 1, 1, 1]


def test_wrong_labels_are_the_hardest_of_digits() -> None:
    """A tenth of the labels wrong: EL2N along a short run finds them."""
    digits = datasets.load("digits")
    count = 600
    images = digits.train.images[:count].flatten(1).float() / 16
    targets = digits.train.targets[:count].clone()
    wrong = torch.rand(count, generator=torch.Generator().manual_seed(0)) < 0.1
    targets[wrong] = (targets[wrong] + 1) % 10
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer, scores = torch.optim.Adam(net.parameters(), lr=3e-3), ExampleScores(count)
    for epoch in range(6):
        for ids in torch.randperm(count, generator=torch.Generator().manual_seed(epoch)).split(50):
            outputs = net(images[ids])
            scores.see(ids, outputs, targets[ids])
            optimizer.zero_grad()
            F.cross_entropy(outputs, targets[ids]).backward()
            optimizer.step()
        scores.end_epoch()
    values = scores.values("el2n")
    pairs = values[wrong].unsqueeze(1) > values[~wrong].unsqueeze(0)
    assert float(pairs.double().mean()) > 0.9  # area under the curve
    kept = datasets.keep(scores.values("el2n"), 0.9, "easy", by_class=targets)
    assert float(wrong[kept].double().mean()) < 0.04


ONE, TWO, KINDS = torch.tensor([0]), torch.tensor([0, 1]), torch.tensor([0, 1])
NET, ROW = nn.Linear(1, 2), (ONE, torch.ones(1, 1), ONE)
BAD: list[tuple[Any, type[Exception], str]] = [
    (lambda s: s.see(torch.tensor([0, 0]), torch.zeros(2, 3), KINDS), ValueError, "example 0 stands twice in one batch"),
    (lambda s: s.see(torch.tensor([0, 9]), torch.zeros(2, 3), KINDS), ValueError, r"ids must lie in 0\.\.3, found 0\.\.9"),
    (lambda s: s.see(ONE, torch.zeros(2, 3), KINDS), ValueError, "one id for each of 2 examples"),
    (lambda s: s.see(TWO.float(), torch.zeros(2, 3), KINDS), TypeError, "ids must be whole numbers"),
    (lambda s: s.see(TWO, torch.zeros(2, 3), torch.zeros(2)), TypeError, "targets must be classes"),
    (lambda s: s.see(TWO, torch.zeros(2, 3, 4), KINDS), ValueError, r"logits \(examples, classes\)"),
    (lambda s: s.values("el2n"), ValueError, "there is no score 'el2n', there are none yet"),
    (lambda s: s.look(NET, [], "vog"), ValueError, "vog is a variance over checkpoints, two or more, got 0"),
    (lambda s: s.look(NET, [], "tracin"), ValueError, "tracin needs the learning rate at each of 1 checkpoints"),
    (lambda s: s.look(NET, [], "loss"), ValueError, "scores must be some of"),
    (lambda s: [s.look(NET, [ROW]) for _ in range(2)], ValueError, "example 0 has its el2n of an earlier look; again=True"),
    (lambda s: s.look(NET, [ROW, ROW]), ValueError, "example 0 comes twice"),
    (lambda s: s.look(NET, [ROW], checkpoints=[{"weight": torch.zeros(2, 1)}]), ValueError, "the checkpoint lacks bias"),
    (lambda s: input_gradients(NET, torch.ones(1, 1).long(), ONE), TypeError, "give embeddings of tokens"),
    (lambda s: gradient_variance(torch.zeros(1, 3)), ValueError, "a variance needs two checkpoints or more"),
    (lambda s: influence([torch.ones(1, 1)], [torch.ones(1, 1)], []), ValueError, "influence needs gradients and a rate"),
    (lambda s: example_gradients(NET, torch.ones(1, 1), ONE, layer=nn.Linear(1, 2)), ValueError, "layer must be the Linear"),
]  # fmt: skip


@pytest.mark.parametrize(("act", "kind", "words"), BAD)
def test_bad_input_is_one_error(act: Any, kind: type[Exception], words: str) -> None:
    with pytest.raises(kind, match=words):
        act(ExampleScores(4))


def test_a_set_may_be_looked_at_in_parts_and_again_on_demand() -> None:
    torch.manual_seed(0)
    net, inputs, targets = nn.Linear(3, 2), torch.randn(6, 3), torch.tensor([0, 1, 0, 1, 1, 0])
    ids, wanted = torch.arange(6), ("el2n", "vog")
    states = [{name: value * scale for name, value in net.state_dict().items()} for scale in (1, 2)]
    whole, parts = ExampleScores(6), ExampleScores(6)
    whole.look(net, [(ids, inputs, targets)], wanted, states)
    for some in (ids[:3], ids[3:]):
        parts.look(net, [(some, inputs[some], targets[some])], wanted, states)
    for name in ("el2n", "vog", "vog_raw"):
        torch.testing.assert_close(parts.values(name), whole.values(name))
    parts.look(net, [(ids[:2], inputs[:2], targets[:2])], "el2n", [states[1]], again=True)
    one = el2n(2 * net(inputs), targets).double()
    torch.testing.assert_close(parts.values("el2n")[:2], one[:2].detach())
    torch.testing.assert_close(parts.values("el2n")[2:], whole.values("el2n")[2:])


def test_a_random_projection_keeps_influence_on_average_and_is_one_for_all_examples() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 20), nn.Tanh(), nn.Linear(20, 3))
    train = torch.randn(40, 6), torch.randint(3, (40,))
    exact = tracin(net, train, train, rates=[0.5])
    drawn = torch.stack([tracin(net, train, train, rates=[0.5], projection=64, seed=seed) for seed in range(60)])
    size = exact.diagonal().sqrt()
    bound = (2 / 64) ** 0.5 * size[:, None] * size
    assert float(((drawn.mean(0) - exact) / bound * 60**0.5).abs().max()) < 5  # deviations of the mean
    assert 0.3 < float(((drawn - exact) / bound).square().mean()) <= 1.05
    part = tracin(net, (train[0][35:], train[1][35:]), train, rates=[0.5], projection=64, seed=7)
    torch.testing.assert_close(part, drawn[7][35:])
    with pytest.raises(ValueError, match="size must be a whole number of 1 or more, got 0"):
        tracin(net, train, train, rates=[0.5], projection=0)


def test_an_epoch_in_part_is_not_read() -> None:
    scores = ExampleScores(2)
    scores.see(torch.tensor([0]), torch.zeros(1, 2), torch.tensor([0]))
    for act in (lambda: scores.values("el2n"), scores.state_dict):
        with pytest.raises(ValueError, match="call end_epoch before"):
            act()
