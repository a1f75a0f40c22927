"""Stand-ins for verl, SkyRL and prime-rl: the registration and joining that their documentation describes, and nothing else.

verl 0.6: docs "Policy loss" and `core_algos`; SkyRL: docs "Custom algorithms" and `ppo_utils`; prime-rl: docs "Bring your own
algorithms". Written from these descriptions.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor


def install(monkeypatch: pytest.MonkeyPatch, path: str, **contents: Any) -> None:
    """A module of that path with these contents, for the length of a test."""
    names = path.split(".")
    for end in range(1, len(names) + 1):
        module = ModuleType(".".join(names[:end]))
        module.__path__ = []
        monkeypatch.setitem(sys.modules, module.__name__, module)
    vars(sys.modules[path]).update(contents)


class Verl:
    """Decorators that register, and the joining of tokens."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.losses: dict[str, Callable[..., Any]] = {}
        self.advantages: dict[str, Callable[..., Any]] = {}
        install(
            monkeypatch, "verl.trainer.ppo.core_algos", agg_loss=self.agg_loss,
            register_policy_loss=lambda name: lambda function: self.losses.setdefault(name, function),
            register_adv_est=lambda name: lambda function: self.advantages.setdefault(name, function),
        )  # fmt: skip

    @staticmethod
    def agg_loss(
        loss_mat: Tensor, loss_mask: Tensor, loss_agg_mode: str, dp_size: int = 1, batch_num_tokens: int | None = None,
        global_batch_size: int | None = None, loss_scale_factor: int | None = None,
    ) -> Tensor:  # fmt: skip
        summed = (loss_mat * loss_mask).sum(-1)
        filled = loss_mask.sum(-1) > 0
        sequences = filled.sum() if global_batch_size is None else global_batch_size
        if loss_agg_mode == "token-mean":
            return summed.sum() / (loss_mask.sum() if batch_num_tokens is None else batch_num_tokens) * dp_size
        if loss_agg_mode == "seq-mean-token-mean":
            return (summed / (loss_mask.sum(-1) + 1e-8) * filled).sum() / sequences * dp_size
        assert loss_agg_mode == "seq-mean-token-sum-norm"
        return (summed * filled).sum() / sequences * dp_size / (loss_scale_factor or loss_mask.shape[-1])

    def loss(self, name: str, mode: str, *arguments: Tensor, **more: Any) -> tuple[Tensor, dict[str, Any]]:
        """As the actor calls it."""
        logp, old, advantages, mask = arguments
        config = SimpleNamespace(**({"global_batch_info": more.pop("batch")} if "batch" in more else {}))
        found: tuple[Tensor, dict[str, Any]] = self.losses[name](
            old_log_prob=old,
            log_prob=logp,
            advantages=advantages,
            response_mask=mask,
            loss_agg_mode=mode,
            config=config,
            **more,
        )
        return found


class SkyRL:
    """Registries, and advantages that are scaled so that a sum gives the wanted mean."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.losses: dict[str, Callable[..., Any]] = {}
        self.advantages: dict[str, Callable[..., Any]] = {}
        install(
            monkeypatch, "skyrl.backends.skyrl_train.utils.ppo_utils",
            PolicyLossRegistry=SimpleNamespace(register=self.losses.__setitem__),
            AdvantageEstimatorRegistry=SimpleNamespace(register=self.advantages.__setitem__),
        )  # fmt: skip

    def loss(self, name: str, mode: str, *arguments: Tensor) -> tuple[Tensor, dict[str, Any]]:
        """As the trainer calls it."""
        logp, old, advantages, mask = arguments
        divisor: Tensor | float = 1.0
        if mode == "token_mean":
            divisor = mask.sum()
        elif mode == "sequence_mean":
            divisor = len(mask) * mask.sum(-1, keepdim=True)
        elif mode == "seq_mean_token_sum_norm":
            divisor = mask.numel()
        found: tuple[Tensor, dict[str, Any]] = self.losses[name](
            logp, old, advantages / divisor, config=SimpleNamespace(), loss_mask=mask, rollout_logprobs=None
        )
        return found


@dataclass
class LossInputs:
    trainer_logprobs: Tensor
    inference_logprobs: Tensor
    teacher_logprobs: Tensor | None
    advantages: Tensor
    loss_mask: Tensor


@dataclass
class LossOutputs:
    loss: Tensor
    metrics: dict[str, Tensor]


@dataclass
class AdvantageInputs:
    rewards: Tensor
    completion_lengths: Tensor


@dataclass
class AdvantageOutputs:
    advantages: Tensor


class PrimeRL:
    """One call for each sequence; the trainer sums and divides."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        install(monkeypatch, "prime_rl.trainer.rl.loss", LossInputs=LossInputs, LossOutputs=LossOutputs)
        install(monkeypatch, "prime_rl.orchestrator.advantage", AdvantageInputs=AdvantageInputs,
                AdvantageOutputs=AdvantageOutputs)  # fmt: skip
        for name in ("trainer", "trainer.rl", "trainer.rl.loss"):  # install() made the parents anew
            monkeypatch.setitem(sys.modules, f"prime_rl.{name}", sys.modules[f"prime_rl.{name}"])

    @staticmethod
    def loss(function: Callable[..., LossOutputs], scale: int, *arguments: Tensor, **kwargs: Any) -> Tensor:
        """The loss of a batch."""
        total = torch.zeros(())
        for logp, old, advantages, mask in zip(*arguments, strict=True):
            inputs = LossInputs(logp, old, None, advantages, mask.bool())
            total = total + function(inputs, **kwargs).loss
        return total / scale
