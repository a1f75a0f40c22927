"""Policy losses and advantages in verl: registered under a name that its configuration then uses.

Against verl 0.6's `verl.trainer.ppo.core_algos`; verl is imported when something is registered.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor


def register_loss(name: str, loss: Callable[..., Any], **settings: Any) -> None:
    """Register `ppo`, `gppo` or another loss of tokens: `actor.policy_loss.loss_mode: NAME`; verl joins the tokens."""
    from verl.trainer.ppo.core_algos import agg_loss, register_policy_loss

    def policy_loss(
        old_log_prob: Tensor, log_prob: Tensor, advantages: Tensor, response_mask: Tensor,
        loss_agg_mode: str = "token-mean", config: Any = None, rollout_is_weights: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, float]]:  # fmt: skip
        each, info = loss(log_prob, old_log_prob, advantages, response_mask, aggregate="none", **settings)
        each = each if rollout_is_weights is None else each * rollout_is_weights
        batch = getattr(config, "global_batch_info", None) or {}
        found = agg_loss(loss_mat=each, loss_mask=response_mask, loss_agg_mode=loss_agg_mode, **batch)
        return found, {f"actor/{key}": value.item() for key, value in info.items()}

    register_policy_loss(name)(policy_loss)


def register_advantage(name: str, advantage: Callable[..., Tensor], **settings: Any) -> None:
    """Register `group_advantage` or `batch_advantage`: `algorithm.adv_estimator: NAME`."""
    from verl.trainer.ppo.core_algos import register_adv_est

    def estimator(
        token_level_rewards: Tensor, response_mask: Tensor, index: Any, config: Any = None, **others: Any
    ) -> tuple[Tensor, Tensor]:
        found = advantage(token_level_rewards.sum(-1), index, **settings)[:, None] * response_mask
        return found, found

    register_adv_est(name)(estimator)
