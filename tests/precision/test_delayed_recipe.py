"""Delayed scaling of operands: one history for each factor of each layer, one entry a step."""

from __future__ import annotations

import io
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import trimtab
from tests.precision.test_products import attached, batch, close, in_format, network, same, spread, steps
from trimtab.precision import Delayed, LowPrecision, Operand, Product, Recipe, ShrinkageMeter, recipe_named


def recipe(history: int = 3, margin: int = 0, choice: Any = "max", backward: str = "e5m2") -> Recipe:
    late, gradient = (Operand(name, Delayed(history, margin=margin, choice=choice)) for name in ("e4m3", backward))
    return Recipe("late", (late, late), (gradient, late), (gradient, late))


def on_scale(x: Tensor, format: str, largest: float) -> Tensor:
    """A matrix in float64, rounded with the scale for this magnitude."""
    top = {"e4m3": 448.0, "e5m2": 57344.0}[format]
    scale = float(np.float32(largest) / np.float32(top))
    return torch.from_numpy(scale * in_format(x.double().numpy() / scale, format))


def magnitude(seen: list[float], own: float, history: int, margin: int, choice: str) -> float:
    """TransformerEngine's rule: amax of the history, its scale `max / amax / 2^margin`; at first one's own."""
    last = seen[-history:]
    return (own if not last else max(last) if choice == "max" else last[-1]) * 2.0**margin


@pytest.mark.parametrize(("history", "margin", "choice"), [(3, 0, "max"), (2, 1, "max"), (3, 0, "most_recent")])
def test_products_are_those_of_a_reference_with_a_history(history: int, margin: int, choice: str) -> None:
    layer = nn.Linear(24, 16, bias=False)
    layer.weight.data = spread(16, 24, seed=0)
    optimizer, *_ = attached(layer, recipe(history, margin, choice))
    seen: dict[str, list[float]] = {"x": [], "w": [], "g": []}
    for step, size in enumerate((1.0, 4.0, 0.5, 0.25, 0.125, 0.0625, 8.0)):
        x = (size * torch.randn(10, 24, generator=torch.Generator().manual_seed(step))).requires_grad_()
        g = torch.randn(10, 16, generator=torch.Generator().manual_seed(99 + step)) / size
        weight = layer.weight.detach().clone()
        optimizer.zero_grad()
        y = layer(x)
        y.backward(g)
        own = {name: float(each.detach().abs().max()) for name, each in (("x", x), ("w", weight), ("g", g))}
        used = {name: magnitude(seen[name], own[name], history, margin, choice) for name in own}
        a, w = on_scale(x.detach(), "e4m3", used["x"]), on_scale(weight, "e4m3", used["w"])
        back = on_scale(g, "e5m2", used["g"])
        close(y.detach(), a @ w.T)
        close(x.grad, back @ w)
        close(layer.weight.grad, back.T @ a)
        optimizer.step()
        for name in own:
            seen[name].append(own[name])


def test_where_magnitudes_stay_it_is_current_scaling_bit_for_bit() -> None:
    late, now = network(), network()
    optimizers = [attached(net, name)[0] for net, name in ((late, "fp8-delayed"), (now, "fp8-tensor"))]
    for optimizer in optimizers:
        optimizer.param_groups[0]["lr"] = 0.0
    for _ in range(3):
        for net, optimizer in zip((late, now), optimizers, strict=True):
            optimizer.zero_grad()
            net(batch(0)).square().mean().backward()
            optimizer.step()
        assert torch.equal(late(batch(0)), now(batch(0)))
        for one, other in zip(late.parameters(), now.parameters(), strict=True):
            assert torch.equal(one.grad, other.grad)  # type: ignore[arg-type]
    assert not torch.equal(late(3 * batch(0)), now(3 * batch(0)))  # what grew saturates
    assert torch.equal(late(batch(0)), now(batch(0)))


def history_of(lever: LowPrecision) -> dict[str, list[float]]:
    found = lever.operands.delayed.magnitudes  # type: ignore[union-attr]
    assert found is not None
    last = min(found.entries, found.history)
    return {key: found.of(key)[found.history - last :].tolist() for key in found.keys}


def test_micro_batches_and_calls_of_a_step_are_one_entry_with_one_scale() -> None:
    layer = nn.Linear(8, 8, bias=False)
    optimizer, lever, _ = attached(layer, recipe())
    one, two = (torch.randn(4, 8, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    layer(layer(one)).sum().backward()
    optimizer.step()
    first = history_of(lever)
    assert first["activation of "][0] >= float(one.abs().max())
    assert len(first["activation of "]) == 1
    optimizer.zero_grad()
    outputs = []
    for x in (one, 100 * two, one):
        outputs.append(layer(x))
        outputs[-1].sum().backward()
    assert torch.equal(outputs[0], outputs[2])  # what the second micro-batch had changes nothing before the step
    optimizer.step()
    found = history_of(lever)
    assert found["activation of "] == [first["activation of "][0], float((100 * two).abs().max())]
    assert found["gradient of "][1] == 1.0
    assert found["weight of "][0] == first["weight of "][0]


@pytest.mark.parametrize("reentrant", [True, False])
def test_under_activation_checkpointing_the_history_is_the_same(reentrant: bool) -> None:
    found = []
    for again in (True, False):
        net = network()
        optimizer, lever, _ = attached(net, recipe())
        for number in range(4):
            optimizer.zero_grad()
            x = ((number + 1) * batch(number)).requires_grad_()
            out = checkpoint(net, x, use_reentrant=reentrant) if again else net(x)
            out.square().mean().backward()
            optimizer.step()
        found.append((net, history_of(lever)))
    assert same(found[0][0], found[1][0])
    assert found[0][1] == found[1][1]


def saved_and_loaded(state: dict[str, Any]) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    loaded: dict[str, Any] = torch.load(file, weights_only=True)
    return loaded


@pytest.mark.parametrize("before", [True, False])
def test_a_resumed_run_is_the_same_run(before: bool) -> None:
    """Also where the state is taken between two micro-batches, and loaded before the lever is attached or after."""
    whole, parts, resumed = network(), network(), network()
    optimizer, *_ = attached(whole, recipe())
    steps(whole, optimizer, range(6), evaluate=True)
    optimizer, lever, handle = attached(parts, recipe())
    steps(parts, optimizer, range(3))
    state = saved_and_loaded({"lever": lever.state_dict(), "net": parts.state_dict()})
    handle.remove()
    resumed.load_state_dict(state["net"])
    if before:
        other = LowPrecision(matmul=recipe())
        other.load_state_dict(state["lever"])
        optimizer = torch.optim.SGD(resumed.parameters(), lr=0.01)
        trimtab.attach(optimizer, other, model=resumed)
    else:
        optimizer, other, _ = attached(resumed, recipe())
        other.load_state_dict(state["lever"])
    steps(resumed, optimizer, range(3, 6))
    assert same(whole, resumed)
    # within a step
    resumed(5 * batch(1)).square().mean().backward()
    again = LowPrecision(matmul=recipe())
    again.load_state_dict(saved_and_loaded(other.state_dict()))
    assert repr(again.state_dict()["operands"]) == repr(other.state_dict()["operands"])
    fresh = network()
    optimizer, *_ = attached(fresh, recipe())
    steps(fresh, optimizer, range(3))
    fresh.load_state_dict(state["net"])
    assert not same(whole, fresh)


@pytest.mark.parametrize("set_to_none", [True, False])
def test_a_step_that_a_scaler_skips_is_no_entry(set_to_none: bool) -> None:
    found = []
    for skips in (False, True):
        net = network()
        optimizer, lever, _ = attached(net, recipe())
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
        for times in ([torch.inf] if skips else []) + [1.0, 1.0]:
            scaler.scale(net((100 if times == torch.inf else 1) * batch(0)).square().mean() * times).backward()
            scaler.step(optimizer)
            scaler.update(2.0**10)
            optimizer.zero_grad(set_to_none)
        found.append(history_of(lever))
    assert found[0] == found[1]
    assert len(found[1]["weight of 0"]) == 2


def test_what_is_not_finite_shows_and_is_not_remembered() -> None:
    layer = nn.Linear(8, 4)
    optimizer, lever, _ = attached(layer, recipe())
    x = torch.ones(3, 8)
    for bad in (1.0, math.inf, math.nan):
        given = x.clone()
        given[1, 2] *= bad
        y = layer(given)
        assert bool(y.isfinite().all()) == math.isfinite(bad)
        optimizer.step()
    assert history_of(lever)["activation of "] == [0.0, 0.0, 1.0]  # three steps, one entry
    assert bool(layer(x).isfinite().all())


def test_evaluation_the_end_and_removal_leave_the_history() -> None:
    net = network()
    optimizer, lever, handle = attached(net, recipe().replace(until=0.5), total_steps=4)
    steps(net, optimizer, range(2), evaluate=True)
    before = history_of(lever)
    net.eval()
    net(50 * batch(0))
    net.train()
    with lever.full_precision():
        net(50 * batch(0))
    steps(net, optimizer, range(2, 4))
    assert history_of(lever) == before
    exact = network()
    exact.load_state_dict(net.state_dict())
    handle.remove()
    assert torch.equal(net(batch(0)), exact(batch(0)))


def test_the_meter_counts_what_saturates() -> None:
    layer = nn.Linear(16, 4, bias=False)
    meter = ShrinkageMeter(every=1)
    optimizer, *_ = attached(layer, recipe(), meter=meter)
    x = torch.linspace(-1, 1, 16).expand(2, 16).contiguous()
    for size in (1.0, 4.0):
        optimizer.zero_grad()
        layer(size * x).sum().backward()
        optimizer.step()
    rows = {row["step"]: row for row in meter.table().to_pylist() if row["kind"] == "fprop activation" and row["layer"]}
    assert rows[0]["overflow"] == 0
    assert rows[1]["overflow"] == pytest.approx(float(((4 * x).abs() > 1).float().mean()))


def test_a_factor_that_is_turned_in_one_product_has_a_history_of_its_own() -> None:
    late = Operand("e4m3", Delayed(2))
    layer = nn.Linear(16, 16, bias=False)
    optimizer, lever, _ = attached(layer, Recipe("turned", (late, late), (late, late), Product(late, late, 16)))
    layer(torch.eye(16).requires_grad_()).sum().backward()
    optimizer.step()
    found = history_of(lever)
    assert set(found) == {
        "activation of ", "weight of ", "gradient of ", "gradient of , turned for wgrad", "activation of , turned for wgrad",
    }  # fmt: skip
    assert found["activation of "] == [1.0]
    assert found["activation of , turned for wgrad"] == [0.25]  # of the identity, spread over 16 entries


def test_an_empty_batch_and_other_layers() -> None:
    net = network()
    optimizer, lever, _ = attached(net, "fp8-delayed")
    assert net(torch.empty(0, 2, 4, 4)).shape == (0, 3)
    steps(net, optimizer, range(1))
    other = nn.Sequential(nn.Linear(3, 3))
    _, elsewhere, _ = attached(other, "fp8-delayed")
    with pytest.raises(ValueError, match="magnitudes are of other operands than those here"):
        elsewhere.load_state_dict(lever.state_dict())
    assert elsewhere.step == 0
    assert recipe_named("fp8-delayed").fprop.first.scaling.history == 1024  # type: ignore[union-attr]
