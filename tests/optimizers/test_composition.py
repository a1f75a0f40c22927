"""VarianceAmplifier with AdamW, SAM and CrAM+: its gradient is of the unperturbed weights."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import trimtab
from tests.optimizers.nets import batch, closure_for, mlp, train, weights, wrap
from trimtab.optimizers import ASAM
from trimtab.penalties import VarianceAmplifier

STRENGTH = 1e-3


def last_gradients(method: str, attached: bool) -> tuple[list[Tensor], list[Tensor]]:
    """Weights before a step of rate 1 without momentum, and the gradient that it used."""
    model = mlp(torch.float64)
    optimizer = wrap(method, torch.optim.SGD(model.parameters(), lr=1.0))
    if attached:
        trimtab.attach(optimizer, VarianceAmplifier(STRENGTH))
    before = weights(model)
    optimizer.step(closure_for(model, optimizer, batch(dtype=torch.float64)))
    return before, [a - b for a, b in zip(before, weights(model), strict=True)]


@pytest.mark.parametrize("method", ["sam", "asam", "cram+"])
def test_penalty_adds_its_gradient_at_the_unperturbed_weights(method: str) -> None:
    before, plain = last_gradients(method, attached=False)
    _, penalised = last_gradients(method, attached=True)
    leaves = [nn.Parameter(one) for one in before]
    value = VarianceAmplifier(STRENGTH).value(leaves)
    slopes = torch.autograd.grad(value, [one for one in leaves if one.ndim > 1])
    extra = dict(zip([position for position, one in enumerate(leaves) if one.ndim > 1], slopes, strict=True))
    assert max(float(slope.abs().max()) for slope in slopes) > 1e-3
    for position, (with_penalty, without) in enumerate(zip(penalised, plain, strict=True)):
        torch.testing.assert_close(with_penalty, without + extra.get(position, torch.zeros(())), rtol=1e-4, atol=1e-7)


def test_value_in_the_closure_is_the_other_reading() -> None:
    _, attached = last_gradients("cram+", attached=True)
    model = mlp(torch.float64)
    optimizer = wrap("cram+", torch.optim.SGD(model.parameters(), lr=1.0))
    penalty = VarianceAmplifier(STRENGTH)
    images, labels = batch(dtype=torch.float64)
    before = weights(model)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(images), labels) + penalty.value(model)
        loss.backward()
        return loss

    optimizer.step(closure)
    inside = [a - b for a, b in zip(before, weights(model), strict=True)]
    assert float((inside[0] - attached[0]).abs().max()) > 1e-4


@pytest.mark.parametrize("method", ["sam", "cram+"])
def test_with_adamw_scaler_and_clipping(method: str) -> None:
    model, plain = mlp(), mlp()
    optimizer = wrap(method, torch.optim.AdamW(model.parameters(), lr=0.01), model)
    other = wrap(method, torch.optim.AdamW(plain.parameters(), lr=0.01), plain)
    trimtab.attach(optimizer, VarianceAmplifier(1e-4))
    trimtab.attach(other, VarianceAmplifier(1e-4))
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8)
    for step in range(5):
        data = batch(step)
        optimizer.step(
            closure_for(model, optimizer, data, scaler),
            grad_scaler=scaler,
            before_step=lambda: nn.utils.clip_grad_norm_(model.parameters(), 0.5),
        )
        scaler.update()
        other.step(
            closure_for(plain, other, data), before_step=lambda: nn.utils.clip_grad_norm_(plain.parameters(), 0.5)
        )
    for left, right in zip(weights(model), weights(plain), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-5, atol=1e-6)
    variances = [float(one.abs().var()) for one in weights(model) if one.ndim > 1]
    assert all(torch.isfinite(torch.tensor(variances)))


def var_gradient(w: Tensor) -> Tensor:
    """`-(2 / n) (V + eps)^-2 (m_i - mean) w_i / m_i` with m_i = sqrt(w_i^2 + r), written out."""
    magnitude = (w**2 + 1e-8).sqrt()
    mean = magnitude.sum() / w.numel()
    variance = ((magnitude - mean) ** 2).sum() / w.numel()
    return -2 / w.numel() * (variance + 1e-8) ** -2 * (magnitude - mean) * w / magnitude


def test_var_and_asam_equal_the_loop_written_out() -> None:
    """SGD with momentum and weight decay in plain float64: the gradient of ASAM, then VAR's at the unperturbed weights."""
    steps, rate, momentum, decay, rho, eta, strength = 6, 0.1, 0.9, 1e-2, 0.5, 0.01, 1e-4
    model = mlp(torch.float64)
    base = torch.optim.SGD(model.parameters(), rate, momentum, weight_decay=decay)
    optimizer = ASAM(base, rho=rho, eta=eta)
    trimtab.attach(optimizer, VarianceAmplifier(strength))
    train(model, optimizer, steps, dtype=torch.float64)

    def by_hand(lever: float, radius: float) -> list[Tensor]:
        plain = mlp(torch.float64)
        names = [name for name, _ in plain.named_parameters()]
        w = weights(plain)
        velocity = [torch.zeros_like(one) for one in w]

        def gradient(values: list[Tensor], step: int) -> list[Tensor]:
            images, labels = batch(100 + step, dtype=torch.float64)
            leaves = [value.clone().requires_grad_() for value in values]
            out = torch.func.functional_call(plain, dict(zip(names, leaves, strict=True)), (images,))
            return list(torch.autograd.grad(nn.functional.cross_entropy(out, labels), leaves))

        for step in range(steps):
            g = gradient(w, step)
            t = [one.abs() + eta if one.ndim > 1 else torch.ones_like(one) for one in w]
            norm = sum(float(((a * b) ** 2).sum()) for a, b in zip(t, g, strict=True)) ** 0.5
            h = gradient([a + radius * b**2 * c / (norm + 1e-12) for a, b, c in zip(w, t, g, strict=True)], step)
            h = [a + lever * var_gradient(b) if b.ndim > 1 else a for a, b in zip(h, w, strict=True)]
            velocity = [momentum * v + a + decay * b for v, a, b in zip(velocity, h, w, strict=True)]
            w = [a - rate * v for a, v in zip(w, velocity, strict=True)]
        return w

    for ours, expected in zip(weights(model), by_hand(strength, rho), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-12)
    for without in (by_hand(0.0, rho), by_hand(strength, 0.0)):  # both matter
        assert max(float((a - b).abs().max()) for a, b in zip(weights(model), without, strict=True)) > 1e-4
