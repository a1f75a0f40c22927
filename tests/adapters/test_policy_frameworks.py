"""Losses of policies in verl, SkyRL and prime-rl: the same gradient whatever they call the joining of tokens."""

from __future__ import annotations

import ast
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import trimtab.adapters
import trimtab.adapters.prime_rl
import trimtab.adapters.skyrl
import trimtab.adapters.verl
from tests.adapters.policy_frameworks import AdvantageInputs, LossInputs, PrimeRL, SkyRL, Verl
from tests.losses.test_cross_entropies import wave
from trimtab.losses.policy import batch_advantage, gppo, group_advantage, ppo

OLD = wave(3, 5, seed=2, scale=0.5) - 1
GAIN = wave(3, 5, seed=3)
MASK = (torch.arange(5)[None] < torch.tensor([5, 2, 3])[:, None]).long()
LOSSES = {"gppo": gppo, "ppo": functools.partial(ppo, low=0.1, high=0.1)}


def gradient(function: Callable[[Tensor], Tensor]) -> Tensor:
    logp = (wave(3, 5, seed=1) - 1).requires_grad_()
    (found,) = torch.autograd.grad(function(logp), logp)
    return found


def expected(loss: Any, aggregate: str) -> Tensor:
    return gradient(lambda logp: loss(logp, OLD, GAIN, MASK, aggregate=aggregate)[0])


def same(found: Tensor, wanted: Tensor) -> None:
    assert wanted.abs().max() > 1e-3
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize(
    ("mode", "aggregate"),
    [("token-mean", "token"), ("seq-mean-token-mean", "sequence"), ("seq-mean-token-sum-norm", "sequence_sum_norm")],
)
def test_verl(monkeypatch: pytest.MonkeyPatch, name: str, mode: str, aggregate: str) -> None:
    verl = Verl(monkeypatch)
    trimtab.adapters.verl.register_loss(name, LOSSES[name])
    wanted = expected(LOSSES[name], aggregate)
    same(gradient(lambda logp: verl.loss(name, mode, logp, OLD, GAIN, MASK)[0]), wanted)
    tokens, rows = int(MASK.sum()), len(MASK)  # in micro-batches, divided by the whole batch's counts

    def parts(logp: Tensor) -> Tensor:
        batch = {"batch_num_tokens": tokens, "global_batch_size": rows}
        each = zip(logp, OLD, GAIN, MASK, strict=True)
        return sum(verl.loss(name, mode, *(one[None] for one in row), batch=batch)[0] for row in each)  # type: ignore[return-value]

    same(gradient(parts), wanted)
    weights = wave(3, 5, seed=7).abs()
    weighted = gradient(lambda logp: verl.loss(name, mode, logp, OLD, GAIN, MASK, rollout_is_weights=weights)[0])
    same(weighted, wanted * weights)
    _, numbers = verl.loss(name, mode, wave(3, 5, seed=1) - 1, OLD, GAIN, MASK)
    assert 0 < numbers["actor/clip"] < 1
    empty = MASK.clone()
    empty[1] = 0  # a row of padding, as frameworks have them
    assert torch.isfinite(verl.loss(name, mode, OLD.clone(), OLD, GAIN, empty)[0])


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize(
    ("mode", "aggregate"),
    [
        ("token_mean", "token"),
        ("sequence_mean", "sequence"),
        ("seq_mean_token_sum_norm", "sequence_sum_norm"),
        ("", "sum"),
    ],
)
def test_skyrl(monkeypatch: pytest.MonkeyPatch, name: str, mode: str, aggregate: str) -> None:
    skyrl = SkyRL(monkeypatch)
    trimtab.adapters.skyrl.register_loss(name, LOSSES[name])
    same(gradient(lambda logp: skyrl.loss(name, mode, logp, OLD, GAIN, MASK)[0]), expected(LOSSES[name], aggregate))
    _, numbers = skyrl.loss(name, mode, wave(3, 5, seed=1) - 1, OLD, GAIN, MASK)
    assert 0 < numbers["clip_ratio"] < 1
    plain = skyrl.losses[name](OLD, OLD, GAIN, config=None)[0]  # without a mask all tokens count
    assert plain.item() == pytest.approx(-GAIN.sum().item())


@pytest.mark.parametrize("name", LOSSES)
def test_prime_rl(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    prime_rl = PrimeRL(monkeypatch)
    ours = trimtab.adapters.prime_rl
    settings = {"low": 0.1, "high": 0.1} if name == "ppo" else {}
    for scale, aggregate in ((int(MASK.sum()), "token"), (1, "sum")):
        found = gradient(
            lambda logp, by=scale: prime_rl.loss(ours.loss, by, logp, OLD, GAIN, MASK, name=name, **settings)
        )
        same(found, expected(LOSSES[name], aggregate))
    row = LossInputs(OLD[0], OLD[0], None, GAIN[0], MASK[0].bool())
    assert set(ours.loss(row).metrics) == {"clip", "kl", "clamped"}
    row.loss_weights = torch.full((5,), 2.0)  # type: ignore[attr-defined]
    assert ours.loss(row).loss.item() == pytest.approx(-2 * GAIN[0].sum().item())
    with pytest.raises(ValueError, match="name must be one of 'ppo', 'gppo', got 'grpo'"):
        ours.loss(row, "grpo")


def test_advantages_in_all_three(monkeypatch: pytest.MonkeyPatch) -> None:
    rewards, mask = torch.tensor([1.0, 0.0, 0.0, 1.0, 1.0, 1.0]), torch.tensor([[1, 1, 0]] * 6)
    index = np.array(["x", "x", "x", "y", "y", "y"])
    by_token = torch.zeros(6, 3)
    by_token[:, 1] = rewards  # an outcome is the reward of the last token
    verl, skyrl, _ = Verl(monkeypatch), SkyRL(monkeypatch), PrimeRL(monkeypatch)
    for name, function in (("group", group_advantage), ("batch", batch_advantage)):
        trimtab.adapters.verl.register_advantage(name, function)
        trimtab.adapters.skyrl.register_advantage(name, function)
        wanted = function(rewards, index)
        called: dict[str, Any] = {
            "token_level_rewards": by_token,
            "response_mask": mask,
            "index": index,
            "config": None,
        }
        for found, returns in (
            verl.advantages[name](**called),
            skyrl.advantages[name](**called, values=None, gamma=1.0),
        ):
            torch.testing.assert_close(found, wanted[:, None] * mask)
            torch.testing.assert_close(returns, found)
        inputs = AdvantageInputs(rewards.reshape(2, 3), torch.full((2, 3), 2))
        found = trimtab.adapters.prime_rl.advantage(inputs, name).advantages
        torch.testing.assert_close(found, wanted.reshape(2, 3))


@pytest.mark.parametrize("name", ["verl", "skyrl", "prime_rl"])
def test_an_adapter_is_at_most_twenty_statements(name: str) -> None:
    source = (Path(trimtab.adapters.__file__).parent / f"{name}.py").read_text(encoding="utf-8")
    functions = [node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)]
    statements = [node for function in functions for node in ast.walk(function) if isinstance(node, ast.stmt)]
    documented = [node for node in statements if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)]
    assert len(statements) - len(documented) <= 20
