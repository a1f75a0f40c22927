"""Combine: a network's gradients equal the matrix rule's; heads, micro-batches, scaler, features, ranks, memory, bad input."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from tests.distributed import on_two_ranks
from trimtab.multitask import CAGrad, Combine, EqualNorm, GCond, GradientDropout, PCGrad, SimilarityMomentum
from trimtab.multitask.base import Combiner, beside

ALL: list[Any] = [PCGrad, CAGrad, EqualNorm, GradientDropout, SimilarityMomentum, GCond]


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 6), nn.Tanh())
        self.heads = nn.ModuleList([nn.Linear(6, 1), nn.Linear(6, 1), nn.Linear(6, 1)])

    def forward(self, inputs: Tensor) -> list[Tensor]:
        features = self.trunk(inputs)
        return [head(features) for head in self.heads]


def net(dtype: torch.dtype = torch.float64) -> Net:
    torch.manual_seed(3)
    return Net().to(dtype)


def batch(count: int = 12, seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(count, 5, generator=generator, dtype=dtype),
        5 * torch.randn(3, count, 1, generator=generator, dtype=dtype),
    )


def losses(model: nn.Module, data: tuple[Tensor, Tensor]) -> list[Tensor]:
    inputs, targets = data
    return [(out - target).square().mean() for out, target in zip(model(inputs), targets, strict=True)]


def rows(model: Net, found: Sequence[Tensor]) -> Tensor:
    """The gradients of the trunk, one row a loss, by autograd alone."""
    trunk = list(model.trunk.parameters())
    each = [torch.autograd.grad(one, trunk, retain_graph=True) for one in found]
    return torch.stack([torch.cat([part.flatten() for part in parts]) for parts in each])


def trunk_gradient(model: Net) -> Tensor:
    return torch.cat([p.grad.flatten() for p in model.trunk.parameters() if p.grad is not None])


@pytest.mark.parametrize("kind", ALL)
def test_a_network_gets_what_the_rule_makes_of_the_matrix(kind: Any) -> None:
    model = net()
    combine, alone = Combine(model, kind()), kind()
    for seed in range(3):
        model.zero_grad()
        found = losses(model, batch(seed=seed))
        matrix = rows(model, found)
        heads = [torch.autograd.grad(found[k], list(model.heads[k].parameters()), retain_graph=True) for k in range(3)]
        if kind is GradientDropout:  # draws parameter by parameter
            sizes = [p.numel() for p in model.trunk.parameters()]
            parts = [[part.clone() for part in row.split(sizes)] for row in matrix]
            expected = torch.cat(alone.combine_(parts, matrix @ matrix.T))
        else:
            expected = alone(matrix)
        combine.backward(found)
        torch.testing.assert_close(trunk_gradient(model), expected)
        for head, wanted in zip(model.heads, heads, strict=True):
            for parameter, gradient in zip(head.parameters(), wanted, strict=True):
                torch.testing.assert_close(parameter.grad, gradient)
        torch.testing.assert_close(combine.products, matrix @ matrix.T)


@pytest.mark.parametrize("kind", ALL)
def test_micro_batches_give_what_one_batch_gives(kind: Any) -> None:
    data = batch(12)
    whole, parts = net(), net()
    Combine(whole, kind()).backward(losses(whole, data))
    combine = Combine(parts, kind())
    for part in range(3):
        piece = data[0][4 * part : 4 * part + 4], data[1][:, 4 * part : 4 * part + 4]
        combine.backward([one / 3 for one in losses(parts, piece)], more=part < 2)
        assert part == 2 or all(p.grad is None for p in parts.parameters())
    torch.testing.assert_close(trunk_gradient(parts), trunk_gradient(whole))


def test_a_loss_may_be_absent_from_a_micro_batch() -> None:
    model = net()
    combine = Combine(model, PCGrad())
    first, second = batch(seed=1), batch(seed=2)
    matrix = rows(model, losses(model, first)) + rows(model, losses(model, second)) * torch.tensor([[1.0], [0], [1]])
    combine.backward(losses(model, first), more=True)
    one, _, three = losses(model, second)
    combine.backward([one, None, three])
    torch.testing.assert_close(trunk_gradient(model), PCGrad()(matrix))


def test_what_stood_in_grad_before_stays_in_the_sum() -> None:
    model = net()
    model(batch()[0])[0].sum().backward()
    before = trunk_gradient(model).clone()
    found = losses(model, batch())
    matrix = rows(model, found)
    Combine(model, EqualNorm()).backward(found)
    torch.testing.assert_close(trunk_gradient(model), before + EqualNorm()(matrix))


def test_only_what_is_called_shared_is_joined() -> None:
    model = net()
    found = losses(model, batch())
    matrix = rows(model, found)
    first = sum(p.numel() for p in model.trunk[0].parameters())
    Combine(model, EqualNorm(), shared=model.trunk[0]).backward(found)
    gradient = trunk_gradient(model)
    torch.testing.assert_close(gradient[:first], EqualNorm()(matrix[:, :first]))
    torch.testing.assert_close(gradient[first:], matrix[:, first:].sum(0))


@pytest.mark.parametrize("kind", ALL)
def test_under_a_scaler_the_unscaled_gradient_is_the_same_whatever_the_scale(kind: Any) -> None:
    plain, scaled = net(torch.float32), net(torch.float32)
    combines = Combine(plain, kind()), Combine(scaled, kind())
    optimizer = torch.optim.SGD(scaled.parameters(), lr=0.0)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=1, growth_factor=4.0)
    for seed in range(3):  # the scale is 1024, 4096, 16384
        data = batch(seed=seed, dtype=torch.float32)
        plain.zero_grad()
        optimizer.zero_grad()
        combines[0].backward(losses(plain, data))
        combines[1].backward(losses(scaled, data), scaler=scaler)
        scaler.unscale_(optimizer)
        torch.testing.assert_close(trunk_gradient(scaled), trunk_gradient(plain), rtol=1e-4, atol=1e-5)
        scaler.step(optimizer)
        scaler.update()
    assert scaler.get_scale() == 1024.0 * 64


@pytest.mark.parametrize("kind", ALL)
def test_an_overflow_is_left_to_the_scaler_and_teaches_nothing(kind: Any) -> None:
    model = net(torch.float32)
    combine = Combine(model, kind())
    combine.backward(losses(model, batch(dtype=torch.float32)))
    optimizer, scaler = torch.optim.SGD(model.parameters(), lr=0.1), torch.amp.GradScaler("cpu")
    before, weights = repr(combine.state_dict()), [p.detach().clone() for p in model.parameters()]
    optimizer.zero_grad()
    found = losses(model, batch(dtype=torch.float32))
    combine.backward([found[0] * 1e38, *found[1:]], scaler=scaler)
    scaler.step(optimizer)
    assert repr(combine.state_dict()) == before
    assert all(torch.equal(one, other) for one, other in zip(weights, model.parameters(), strict=True))


@pytest.mark.filterwarnings(
    "ignore:Full backward hook is firing when gradients:UserWarning"
)  # the features are leaves here
@pytest.mark.parametrize("kind", [PCGrad, CAGrad, EqualNorm])
def test_at_the_features_the_rule_acts_on_their_gradients_and_the_trunk_is_gone_through_once(kind: Any) -> None:
    model = net()
    data = batch()
    combine = Combine(model, kind())
    passes = []
    model.trunk[0].register_full_backward_hook(lambda *_: passes.append(1))
    raw = model.trunk(data[0])
    features = combine.features(raw)
    found = [(head(features) - target).square().mean() for head, target in zip(model.heads, data[1], strict=True)]
    each = torch.stack([torch.autograd.grad(one, features, retain_graph=True)[0].flatten() for one in found])
    joined = kind()(each).view_as(raw)
    expected = torch.autograd.grad(raw, list(model.trunk.parameters()), joined, retain_graph=True)
    passes.clear()
    combine.backward(found)
    assert len(passes) == 1
    torch.testing.assert_close(trunk_gradient(model), torch.cat([part.flatten() for part in expected]))
    assert all(p.grad is not None for p in model.heads.parameters())


def test_a_step_with_everything_trains_both_losses_down() -> None:
    model = net()
    combine, optimizer = Combine(model, PCGrad()), torch.optim.Adam(model.parameters(), lr=0.02)
    first = [one.item() for one in losses(model, batch())]
    for _ in range(60):
        optimizer.zero_grad()
        combine.backward(losses(model, batch()))
        optimizer.step()
    assert all(float(one) < 0.8 * begun for one, begun in zip(losses(model, batch()), first, strict=True))


def test_cosines_are_those_of_the_gradients() -> None:
    model = net()
    found = losses(model, batch())
    matrix = nn.functional.normalize(rows(model, found))
    combine = Combine(model, PCGrad())
    assert combine.cosines() is None
    combine.backward(found)
    torch.testing.assert_close(combine.cosines(), matrix @ matrix.T)


def on_rank(rank: int, world: int, wrapped: bool) -> Tensor:
    model = net()
    outer = DistributedDataParallel(model) if wrapped else model
    combine = Combine(outer, GCond())
    inputs, targets = batch(12)
    part = inputs[6 * rank : 6 * rank + 6], targets[:, 6 * rank : 6 * rank + 6]
    if wrapped:
        with outer.no_sync():
            combine.backward(losses(outer, part))
        with pytest.raises(ValueError, match=r"inside `with model.no_sync\(\):`"):
            combine.backward(losses(outer, part))
    else:
        combine.backward(losses(outer, part))
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize("wrapped", [False, True])
def test_two_ranks_give_what_one_process_with_both_halves_gives(wrapped: bool) -> None:
    model = net()
    Combine(model, GCond()).backward(losses(model, batch(12)))
    expected = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    for found in on_two_ranks(on_rank, wrapped):
        torch.testing.assert_close(found, expected)


def peak(act: Callable[[], None]) -> int:
    """Most bytes that were allocated inside and alive at one time."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        act()
    assert profiler.profiler is not None
    events = [one for one in profiler.profiler.kineto_results.events() if one.name() == "[memory]"]
    return max(itertools.accumulate(one.nbytes() for one in sorted(events, key=lambda one: one.start_ns())))


@pytest.mark.parametrize("kind", [PCGrad, CAGrad, EqualNorm])
def test_a_step_holds_the_gradients_and_less_than_a_tenth_more_beside_one_layers(kind: Any) -> None:
    model = nn.Sequential(*(nn.Linear(150, 150, bias=False) for _ in range(30)))
    outputs = model(torch.randn(1, 150))
    found = [outputs[:, at].sum() for at in range(3)]
    combine = Combine(model, kind())
    size = sum(p.numel() * 4 for p in model.parameters())
    assert 3 * size <= peak(lambda: combine.backward(found)) <= 3.3 * size


BAD: list[tuple[Any, str]] = [
    (lambda m, c: c.backward(losses(m, batch())[:1]), "losses must be a list of two or more"),
    (lambda m, c: c.backward(sum(losses(m, batch()))), "losses must be a list of two or more"),
    (lambda m, c: c.backward([losses(m, batch())[0], torch.tensor(1.0)]), "loss 1 depends on no trained parameter"),
    (lambda m, c: c.backward([*losses(m, batch())[:2], m(batch()[0])[2]]), "loss 2 must be a single number"),
    (lambda m, c: c.backward([losses(m, batch())[0], None]), "loss 1 has no gradient in this step: it was None in every"),
    (lambda m, c: c.backward([*losses(m, batch())[:2], m.heads[2].weight.sum()]), "loss 2 reaches nothing shared"),
    (lambda m, c: c.backward([m.heads[0].weight.sum(), m.heads[1].weight.sum()]), "no parameter is reached by two losses"),
    (lambda m, c: c.features(torch.zeros(2)), "features must come from trained parameters"),
    (lambda m, c: Combine(m, GCond()).features(m.trunk(batch()[0])), "GCond remembers gradients from step to step"),
    (lambda m, c: Combine(m, PCGrad(), shared=nn.Linear(2, 2)), "2 parameters that are not of the model Net"),
]  # fmt: skip


@pytest.mark.parametrize(("act", "words"), BAD)
def test_bad_input_is_one_error_and_leaves_nothing_behind(act: Any, words: str) -> None:
    model = net()
    combine = Combine(model, PCGrad())
    with pytest.raises(ValueError, match=words):
        act(model, combine)
    assert all(p.grad is None for p in model.parameters())
    combine.backward(losses(model, batch()))  # works on


def test_a_combiner_must_be_one() -> None:
    with pytest.raises(TypeError, match=r"combiner must be one of trimtab\.multitask"):
        Combine(net(), PCGrad)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="shared must be a module with parameters"):
        Combine(net(), PCGrad(), shared=nn.ReLU())


def test_micro_batches_of_unlike_form_are_refused() -> None:
    model = net()
    combine = Combine(model, PCGrad())
    combine.backward(losses(model, batch()), more=True)
    with pytest.raises(ValueError, match="the micro-batches before had 3 losses, this one 2"):
        combine.backward(losses(model, batch())[:2])
    combine.backward(losses(model, batch()), more=True)
    model.trunk[0].weight.requires_grad_(False)
    with pytest.raises(ValueError, match="other parameters are trained than in the micro-batch before"):
        combine.backward(losses(model, batch()))


@pytest.mark.parametrize("kind", [GCond, SimilarityMomentum])
def test_what_is_remembered_of_other_parameters_is_refused_and_unchanged(kind: Any) -> None:
    net = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2))
    combine = Combine(net, kind())

    def step() -> None:
        outputs = net(torch.ones(4, 3))
        combine.backward([outputs[:, 0].mean(), outputs[:, 1].square().mean()])

    step()
    before = repr(combine.state_dict())
    net[0].requires_grad_(False)
    with pytest.raises(ValueError, match="remembers gradients of 4 parameters, joined now are 2, of other shapes"):
        step()
    assert repr(combine.state_dict()) == before


def test_sparse_gradients_are_refused() -> None:
    table = nn.Embedding(4, 2, sparse=True)
    found = table(torch.tensor([1, 2]))
    with pytest.raises(ValueError, match="gradients must be real and dense to be joined"):
        Combine(table, PCGrad()).backward([found.sum(), found.square().sum()])


def test_repr_and_state_are_the_combiners() -> None:
    combine = Combine(net(), CAGrad(0.25))
    assert repr(combine) == "Combine(Net, CAGrad(c=0.25))"
    other = Combine(net(), CAGrad(0.25))
    other.load_state_dict(combine.state_dict())
    assert isinstance(other.combiner, Combiner)


def test_what_is_remembered_goes_where_the_gradients_are():
    """The meta device stands for another: a state that was saved elsewhere is joined with gradients of the network's device."""
    moved = beside([[torch.ones(2), torch.ones(3)]], [[torch.ones(2, device="meta"), torch.ones(3)]])
    assert [[part.device.type for part in parts] for parts in moved] == [["meta", "cpu"]]
