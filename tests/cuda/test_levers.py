"""Every lever that acts in a run: what it does on the device is what it does on the CPU."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.cuda.network import assert_close, batch, network, take_steps, weights_of
from trimtab.registry import find, of_home
from trimtab.runs.recipe import Recipe
from trimtab.runs.steering import Steering, steer

ACTING = list(of_home("penalty", "transform", "wrapper", "after_step", "optimizer"))
SETTINGS = {
    "l1": {"l1.strength": 1e-3}, "var": {"var.strength": 1e-3}, "hoyer": {"hoyer.strength": 1e-3},
    "clip_norm": {"clip_norm.max_norm": 0.1}, "adaptive_clip": {"adaptive_clip.clip": 0.01},
    "norm_growth": {"norm_growth.max_growth": 1.001}, "zclip": {"zclip.max_norm": 0.1}, "ada_gc": {"ada_gc.absolute": 0.1},
    "spike_guard": {"spike_guard.policy": "lower_lr", "spike_guard.warmup": 2, "spike_guard.threshold": 1e-3},
    "momentum_reset": {"momentum_reset.every": 2, "momentum_reset.warmup": 2}, "radius": {"radius.target": 1e-3},
    "classp": {"classp.lr": 0.05, "classp.threshold": 0.0},
    "concentrate": {"concentrate.rate": 0.1}, "proximal_l1": {"proximal_l1.strength": 1e-2},
    "safe": {"safe.strength": 0.1, "safe.every": 2}, "gradual": {"gradual.end": 1.0, "gradual.every": 1},
    "progressive": {"progressive.end": 1.0, "progressive.every": 1},
    "rigl": {"rigl.every": 1, "rigl.stop": 1.0}, "set": {"set.every": 1, "set.stop": 1.0},
    "nm_decay": {"nm_decay.begin": 0.0, "nm_decay.end": 0.8, "nm_decay.indivisible": "leave_out"},
    "sr_ste": {"sr_ste.begin": 0.0, "sr_ste.strength": 0.1, "sr_ste.indivisible": "leave_out"},
    "soft_threshold": {"soft_threshold.init": -3.0},
    "movement": {"movement.begin": 0.2, "movement.end": 1.0, "movement.every": 1},
    "low_rank": {"low_rank.every": 2, "low_rank.energy": 0.7},
    "ac_dc": {"ac_dc.warm_up": 0.2, "ac_dc.phase": 0.2, "ac_dc.last_dense": 0.2, "ac_dc.last_sparse": 0.4},
}  # fmt: skip
"""So strong that five steps show them."""
STEP = {"epochs": 1, "sgd.lr": 0.05, "adamw.lr": 1e-3}


def recipe(name: str, **more: object) -> Recipe:
    return Recipe().with_settings({"method": name, **STEP, **SETTINGS.get(name, {}), **more})


def run(given: Recipe, device: torch.device, steps: int = 5, **kind: bool) -> list[torch.Tensor]:
    model = network(device, norm=False, **kind)
    steering = steer(given, model, steps_per_epoch=steps)
    steps_of(steering, model, device, steps)
    steering.handle.finish()
    return weights_of(model)


def steps_of(steering: Steering, model: nn.Module, device: torch.device, steps: int) -> list[torch.Tensor]:
    if steering.wrapper is None:
        return take_steps(model, steering.base, device, steps)
    images, labels = batch(device)

    def closure() -> torch.Tensor:
        steering.optimizer.zero_grad(set_to_none=True)
        loss = nn.functional.cross_entropy(model(images), labels)
        loss.backward()
        return loss

    for _ in range(steps):
        steering.wrapper.step(closure)
    return weights_of(model)


@pytest.mark.parametrize("name", ACTING)
def test_five_steps_equal_those_on_the_cpu(name, device):
    """And differ from those without the lever, so that the comparison says something."""
    expected = run(recipe(name), torch.device("cpu"))
    # ZScore divides by a deviation that may be small, SAM and CrAM by a norm: rounding grows, but not a thousandfold
    assert_close(run(recipe(name), device), expected, 1e-3)
    if find(name).home != "optimizer":
        plain = run(recipe("sgd"), torch.device("cpu"))
        assert any(not torch.equal(one, other) for one, other in zip(expected, plain, strict=True))


@pytest.mark.parametrize("name", ACTING)
def test_channels_last_weights_get_the_same_steps(name, device):
    assert_close(run(recipe(name), device, channels_last=True), run(recipe(name), device), 1e-3)


def test_levers_together_equal_those_on_the_cpu(device):
    given = recipe("l1+var+cram+", transforms=("centralize", "clip_norm"), **SETTINGS["clip_norm"])
    assert_close(run(given, device), run(given, torch.device("cpu")), 1e-3)


@pytest.mark.parametrize("scaling", ["none", "tensor", "channel", "block", "mx"])
def test_low_precision_in_a_run_equals_the_cpus(scaling, device):
    """Gradients only just rounded the other way move a weight by a step of the format: a looser bound, on the median."""
    given = recipe("sgd", **{"precision.gradients": "e4m3", "precision.scaling": scaling, "precision.meter_every": 0})
    found, expected = run(given, device, 1), run(given, torch.device("cpu"), 1)
    for one, other in zip(found, expected, strict=True):
        assert float((one - other).abs().median()) <= 1e-6
        assert (
            float((one - other).abs().max()) <= 0.05 * 2.0**-3 * 10
        )  # learning rate x relative step x largest gradient


def on_the_cpu(state):
    """A state as a file gives it back."""
    if isinstance(state, torch.Tensor):
        return state.cpu()
    if isinstance(state, dict):
        return {name: on_the_cpu(value) for name, value in state.items()}
    return type(state)(map(on_the_cpu, state)) if isinstance(state, list | tuple) else state


@pytest.mark.parametrize("name", ACTING)
def test_state_moves_to_the_device_and_a_resumed_run_goes_on(name, device):
    given = recipe(name)
    whole = run(given, device, 6)
    model = network(device, norm=False)
    first = steer(given, model, steps_per_epoch=6)
    steps_of(first, model, device, 3)
    optimizer = first.wrapper or first.base
    state = {"optimizer": optimizer.state_dict(), "levers": first.handle.state_dict(), "model": model.state_dict()}
    state = on_the_cpu(state)
    other = network(device, norm=False)
    second = steer(given, other, steps_per_epoch=6)
    other.load_state_dict(state["model"])
    (second.wrapper or second.base).load_state_dict(state["optimizer"])
    second.handle.load_state_dict(state["levers"])
    steps_of(second, other, device, 3)
    second.handle.finish()
    assert_close(weights_of(other), whole, 1e-4)
