"""FrozenCodes, QuantizedZeroOrder, SubspaceHistory."""

from __future__ import annotations

import copy
import io

import numpy as np
import pytest
import torch
from torch import nn

import trimtab
from tests import reference
from trimtab.precision import (
    Block,
    FrozenCodes,
    PerChannel,
    QuantizedZeroOrder,
    SubspaceHistory,
    freeze_codes,
    quantize,
)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("group", [None, 8, 5])
@pytest.mark.parametrize("name", ["int2", "int4", "int8"])
def test_codes_are_those_of_quantize(name, group):
    torch.manual_seed(0)
    linear = nn.Linear(24, 7)
    layer = FrozenCodes(linear, name, group)
    expected = quantize(linear.weight, name, scaling=PerChannel() if group is None else Block(group))
    assert torch.equal(layer.weight.detach(), expected)
    assert layer.codes.dtype == torch.int8
    assert int(layer.codes.abs().max()) == 2 ** (int(name[3:]) - 1) - 1
    x = torch.randn(3, 24)
    torch.testing.assert_close(layer(x), nn.functional.linear(x, expected, linear.bias))
    layer(x).square().sum().backward()
    assert layer.scales.grad is not None
    small, full = layer.bytes
    assert small == layer.codes.numel() + 4 * layer.scales.numel() + 28
    assert full == 24 * 7 * 4 + 28


def test_layers_of_a_network_are_replaced_or_named():
    net = nn.ModuleDict(
        {"table": nn.Embedding(4, 6), "up": nn.Linear(6, 6), "tied": nn.Linear(6, 4), "head": nn.Linear(6, 4)}
    )
    net["tied"].weight = net["table"].weight
    left = dict(freeze_codes(net, "int4", exclude=("he*",)))
    assert isinstance(net["up"], FrozenCodes)
    assert set(left) == {"table", "tied", "head"}
    assert "shared with another module" in left["tied"]
    assert "pattern 'he*'" in left["head"]


def test_a_layer_at_two_places_is_replaced_at_both():
    layer = nn.Linear(4, 4)
    net = nn.Sequential(layer, nn.ReLU(), nn.Sequential(layer))
    assert freeze_codes(net) == []
    assert isinstance(net[0], FrozenCodes)
    assert net[2][0] is net[0]


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: FrozenCodes(nn.Conv2d(1, 1, 1)), TypeError, "of torch.nn.Linear, got Conv2d"),
        (lambda: FrozenCodes(nn.Linear(2, 2), "e2m1"), ValueError, "int2 to int8, got format 'e2m1'"),
        (lambda: FrozenCodes(nn.Linear(2, 2), "int9"), ValueError, "got format 'int9'"),
        (lambda: FrozenCodes(nn.Linear(2, 2), group=0), ValueError, "group must be a whole number of 1 or more, got 0"),
        (lambda: freeze_codes(nn.Sequential(nn.ReLU())), ValueError, "has no linear layer to put in codes"),
        (lambda: QuantizedZeroOrder(nn.Linear(2, 2)), ValueError, "Linear has no FrozenCodes"),
        (lambda: QuantizedZeroOrder([torch.ones(2)], eps=0), ValueError, "eps must be"),
        (
            lambda: QuantizedZeroOrder([torch.ones(2)], samples=0),
            ValueError,
            "samples must be a whole number of 1 or more",
        ),
        (lambda: QuantizedZeroOrder([torch.ones(2)], unquantized="mezo"), ValueError, "give the model"),
        (lambda: QuantizedZeroOrder([]), ValueError, "has nothing to move"),
        (lambda: QuantizedZeroOrder(nn.ReLU(), unquantized="mezo"), ValueError, "has nothing to move"),
        (lambda: QuantizedZeroOrder([torch.ones(2)]).step(), TypeError, "needs a closure"),
        (lambda: SubspaceHistory(1), ValueError, "every must be a whole number of 2 or more, got 1"),
        (lambda: SubspaceHistory(keep=0), ValueError, r"keep must lie in \(0, 1\], got 0"),
        (
            lambda: SubspaceHistory(dim_limit=9).remember("w", torch.ones(10)),
            ValueError,
            "w has 10 entries.*dim_limit=9",
        ),
    ],
)
def test_bad_input(make, error, message):
    with pytest.raises(error, match=message):
        make()


class Quadratic:
    """0.5 |D (*) C - T|^2 in float64, with its gradient to D."""

    def __init__(self) -> None:
        self.codes = torch.randint(-3, 4, (3, 4), generator=seeded(1)).double()
        self.target = torch.randn(3, 4, generator=seeded(2), dtype=torch.float64)
        self.scales = nn.Parameter(torch.rand(3, 1, generator=seeded(3), dtype=torch.float64) + 0.5)

    def __call__(self) -> torch.Tensor:
        return 0.5 * (self.scales * self.codes - self.target).square().sum()

    def gradient(self) -> torch.Tensor:
        scales = self.scales.detach()
        return ((scales * self.codes - self.target) * self.codes).sum(1, keepdim=True)


def test_the_derivative_is_exact_on_a_quadratic_and_the_step_is_the_formula():
    loss = Quadratic()
    for clip, floor in ((100.0, 1e-7), (0.5, 1e-7), (100.0, 0.9)):
        before, gradient = loss.scales.detach().clone(), loss.gradient()
        optimizer = QuantizedZeroOrder([loss.scales], lr=1e-3, clip=clip, floor=floor)
        z = optimizer._direction(0, 0, loss.scales)
        optimizer.step(loss)
        d = float((z * gradient).sum())
        assert optimizer.derivative == pytest.approx(max(-clip, min(clip, d)), rel=1e-8)
        expected = reference.zeroth_order(before.numpy(), z.numpy(), d, 1e-3, clip, floor)
        np.testing.assert_allclose(loss.scales.detach().numpy(), expected, rtol=1e-10)


def wave(count: int, seed: int) -> np.ndarray:
    k = np.arange(count)
    return np.sin(1.3 * k + 0.7 * seed) + 0.5 * np.cos(0.37 * k * k + seed)


def test_the_vectors_of_the_sheet():
    """d and the step for a given z; an estimate within the directions of a history."""
    scales = nn.Parameter(torch.from_numpy(np.abs(wave(3, 1)).reshape(3, 1) + 0.5))
    codes, target = (
        torch.from_numpy(np.round(3 * wave(12, 2)).reshape(3, 4)),
        torch.from_numpy(wave(12, 5).reshape(3, 4)),
    )
    optimizer = QuantizedZeroOrder([scales], lr=1e-3)
    optimizer._direction_at = lambda *_: torch.from_numpy(wave(3, 3).reshape(3, 1).copy())  # type: ignore[method-assign]
    optimizer.step(lambda: 0.5 * (scales * codes - target).square().sum())
    assert optimizer.derivative == pytest.approx(-29.94948981, rel=1e-8)
    np.testing.assert_allclose(scales.detach().view(-1), [1.425396635, 1.486783137, 1.018857149], rtol=1e-9)
    history = SubspaceHistory(20, keep=0.9, standardise=True)
    for row in wave(80, 3).reshape(20, 4):
        history.remember("w", torch.from_numpy(row))
    found = history.project("w", torch.from_numpy(wave(4, 4)))
    np.testing.assert_allclose(found, [-0.003776391258, -0.9987100284, -0.4264667286, 0.6345584964], rtol=1e-9)
    assert history.rank("w") == 3


def test_the_estimate_is_unbiased():
    loss = Quadratic()
    gradient, before = loss.gradient(), loss.scales.detach().clone()
    optimizer = QuantizedZeroOrder([loss.scales], lr=0.0, clip=1e9)
    draws = []
    for _ in range(4000):
        z = optimizer._direction(0, 0, loss.scales)
        optimizer.step(loss)
        draws.append(optimizer.derivative * z)
    assert torch.equal(loss.scales.detach(), before)  # put back bit for bit
    found = torch.stack(draws)
    error = found.std(0) / len(draws) ** 0.5
    assert bool(((found.mean(0) - gradient).abs() < 4 * error).all())


def test_samples_are_averaged_and_relative_steps_multiply():
    loss, other = Quadratic(), Quadratic()
    optimizer = QuantizedZeroOrder([loss.scales], lr=1e-3, samples=3)
    directions = [optimizer._direction(0, k, loss.scales) for k in range(3)]
    before, gradient = loss.scales.detach().clone(), loss.gradient()
    optimizer.step(loss)
    expected = before - 1e-3 * sum(float((z * gradient).sum()) * z for z in directions) / 3
    torch.testing.assert_close(loss.scales.detach(), expected, rtol=1e-8, atol=0)
    relative = QuantizedZeroOrder([other.scales], lr=1e-3, relative=True)
    z = relative._direction(0, 0, other.scales)
    relative.step(other)
    d = float((z * before * gradient).sum())
    torch.testing.assert_close(other.scales.detach(), before * (1 - 1e-3 * d * z), rtol=1e-7, atol=0)


class Noisy(nn.Module):
    """Dropout and BatchNorm between layers in codes."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.layers = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 2))
        freeze_codes(self.layers, "int4")

    def loss(self) -> torch.Tensor:
        return self.layers(torch.randn(16, 6, generator=seeded(5))).square().sum()


def test_both_passes_draw_alike_and_leave_the_network_as_it_was():
    net = Noisy().train()
    optimizer = QuantizedZeroOrder(net, lr=1e-3)
    statistics = net.layers[1].running_mean.clone()
    others = {name: value.clone() for name, value in net.named_parameters() if "scales" not in name}
    modes = []
    optimizer.step(lambda: (modes.append(net.layers[2].training), net.loss())[1])
    assert modes == [False, False]
    assert net.training
    assert net.layers[2].training
    assert torch.equal(net.layers[1].running_mean, statistics)
    assert all(torch.equal(value, others[name]) for name, value in net.named_parameters() if name in others)
    drawn: list[float] = []
    QuantizedZeroOrder([net.layers[0].scales]).step(lambda: (drawn.append(float(torch.rand(()))), net.loss())[1])
    assert drawn[0] == drawn[1] != float(torch.rand(()))
    mezo = QuantizedZeroOrder(Noisy(), unquantized="mezo")
    assert len(mezo.param_groups[1]["params"]) == 4  # BatchNorm's two, two biases


def test_a_loss_that_is_no_number_is_skipped_and_ten_are_an_error():
    loss = Quadratic()
    optimizer, before = QuantizedZeroOrder([loss.scales], lr=1.0), loss.scales.detach().clone()
    for _ in range(9):
        optimizer.step(lambda: float("nan"))
    assert optimizer.skipped == 9
    assert torch.equal(loss.scales.detach(), before)
    optimizer.step(loss)
    for _ in range(9):
        optimizer.step(lambda: float("inf"))
    with pytest.raises(FloatingPointError, match="10 losses in a row were no numbers, the last at step 20"):
        optimizer.step(lambda: float("nan"))

    def fails() -> float:
        raise RuntimeError("out of memory")

    after = loss.scales.detach().clone()
    with pytest.raises(RuntimeError, match="out of memory"):
        optimizer.step(fails)
    assert torch.equal(loss.scales.detach(), after)


def test_it_resumes_bit_for_bit():
    net = Noisy()
    optimizer = QuantizedZeroOrder(net, lr=1e-3, samples=2, subspace=SubspaceHistory(3))
    for _ in range(5):
        optimizer.step(net.loss)
    file = io.BytesIO()
    torch.save({"net": net.state_dict(), "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    other = Noisy()
    other.load_state_dict(saved["net"])
    second = QuantizedZeroOrder(other, lr=1.0, samples=2, subspace=SubspaceHistory(3))
    second.load_state_dict(saved["optimizer"])
    for _ in range(5):
        optimizer.step(net.loss)
        second.step(other.loss)
    for one, two in zip(net.parameters(), other.parameters(), strict=True):
        assert torch.equal(one, two)
    with pytest.raises(ValueError, match="has a subspace, this one none"):
        QuantizedZeroOrder(other, samples=2).load_state_dict(saved["optimizer"])
    with pytest.raises(ValueError, match="has no subspace, this one has"):
        optimizer.load_state_dict(QuantizedZeroOrder(other, samples=2).state_dict())


@pytest.mark.parametrize(("name", "value"), [("seed", 1), ("samples", 2), ("relative", True), ("unquantized", "mezo")])
def test_a_state_of_other_settings_is_refused_and_changes_nothing(name, value):
    net = Noisy()
    optimizer = QuantizedZeroOrder(net, lr=1e-3)
    optimizer.step(net.loss)
    other = QuantizedZeroOrder(net, lr=0.5, **{name: value})
    with pytest.raises(ValueError, match=f"the settings .*'{name}': "):
        other.load_state_dict(optimizer.state_dict())
    assert (other.taken, other.param_groups[0]["lr"]) == (0, 0.5)


def test_a_state_of_another_subspace_changes_nothing():
    net = Noisy()
    optimizer = QuantizedZeroOrder(net, lr=1e-3, subspace=SubspaceHistory(3))
    optimizer.step(net.loss)
    other = QuantizedZeroOrder(net, lr=0.5, subspace=SubspaceHistory(4))
    with pytest.raises(ValueError, match="saved settings"):
        other.load_state_dict(optimizer.state_dict())
    assert (other.taken, other.param_groups[0]["lr"]) == (0, 0.5)


def test_groups_added_later_move_too():
    first, scale, weight = torch.ones(3), torch.ones(2), -torch.ones(2)
    optimizer = QuantizedZeroOrder([first], lr=1e-2)
    optimizer.add_param_group({"params": [scale], "lr": 0.0})
    optimizer.add_param_group({"params": [weight], "quantized": False})
    loss = lambda: (first.sum() + scale.sum() + weight.sum()).item()  # noqa: E731
    optimizer.step(loss)
    assert not torch.equal(first, torch.ones(3))
    assert torch.equal(scale, torch.ones(2))
    assert bool((weight < 0).all())  # not a scale: no floor
    assert not torch.equal(weight, -torch.ones(2))
    with pytest.raises(TypeError, match=r"moves real numbers, scale 3 is torch\.int64"):
        optimizer.add_param_group({"params": [torch.ones(2, dtype=torch.int64)]})
    assert len(optimizer.param_groups) == 3
    optimizer.step(loss)


def test_a_tensor_too_large_for_its_history_is_refused_at_once():
    small, large = torch.ones(3), torch.ones(5)
    with pytest.raises(ValueError, match=r"scale 1 has 5 entries.*dim_limit=4"):
        QuantizedZeroOrder([small, large], subspace=SubspaceHistory(3, dim_limit=4))
    net = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with pytest.raises(ValueError, match=r"weight has 4 entries.*dim_limit=3"):
        trimtab.attach(optimizer, SubspaceHistory(3, dim_limit=3), model=net)
    optimizer.step()  # no hook stays
    odd = nn.ParameterDict({"w": nn.Parameter(torch.ones(2, dtype=torch.complex64))})
    with pytest.raises(TypeError, match=r"w is torch\.complex64"):
        trimtab.attach(torch.optim.SGD(odd.parameters(), lr=0.1), SubspaceHistory(), model=odd)


def test_iterates_that_are_no_numbers_do_not_count():
    history, clean = SubspaceHistory(4, keep=1.0), SubspaceHistory(3, keep=1.0)
    iterates = torch.randn(3, 5, generator=seeded(1))
    for row in (*iterates[:2], torch.full((5,), torch.inf), iterates[2]):
        history.remember("w", row)
    for row in iterates:
        clean.remember("w", row)
    gradient = torch.randn(5, generator=seeded(2))
    assert torch.equal(history.project("w", gradient), clean.project("w", gradient))
    for _ in range(4):
        history.remember("w", torch.full((5,), torch.nan))
    assert history.rank("w") == 2
    assert history.state_dict()["history"] == {}


def test_two_processes_are_one():
    from tests.distributed import on_two_ranks

    found = on_two_ranks(_train_on_rank)
    net = Noisy()
    optimizer = QuantizedZeroOrder(net, lr=1e-3)
    x = torch.randn(16, 6, generator=seeded(5))
    for _ in range(4):
        optimizer.step(lambda: net.layers(x).square().mean())
    for rank in found:
        for one, two in zip(rank, net.parameters(), strict=True):
            torch.testing.assert_close(one, two.detach(), rtol=1e-4, atol=1e-7)
    assert all(torch.equal(one, two) for one, two in zip(*found, strict=True))


def _train_on_rank(rank: int, world: int) -> list[torch.Tensor]:
    net = Noisy()
    optimizer = QuantizedZeroOrder(net, lr=1e-3)
    x = torch.randn(16, 6, generator=seeded(5))[rank::world]
    for _ in range(4):
        optimizer.step(lambda: net.layers(x).square().mean())
    return [parameter.detach().clone() for parameter in net.parameters()]


def test_the_subspace_is_that_of_the_iterates():
    rng = np.random.default_rng(0)
    iterates, gradient = rng.normal(size=(20, 6)) * [3, 2, 1, 0.1, 0.01, 0.0], rng.normal(size=6)
    for standardise in (False, True):
        history = SubspaceHistory(20, keep=0.9, standardise=standardise)
        for row in iterates:
            assert torch.equal(history.project("w", torch.from_numpy(gradient)), torch.from_numpy(gradient))
            history.remember("w", torch.from_numpy(row))
        expected = reference.subspace(iterates, gradient, 0.9, standardise=standardise)
        found = history.project("w", torch.from_numpy(gradient))
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(history.project("w", found), found)
    assert history.rank("w") == 4
    line = SubspaceHistory(3)
    for step in range(3):
        line.remember("w", step * torch.tensor([1.0, 2.0, 2.0]))
    assert line.project("w", torch.tensor([9.0, 0.0, 0.0])).tolist() == pytest.approx([1.0, 2.0, 2.0])


def test_what_stood_still_is_not_kept_from_moving():
    history = SubspaceHistory(2)
    for _ in range(2):  # as while a learning rate is 0
        history.remember("w", torch.ones(2))
    gradient = torch.tensor([3.0, 4.0])
    assert torch.equal(history.project("w", gradient), gradient)
    for place in (0.0, 1.0, 1.0, 1.0):
        history.remember("w", torch.tensor([place, 0.0]))
    assert history.project("w", gradient).tolist() == [3.0, 0.0]


def test_the_lever_projects_and_resumes():
    net = nn.Linear(5, 3)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    lever = SubspaceHistory(4)
    with trimtab.attach(optimizer, lever, model=net):
        for step in range(9):
            for parameter in net.parameters():
                parameter.grad = torch.randn(parameter.shape, generator=seeded(step))
            optimizer.step()
        other = SubspaceHistory(4)
        other.load_state_dict(copy.deepcopy(lever.state_dict()))
        gradient = torch.randn(3, 5, generator=seeded(99))
        assert torch.equal(other.project("weight", gradient), lever.project("weight", gradient))
        assert not torch.equal(lever.project("weight", gradient), gradient)
    with pytest.raises(ValueError, match="are not those of"):
        SubspaceHistory(5).load_state_dict(lever.state_dict())
