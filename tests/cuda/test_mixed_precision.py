"""AMP in float16 and bfloat16 with GradScaler, fused optimizers, compiled steps."""

from __future__ import annotations

import pytest
import torch

import trimtab
from tests.cuda.network import assert_close, loss_of, network, take_steps
from trimtab.gradients import Centralize, ClipNorm
from trimtab.observe import GradientTracker
from trimtab.penalties import L1, VarianceAmplifier

OPTIMIZERS = {
    "SGD": lambda weights, **form: torch.optim.SGD(weights, 0.05, momentum=0.9, weight_decay=1e-3, **form),
    "AdamW": lambda weights, **form: torch.optim.AdamW(weights, 1e-3, **form),
}


def levers():
    return VarianceAmplifier(1e-3), L1(1e-3), Centralize(), ClipNorm(0.5)


@pytest.mark.parametrize("name", list(OPTIMIZERS))
@pytest.mark.parametrize("form", ["fused", "foreach"])
def test_fused_and_foreach_optimizers_step_as_the_plain_loop(name, form, device):
    weights = {}
    for kind in (form, "loop"):
        model = network(device)
        settings = {form: True} if kind == form else {"foreach": False, "fused": False}
        optimizer = OPTIMIZERS[name](model.parameters(), **settings)
        trimtab.attach(optimizer, *levers(), model=model)
        weights[kind] = take_steps(model, optimizer, device)
    assert_close(weights[form], weights["loop"])


@pytest.mark.parametrize("name", list(OPTIMIZERS))
@pytest.mark.parametrize("fused", [False, True])
def test_a_grad_scaler_changes_nothing_where_nothing_overflows(name, fused, device):
    """Powers of two scale exactly in float32, so levers must see the same gradients as without a scaler."""
    weights = {}
    for scaled in (False, True):
        model = network(device)
        optimizer = OPTIMIZERS[name](model.parameters(), fused=fused)
        trimtab.attach(optimizer, *levers(), model=model)
        scaler = torch.amp.GradScaler(device.type, init_scale=2.0**12) if scaled else None
        weights[scaled] = take_steps(model, optimizer, device, scaler=scaler)
    assert_close(weights[True], weights[False], 1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_levers_act_on_unscaled_gradients_under_autocast(dtype, device):
    """The tracker behind the levers sees finite gradients no longer than the clipping allows, and the loss falls."""
    model = network(device)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    seen = []

    class Norms:
        observes = True

        def before_step(self, parameters):
            seen.append(torch.cat([e.parameter.grad.flatten().float() for e in parameters]).norm().detach())

        def state_dict(self):
            return {}

        def load_state_dict(self, state):
            pass

    trimtab.attach(optimizer, VarianceAmplifier(1e-4), ClipNorm(0.5), Norms(), model=model)
    scaler = torch.amp.GradScaler(device.type, init_scale=2.0**10) if dtype == torch.float16 else None
    before = loss_of(model, device, dtype).item()
    take_steps(model, optimizer, device, 20, dtype, scaler)
    assert loss_of(model, device, dtype).item() < before
    assert len(seen) == 20
    assert all(0 < float(norm) <= 0.5 * 1.001 for norm in seen)


def test_an_overflow_skips_the_step_and_the_levers(device):
    """A scale that overflows float32 itself: weights stay, the scale falls, and the tracker counts no step."""
    model = network(device)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    tracker = GradientTracker()
    trimtab.attach(optimizer, tracker, VarianceAmplifier(1e-3), model=model)
    scaler = torch.amp.GradScaler(device.type, init_scale=2.0**127)
    before = [weight.detach().clone() for weight in model.parameters()]
    optimizer.zero_grad()
    (scaler.scale(loss_of(model, device)) * 1e6).backward()
    scaler.step(optimizer)
    scaler.update()
    assert all(torch.equal(one, other) for one, other in zip(model.parameters(), before, strict=True))
    assert scaler.get_scale() < 2.0**127
    assert tracker.step == 0


def test_a_compiled_network_gets_the_same_steps(device):
    """On a CPU without its compiler: the graph alone."""
    if device.type == "cuda":
        pytest.importorskip("triton", reason="torch.compile needs Triton for a GPU")
    weights = {}
    for compiled in (False, True):
        model = network(device)
        backend = "inductor" if device.type == "cuda" else "aot_eager"
        called = torch.compile(model, backend=backend) if compiled else model
        optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
        trimtab.attach(optimizer, *levers(), model=called)
        weights[compiled] = take_steps(called, optimizer, device)
    torch.compiler.reset()
    assert_close(weights[True], weights[False], 1e-3)
