"""SAFE: the authors' algorithm written out, its end, resume, half precision, computed weights, refusals."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import trimtab
from tests.pruning.along import attached, batch, resumed, same, scaled_steps_with_one_skipped, sgd, steps, zeros
from tests.pruning.nets import Small
from trimtab.optimizers import SAM
from trimtab.penalties import SAFE
from trimtab.penalties import safe as safe_module
from trimtab.pruning import one_shot

WEIGHTS = ("conv.weight", "up.weight", "head.weight")
TOTAL = 288 + 192 + 30


def lever(**settings: Any) -> SAFE:
    return SAFE(**{"strength": 0.5, "sparsity": 0.8, "every": 4, "total_steps": 20, **settings})


def network() -> Small:
    torch.manual_seed(3)
    net = Small()
    net.drop.p = 0.0
    net.norm.eval()  # statistics apart: SAM's second pass must not move them
    return net.double()


def project(values: list[Tensor], sparsity: float) -> list[Tensor]:
    flat = torch.cat([value.flatten() for value in values])
    gone = flat.abs().argsort(stable=True)[: math.floor(sparsity * flat.numel() + 0.5)]
    return [
        part.view_as(v)
        for part, v in zip(flat.index_fill(0, gone, 0).split([v.numel() for v in values]), values, strict=True)
    ]


@pytest.mark.parametrize("rho", [0.0, 0.1])
def test_training_is_the_authors_algorithm_written_out(rho: float) -> None:
    net, twin = network(), network()
    own = sgd(net)
    optimizer, handle = attached(net, lever(), SAM(own, rho=rho, model=net) if rho else own)
    parameters, weights = list(twin.parameters()), [twin.get_parameter(name) for name in WEIGHTS]
    momenta = [torch.zeros_like(parameter) for parameter in parameters]
    z = project([weight.detach().clone() for weight in weights], 0.8)
    u = [torch.zeros_like(one) for one in z]

    def gradients(step: int) -> list[Tensor]:
        loss = twin(batch(step).double()).pow(2).mean()
        return list(torch.autograd.grad(loss, parameters))

    for step in range(11):
        found = gradients(step)
        if rho:
            norm = torch.cat([one.flatten() for one in found]).norm()
            kept = [parameter.detach().clone() for parameter in parameters]
            with torch.no_grad():
                for parameter, one in zip(parameters, found, strict=True):
                    parameter.add_(rho * one / norm)
            found = gradients(step)
            with torch.no_grad():
                for parameter, old in zip(parameters, kept, strict=True):
                    parameter.copy_(old)
        pull = 0.5 * (1 - math.cos(math.pi * step / 20)) / 2
        with torch.no_grad():
            for parameter, one, momentum in zip(parameters, found, momenta, strict=True):
                place = next((at for at, weight in enumerate(weights) if weight is parameter), None)
                full = one if place is None else one + pull * (parameter - z[place] + u[place])
                momentum.mul_(0.9).add_(full + 0.01 * parameter)
                parameter.sub_(0.05 * momentum)
            if step % 4 == 3:
                v = [weight + dual for weight, dual in zip(weights, u, strict=True)]
                z = project(v, 0.8)
                u = [one - other for one, other in zip(v, z, strict=True)]

        def closure(step: int = step) -> Tensor:
            optimizer.zero_grad()
            loss: Tensor = net(batch(step).double()).pow(2).mean()
            loss.backward()
            return loss

        optimizer.step(closure)
        for one, other in zip(net.parameters(), parameters, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11)
    assert handle.finish() is True
    for name, one in zip(WEIGHTS, project([weight.detach() for weight in weights], 0.8), strict=True):
        torch.testing.assert_close(net.get_parameter(name).detach(), one, rtol=1e-9, atol=1e-11)


def test_weights_come_close_to_a_sparse_copy_and_the_end_makes_them_sparse() -> None:
    distances = {}
    for strength in (0.0, 2.0):
        net = Small()
        optimizer, handle = attached(net, lever(strength=strength, every=2), sgd(net, momentum=0.0))
        steps(net, optimizer, range(20))
        values = [net.get_parameter(name).detach() for name in WEIGHTS]
        lost = [one - other for one, other in zip(values, project(values, 0.8), strict=True)]
        distances[strength] = float(torch.cat([one.flatten() for one in lost]).norm())
        assert handle.finish() is True
        assert zeros(net, *WEIGHTS) == int(0.8 * TOTAL + 0.5)
    assert distances[2.0] < 0.7 * distances[0.0]
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    for sparsity in (0.5, 0.8):
        one_shot(net, sparsity)
        assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


def test_the_ramps_and_what_is_told() -> None:
    found: dict[Any, list[float]] = {}
    for ramp in ("cosine", "linear", "constant"):
        safe = lever(ramp=ramp, strength=1.0)
        for safe.steps in (0, 5, 10, 20, 25):
            found.setdefault(ramp, []).append(safe.strength_now)
    assert found["cosine"] == pytest.approx([0, (1 - math.sqrt(0.5)) / 2, 0.5, 1, 1])
    assert found["linear"] == pytest.approx([0, 0.25, 0.5, 1, 1])
    assert found["constant"] == [1.0] * 5
    assert lever(strength=0.25, ramp="constant").describe() == {"strength": 0.25, "sparsity": 0.8}


def test_the_value_has_the_gradient() -> None:
    net = network()
    safe = lever(ramp="constant")
    optimizer, _ = attached(net, safe)
    net(batch(0).double()).pow(2).mean().backward()
    optimizer.step()
    found = torch.autograd.grad(safe.value(net), [net.get_parameter(name) for name in WEIGHTS])
    for parameter in net.parameters():
        parameter.grad = torch.zeros_like(parameter)
    safe.add_gradient_(net)
    for name, one in zip(WEIGHTS, found, strict=True):
        torch.testing.assert_close(net.get_parameter(name).grad, one)
    assert safe.value(net).item() == pytest.approx(0.5 * sum(safe.per_layer(net).values()))
    assert all(
        parameter.grad is not None and not parameter.grad.any() for parameter in net.parameters() if parameter.ndim < 2
    )
    alone = torch.tensor([[3.0, -1.0, 2.0, 4.0, 0.5]])
    assert lever(sparsity=0.4).psi(alone) == pytest.approx((1.0 + 0.25) / 2)


@pytest.mark.parametrize("at", [2, 4, 9])
def test_resumed_goes_on_bit_for_bit(at: int) -> None:
    (whole, end), (second, loaded) = resumed(
        lambda: Small().to(memory_format=torch.channels_last),  # type: ignore[call-overload]
        lever, at, 12,
    )  # fmt: skip
    end.finish()
    loaded.finish()
    assert same(whole, second)
    assert loaded.levers[0]._anchors["conv.weight"].stride() == second.conv.weight.stride()  # type: ignore[attr-defined]


def test_a_state_of_other_settings_or_another_network_is_refused() -> None:
    net = Small()
    optimizer, handle = attached(net, lever())
    steps(net, optimizer, range(2))
    state = handle.levers[0].state_dict()
    with pytest.raises(ValueError, match="does not fit SAFE"):
        lever(sparsity=0.7).load_state_dict(state)
    other = Small()
    other.head = nn.Linear(6, 4)
    optimizer, handle = attached(other, lever())
    handle.levers[0].load_state_dict(state)
    with pytest.raises(ValueError, match=r"head\.weight has the shape \(4, 6\), what SAFE remembers of it \(5, 6\)"):
        steps(other, optimizer, range(1))


def test_steps_that_a_scaler_skips_do_not_count() -> None:
    net = Small()
    safe = lever()
    optimizer, _ = attached(net, safe)
    scaled_steps_with_one_skipped(net, optimizer)
    assert safe.steps == 2


def test_computed_weights_take_part_as_the_product_uses_them() -> None:
    net = Small()
    torch.nn.utils.parametrizations.weight_norm(net.conv)
    torch.nn.utils.parametrizations.spectral_norm(net.up)
    keys = list(net.state_dict())
    safe = lever(ramp="constant", every=1)
    optimizer, handle = attached(net, safe)
    steps(net, optimizer, range(3))
    value = safe.value(net)
    parts = list(net.conv.parametrizations.weight.parameters())
    expected = torch.autograd.grad(value, parts)
    for part in parts:
        part.grad = torch.zeros_like(part)
    safe.add_gradient_(net)
    for part, one in zip(parts, expected, strict=True):
        torch.testing.assert_close(part.grad, one)
    handle.finish()
    assert list(net.state_dict()) == keys
    assert zeros_of(net.conv.weight) + zeros_of(net.head.weight) == int(0.8 * (288 + 30) + 0.5)
    assert "under SpectralNorm, which cannot hold zeros" in {e.name: why for e, why in safe.left_out}["up.weight"]


def zeros_of(weight: Tensor) -> int:
    return int((weight == 0).sum())


def test_weights_seen_later_start_with_their_own_projection() -> None:
    net = Small()
    safe = lever(ramp="constant")
    optimizer = sgd(net.conv)  # type: ignore[arg-type]
    trimtab.attach(optimizer, safe, model=net)
    steps(net, optimizer, range(1))
    optimizer.add_param_group({"params": list(net.head.parameters())})
    steps(net, optimizer, range(1, 3))
    assert set(safe._anchors) == {"conv.weight", "head.weight"}


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"sparsity": 1.0}, r"sparsity must lie in \(0, 1\), got 1\.0"),
        ({"sparsity": 0.0}, r"sparsity must lie in \(0, 1\), got 0\.0"),
        ({"strength": -1.0}, r"strength must be finite and 0 or more, got -1\.0"),
        ({"every": 0}, r"every must be a whole number of 1 or more"),
        ({"ramp": "cubic"}, r"ramp must be one of 'cosine', 'linear', 'constant', got 'cubic'"),
    ],
)
def test_bad_settings_are_named(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        lever(**settings)


def test_a_weight_that_is_nan_is_named_when_it_is_time_for_a_projection() -> None:
    net = Small()
    optimizer, _ = attached(net, lever(every=2))
    steps(net, optimizer, range(1))
    with torch.no_grad():
        net.up.weight[0, 0] = float("nan")
    with pytest.warns(UserWarning, match="inf or NaN"), pytest.raises(ValueError, match=r"NaN after 2 steps: SAFE"):
        steps(net, optimizer, range(1, 2))
    with pytest.raises(ValueError, match="finds nothing to prune"):
        lever().value(nn.LayerNorm(3))


def test_the_weights_are_chosen_once_and_not_at_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    choose = safe_module.weights_or_refusal
    monkeypatch.setattr(safe_module, "weights_or_refusal", lambda *given: asked.append(1) or choose(*given))
    net = Small()
    optimizer, _ = attached(net, lever(ramp="constant", every=1))
    steps(net, optimizer, range(4))
    assert len(asked) == 1
