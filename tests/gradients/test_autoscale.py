"""Autoscale: its rules against NumPy, what they promise, resume, and steps that are not finite."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from tests.gradients.samples import Array, as_array, check, from_units, gradients, sample, units
from trimtab.gradients import Autoscale
from trimtab.gradients.autoscale import LEAST_ALPHA, SCALE_RULES
from trimtab.parameters import Entry

FACTORS = (1.0, 3.0, 0.5, 0.7, 0.01, 2.0)


def alphas(rule: str, sigmas: list[float]) -> list[float]:
    """The rules as they are documented, over the whole history."""
    result = []
    for step, sigma in enumerate(sigmas, start=1):
        if rule == "running_max":
            result.append(sigma / max(sigmas[:step]))
        elif rule == "first":
            result.append(min(1.0, sigma / sigmas[0]))
        elif rule == "ema":
            weights = [0.01 * 0.99 ** (step - s) for s in range(1, step + 1)]
            average = sum(w * s for w, s in zip(weights, sigmas, strict=False)) / sum(weights)
            result.append(min(1.0, sigma / average))
        else:
            result.append(1 / (1 + max(0.0, math.log(sigmas[0] / sigma))))
    return result


def pooled_std(entries: list[Entry]) -> float:
    return float(np.concatenate([as_array(e.parameter.grad).ravel() for e in entries if e.parameter.ndim > 1]).std())


def step(factor: float, dtype: torch.dtype = torch.float32, large: bool = False) -> list[Entry]:
    entries = sample(seed=int(factor * 100), dtype=dtype)
    entries = [entry for entry in entries if large or not entry.name.startswith("large")]
    for entry in entries:
        entry.parameter.grad.mul_(factor)
    return entries


@pytest.mark.parametrize("granularity", ["tensor", "channel"])
@pytest.mark.parametrize("rule", SCALE_RULES)
def test_equals_numpy(rule, granularity):
    transform = Autoscale(rule, granularity)
    sigmas: list[float] = []
    seen = []
    for factor in FACTORS:
        entries = step(factor, large=True)
        sigmas.append(pooled_std(entries))
        alpha = alphas(rule, sigmas)[-1]
        expected: dict[str, Array] = {}
        for entry in entries:
            rows = units(entry, entry.parameter.grad)
            if granularity == "tensor":
                rows = rows.reshape(1, -1)
            if entry.parameter.ndim < 2 or not rows.size:
                expected[entry.name] = as_array(entry.parameter.grad)
            else:
                expected[entry.name] = from_units(entry, alpha * (rows - rows.mean(1, keepdims=True)))
        transform.before_step(entries)
        check(entries, expected)
        assert float(transform.signals()["sigma"]) == pytest.approx(sigmas[-1], rel=1e-5)
        assert float(transform.signals()["alpha"]) == pytest.approx(alpha, rel=1e-5)
        seen.append(alpha)
    assert min(seen) < 0.5
    assert max(seen) == 1.0


def test_alpha_is_one_for_all_layers_and_never_of_a_layer():
    transform = Autoscale()
    transform.before_step(step(1.0))
    entries = step(0.5)
    before = gradients(entries)
    transform.before_step(entries)
    alpha = float(transform.signals()["alpha"])
    ratios = [
        float(e.parameter.grad.std() / before[e.name].std())
        for e in entries
        if e.parameter.ndim > 1 and e.parameter.numel() > 1
    ]
    assert alpha < 1
    assert ratios == pytest.approx([alpha] * len(ratios), rel=1e-4)


@given(
    st.lists(st.floats(0, 1e30), min_size=1, max_size=12),
    st.sampled_from(SCALE_RULES),
)
@settings(max_examples=40, deadline=None)
def test_never_amplifies(sizes, rule):
    transform = Autoscale(rule)
    for size in sizes:
        parameter = nn.Parameter(torch.zeros(2, 3))
        parameter.grad = torch.tensor([[0.0, 1.0, -2.0], [0.5, 0.25, 3.0]]) * size
        before = parameter.grad.double().norm()
        transform.before_step([Entry("w", parameter, 0)])
        alpha = transform.signals()["alpha"].float()
        assert 0 < float(alpha) <= 1
        assert float(parameter.grad.double().norm()) <= float(before) * (1 + 1e-6)


def test_a_gradient_of_zeros_or_of_one_value_keeps_alpha_in_range():
    for rule in SCALE_RULES:
        transform = Autoscale(rule)
        for value in (0.0, 2.0):
            parameter = nn.Parameter(torch.zeros(2, 2))
            parameter.grad = torch.full((2, 2), value)
            transform.before_step([Entry("w", parameter, 0)])
            assert float(transform.signals()["alpha"]) == 1.0
            assert torch.equal(parameter.grad, torch.zeros(2, 2))
        parameter.grad = torch.tensor([[1.0, 0.0], [0.0, 0.0]])
        transform.before_step([Entry("w", parameter, 0)])
        parameter.grad = torch.zeros(2, 2)
        transform.before_step([Entry("w", parameter, 0)])
        assert LEAST_ALPHA <= float(transform.signals()["alpha"]) <= 1


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("rule", [*SCALE_RULES, lambda sigma, history: 1 / (1 + len(history))])
def test_a_step_that_is_not_finite_is_forgotten(rule, bad):
    clean, poisoned = Autoscale(rule), Autoscale(rule)
    for position, factor in enumerate(FACTORS):
        if position in (0, 3):
            entries = step(9.0)
            entries[2].parameter.grad[0, 0, 0, 0] = bad
            before = gradients(entries)
            poisoned.before_step(entries)
            assert float(poisoned.signals()["alpha"]) == 1.0
            spoiled = entries[2].name
            torch.testing.assert_close(entries[2].parameter.grad, before[spoiled], equal_nan=True)
            assert all(bool(e.parameter.grad.isfinite().all()) for e in entries if e.name != spoiled)
        one, other = step(factor), step(factor)
        clean.before_step(one)
        poisoned.before_step(other)
        assert torch.equal(clean.signals()["alpha"], poisoned.signals()["alpha"])
        for a, b in zip(one, other, strict=True):
            assert torch.equal(a.parameter.grad, b.parameter.grad)
    assert clean.state_dict() == poisoned.state_dict()


@pytest.mark.parametrize("rule", [*SCALE_RULES, lambda sigma, history: 1 / (1 + sum(history))])
def test_a_resumed_run_goes_on_as_if_it_had_not_stopped(rule):
    whole, first = Autoscale(rule), Autoscale(rule)
    for factor in FACTORS[:3]:
        whole.before_step(step(factor))
        first.before_step(step(factor))
    resumed = Autoscale(rule)
    resumed.load_state_dict(json.loads(json.dumps(first.state_dict())))
    for factor in FACTORS[3:]:
        one, other = step(factor), step(factor)
        whole.before_step(one)
        resumed.before_step(other)
        assert torch.equal(whole.signals()["alpha"], resumed.signals()["alpha"])
        for a, b in zip(one, other, strict=True):
            assert torch.equal(a.parameter.grad, b.parameter.grad)
    forgetful = Autoscale(rule)
    for transform in (whole, forgetful):
        transform.before_step(step(0.01))
    assert not torch.equal(whole.signals()["alpha"], forgetful.signals()["alpha"])


def test_a_saved_state_of_other_settings_is_refused():
    with pytest.raises(ValueError, match="does not fit"):
        Autoscale("ema").load_state_dict(Autoscale("log").state_dict())
    with pytest.raises(ValueError, match="does not fit"):
        Autoscale().load_state_dict({})


def test_a_function_gets_sigma_and_the_history_and_is_held_to_its_range():
    calls = []

    def rule(sigma, history):
        calls.append((sigma, list(history)))
        return 0.25

    transform = Autoscale(rule)
    for factor in FACTORS[:3]:
        transform.before_step(step(factor))
    sigmas = [pooled_std(step(factor)) for factor in FACTORS[:3]]
    assert calls[2][0] == pytest.approx(sigmas[2], rel=1e-5)
    assert calls[2][1] == pytest.approx(sigmas[:2], rel=1e-5)
    assert float(transform.signals()["alpha"]) == 0.25
    for wrong in (0.0, 1.5, float("nan")):
        with pytest.raises(ValueError, match=r"alpha in \(0, 1\]"):
            Autoscale(lambda sigma, history, wrong=wrong: wrong).before_step(step(1.0))


def test_settings_are_checked():
    with pytest.raises(ValueError, match="scale must be one of 'running_max', 'first', 'ema', 'log', got 'max'"):
        Autoscale("max")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="or a function"):
        Autoscale(0.5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="granularity"):
        Autoscale(granularity="row")  # type: ignore[arg-type]
    assert repr(Autoscale()) == "Autoscale(scale='log', granularity='tensor', min_ndim=2)"


class _Reads(TorchDispatchMode):
    """Counts how often a value is read back from a tensor, which on an accelerator would wait for it."""

    def __init__(self) -> None:
        super().__init__()
        self.number = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.number += function is torch.ops.aten._local_scalar_dense.default
        return function(*args, **(kwargs or {}))


def test_the_named_rules_read_no_value_back_and_a_function_one():
    expected = {**dict.fromkeys(SCALE_RULES, 0), "function": 1}
    for name, number in expected.items():
        transform = Autoscale((lambda sigma, history: 1.0) if name == "function" else name)
        for factor in FACTORS[:2]:
            with _Reads() as reads:
                transform.before_step(step(factor))
            assert reads.number == number, name
