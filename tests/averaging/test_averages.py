"""EMA and MeanWeights against torch's AveragedModel, and what swapping them in leaves."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn, get_swa_avg_fn

import trimtab
from trimtab.averaging import EMA, MeanWeights, WeightAverage
from trimtab.penalties import Concentrate


def network() -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(36, 3))


class Loop:
    """A network in training with what is attached to it."""

    def __init__(self, *levers: Any, dtype: torch.dtype = torch.float32) -> None:
        self.net = network().to(dtype)
        self.optimizer = torch.optim.SGD(self.net.parameters(), lr=0.1, momentum=0.9)
        self.handle = trimtab.attach(self.optimizer, *levers, model=self.net)
        self.taken = 0

    def step(self) -> None:
        generator = torch.Generator().manual_seed(self.taken)
        self.taken += 1
        images = torch.randn(8, 2, 5, 5, generator=generator).to(next(self.net.parameters()).dtype)
        self.optimizer.zero_grad()
        self.net(images).square().mean().backward()
        self.optimizer.step()

    def run(self, steps: int) -> Loop:
        for _ in range(steps):
            self.step()
        return self


def values(net: nn.Module) -> list[Tensor]:
    return [one.detach().clone() for one in net.state_dict().values()]


def same(left: list[Tensor], right: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


@pytest.mark.parametrize("buffers", ["recalibrate", "average"])
@pytest.mark.parametrize(("make", "function"), [
    (lambda buffers: EMA(0.8, warmup=False, buffers=buffers), get_ema_avg_fn(0.8)),
    (lambda buffers: MeanWeights(start=0, buffers=buffers), get_swa_avg_fn()),
])  # fmt: skip
def test_the_average_is_torchs(make: Any, function: Any, buffers: str) -> None:
    loop = Loop(make(buffers))
    peer = AveragedModel(loop.net, avg_fn=function, use_buffers=buffers == "average")
    for _ in range(12):
        loop.step()
        peer.update_parameters(loop.net)
    assert loop.handle.finish() == (buffers == "recalibrate")
    for (name, found), expected in zip(loop.net.named_parameters(), peer.module.parameters(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7, msg=name)
    if buffers == "average":
        for name in ("1.running_mean", "1.running_var"):
            torch.testing.assert_close(loop.net.get_buffer(name), peer.module.get_buffer(name), rtol=1e-6, atol=1e-7)


def test_warm_up_follows_its_rule_until_the_decay_is_reached() -> None:
    loop, found = Loop(EMA(0.5)), None
    for n in range(15):
        loop.step()
        weight = loop.net[4].weight.detach().double()
        decay = min(0.5, (1 + n) / (10 + n))
        found = weight if found is None else decay * found + (1 - decay) * weight
    loop.handle.finish()
    torch.testing.assert_close(loop.net[4].weight.detach().double(), found, rtol=1e-5, atol=1e-7)


def test_the_mean_begins_at_its_share_of_the_run_and_takes_every_nth() -> None:
    loop = Loop(lever := MeanWeights(start=0.5, every=3, total_steps=11))
    counted = []
    for step in range(1, 12):
        loop.step()
        if step in (6, 9):  # after floor(5.5) steps, the first and each third
            counted.append(loop.net[4].weight.detach().clone())
    loop.handle.finish()
    assert lever.averaged == 2
    torch.testing.assert_close(loop.net[4].weight.detach(), torch.stack(counted).mean(0))


@pytest.mark.parametrize("first", [True, False])
def test_other_levers_have_acted_before_whatever_the_order(first: bool) -> None:
    pair = (EMA(0.0, warmup=False), Concentrate(0.5, preserve_norm=False))
    loop = Loop(*(pair if first else pair[::-1])).run(3)
    before = values(loop.net)
    loop.handle.finish()  # the last weights alone
    assert same(values(loop.net), before)


def test_halves_are_averaged_in_float32() -> None:
    """Steps of 0.1 % would be lost in bfloat16."""
    tensor = nn.Parameter(torch.ones(1, dtype=torch.bfloat16))
    optimizer = torch.optim.SGD([tensor], lr=1.0)
    lever = EMA(0.999, warmup=False)
    trimtab.attach(optimizer, lever)
    tensor.grad = torch.zeros_like(tensor)
    optimizer.step()
    tensor.data.fill_(2.0)
    for _ in range(1000):
        optimizer.step()
    with lever.swapped():
        assert tensor.dtype == torch.bfloat16
        assert tensor.item() == pytest.approx(2 - 0.999**1000, rel=4e-3)
    assert tensor.item() == 2


def test_swapped_gives_everything_back_bit_for_bit() -> None:
    loop = Loop(lever := EMA(0.8)).run(5)
    twin = Loop(EMA(0.8)).run(5)
    before = values(loop.net)
    with lever.swapped():
        assert not same(values(loop.net), before)
        loop.net(torch.randn(8, 2, 5, 5))  # moves BatchNorm's statistics, as recalibration does
        with pytest.raises(RuntimeError, match="is swapped in already"), lever.swapped():
            pass
        with pytest.raises(RuntimeError, match=r"no step within swapped\(\)"):
            loop.step()
    assert same(values(loop.net), before)
    with pytest.raises(ZeroDivisionError), lever.swapped():
        raise ZeroDivisionError
    assert same(values(loop.net), before)
    loop.taken -= 1
    assert same(values(loop.run(2).net), values(twin.run(2).net))


def test_training_does_not_see_the_average() -> None:
    assert same(values(Loop(EMA()).run(6).net), values(Loop().run(6).net))


@pytest.mark.parametrize("make", [
    lambda: EMA(0.9, buffers="average"), lambda: MeanWeights(start=0.25, every=2, total_steps=9),
])  # fmt: skip
@pytest.mark.parametrize("at", [1, 4])
def test_resumed_equals_uninterrupted_to_the_bit(make: Any, at: int) -> None:
    whole, first = Loop(make()).run(9), Loop(make()).run(at)
    file = io.BytesIO()
    torch.save(
        {"net": first.net.state_dict(), "base": first.optimizer.state_dict(), "handle": first.handle.state_dict()}, file
    )
    file.seek(0)
    state = torch.load(file, weights_only=True)
    again = Loop(make())
    again.net.load_state_dict(state["net"])
    again.optimizer.load_state_dict(state["base"])
    again.handle.load_state_dict(state["handle"])
    again.taken = at
    again.run(9 - at)
    for loop in (whole, again):
        loop.handle.finish()
    assert same(values(whole.net), values(again.net))


def test_the_saved_average_does_not_change_with_the_live_one() -> None:
    loop = Loop(lever := EMA(0.5)).run(2)
    state = lever.state_dict()
    before = copy.deepcopy(state)
    loop.run(2)
    assert all(torch.equal(state["averages"][name], before["averages"][name]) for name in before["averages"])


def test_a_state_of_another_network_or_other_settings_is_refused() -> None:
    lever = EMA()
    Loop(lever).run(1)
    state = lever.state_dict()
    with pytest.raises(ValueError, match=r"does not fit EMA\(decay=0.9"):
        EMA(0.9).load_state_dict(state)
    other = EMA()
    trimtab.attach(torch.optim.SGD((net := nn.Linear(2, 2)).parameters(), lr=0.1), other, model=net)
    with pytest.raises(ValueError, match=r"not of this network: '0\.bias' is on one side only"):
        other.load_state_dict(state)
    state["averages"]["4.weight"] = torch.zeros(2, 2)
    fresh = EMA()
    Loop(fresh)
    with pytest.raises(ValueError, match=r"average of 4.weight has shape \(2, 2\), not \(3, 36\)"):
        fresh.load_state_dict(state)


@pytest.mark.parametrize(("make", "words"), [
    (lambda: EMA(1.0), r"decay must lie in \[0, 1\), got 1"),
    (lambda: EMA(buffers="keep"), "buffers must be one of 'recalibrate', 'average', got 'keep'"),  # type: ignore[arg-type]
    (lambda: MeanWeights(1.0), r"start must lie in \[0, 1\), got 1"),
    (lambda: MeanWeights(0.5, 0), "every must be a whole number of 1 or more, got 0"),
    (lambda: Loop(MeanWeights(0.5)), r"total_steps must be given with start=0\.5"),
])  # fmt: skip
def test_bad_settings(make: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()


def test_buffers_need_the_network() -> None:
    with pytest.raises(ValueError, match=r"needs the network: attach\(optimizer, lever, model=model\)"):
        trimtab.attach(torch.optim.SGD(network().parameters(), lr=0.1), EMA(buffers="average"))


def test_an_average_of_nothing_is_not_put_in() -> None:
    lever: WeightAverage = EMA()
    loop = Loop(lever)
    with pytest.raises(RuntimeError, match="has averaged no step yet"), lever.swapped():
        pass
    with pytest.raises(RuntimeError, match="has averaged no step yet"):
        loop.handle.finish()


def test_a_removed_lever_keeps_its_average() -> None:
    loop = Loop(lever := EMA(0.5)).run(3)
    loop.handle.remove()
    assert lever.state_dict()["averaged"] == 3
    with pytest.raises(RuntimeError, match="is not attached"), lever.swapped():
        pass
