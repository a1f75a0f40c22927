"""What levers remember: settings that a saved state must agree with, and nothing of a step that was not sound."""

from __future__ import annotations

import copy
import inspect
import typing
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.battery import ROWS
from trimtab import attach
from trimtab.precision import LowPrecision
from trimtab.registry import LEVERS, create

HANDED = {"self", "model", "rule", "lever", "meter"}
FREE = {"oscillation", "dim_limit"}
"""They change no number of the training."""
GIVEN: dict[str, dict[str, Any]] = {
    "low_precision": {"gradients": "e4m3", "weights": "e4m3", "rounding": "stochastic", "momentum": "e5m2"},
    "binarize": {"ends": True},
    "eight_bit_state": {"min_size": 16},
    "subspace_history": {"every": 4, "keep": 0.8},
    "compensate": {},
} | {row.name: {**row.settings} for row in reversed(ROWS) if row.home in ("transform", "penalty", "after_step")}
STEPS = {row.name: row.steps for row in ROWS if row.steps}


class Trained:
    """A lever at work on a small network."""

    def __init__(self, name: str, on_nonfinite: Any = "pass", **changes: Any) -> None:
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8), nn.Linear(8, 4))
        self.optimizer = torch.optim.SGD(self.net.parameters(), lr=0.01, momentum=0.9)
        handed = {"total_steps": STEPS[name]} if name in STEPS else {}
        settings, before = {**handed, **GIVEN[name], **changes}, []
        if name == "compensate":
            before = [LowPrecision("e4m3")]
        self.lever = create(name, *before, **settings)
        self.handle = attach(self.optimizer, *before, self.lever, model=self.net, on_nonfinite=on_nonfinite)

    def step(self, times: float = 1.0) -> None:
        def closure() -> Tensor:
            self.optimizer.zero_grad()
            loss = self.net(torch.ones(4, 8)).square().mean() * times
            loss.backward()
            return loss

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.optimizer.step(closure)


def others(name: str, value: Any, allowed: Any) -> list[Any]:
    """Other values of a setting, of which one at least should be right."""
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int | float):
        found = (type(value)(value * 2), value + 1, value / 2 + 0.01, value - 1)
        return [each for each in found if each != value]
    if isinstance(value, str) and allowed is not None:
        words: list[str] = []

        def walk(hint: Any) -> None:
            for part in typing.get_args(hint):
                words.append(part) if isinstance(part, str) else walk(part)

        walk(allowed)
        return [word for word in words if word != value]
    return []


def knobs() -> Iterator[tuple[str, str]]:
    for name in GIVEN:
        for setting in inspect.signature(LEVERS[name].load()).parameters:
            if setting not in HANDED | FREE | LEVERS[name].fixed.keys():
                yield name, setting


@pytest.mark.parametrize(("name", "setting"), list(knobs()))
def test_a_state_of_another_setting_is_refused_and_changes_nothing(name: str, setting: str) -> None:
    load = LEVERS[name].load()
    assert inspect.isclass(load)
    default = inspect.signature(load).parameters[setting].default
    value = {"total_steps": STEPS.get(name), **GIVEN[name]}.get(setting, default)
    one = Trained(name)
    one.step()
    state = copy.deepcopy(one.lever.state_dict())
    for changed in others(setting, value, typing.get_type_hints(load.__init__).get(setting)):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                other = Trained(name, **{setting: changed})
        except (TypeError, ValueError):
            continue
        before = str(other.lever.state_dict())
        if setting == "strength" and LEVERS[name].home == "penalty":  # state: it may follow a schedule
            other.lever.load_state_dict(state)
            assert getattr(other.lever, setting) == getattr(one.lever, setting)
            return
        with pytest.raises(ValueError, match=r"saved"):
            other.lever.load_state_dict(state)
        assert str(other.lever.state_dict()) == before
        return


def tensors(state: Any) -> Iterator[Tensor]:
    if isinstance(state, Tensor):
        yield state
    elif isinstance(state, dict | list | tuple):
        for each in state.values() if isinstance(state, dict) else state:
            yield from tensors(each)
    elif isinstance(state, float):
        yield torch.tensor(state)


@pytest.mark.parametrize("name", GIVEN)
def test_of_a_skipped_step_nothing_is_remembered(name: str) -> None:
    trained = Trained(name, "skip")
    trained.step()
    before = str(trained.lever.state_dict())
    weights = [one.detach().clone() for one in trained.net.parameters()]
    trained.step(torch.inf)
    assert trained.handle.skipped == 1
    assert name == "spike_guard" or str(trained.lever.state_dict()) == before
    assert all(map(torch.equal, trained.net.parameters(), weights))


@pytest.mark.parametrize("bad", [torch.inf, torch.nan])
@pytest.mark.parametrize("name", [name for name in GIVEN if LEVERS[name].home == "transform"] + ["compensate"])
def test_a_gradient_that_is_no_number_leaves_a_finite_memory(name: str, bad: float) -> None:
    trained = Trained(name)
    for times in (1.0, bad, 1.0):
        kept = copy.deepcopy(trained.net.state_dict())
        trained.step(times)
        trained.net.load_state_dict(kept)
        trained.optimizer.state.clear()
    for tensor in tensors(trained.lever.state_dict()):
        assert bool(tensor.isfinite().all())
