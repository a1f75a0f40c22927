"""VarianceAmplifier with AdamW, SAM and CrAM+: its gradient is of the unperturbed weights."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import trimtab
from tests.optimizers.nets import batch, closure_for, mlp, weights, wrap
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
