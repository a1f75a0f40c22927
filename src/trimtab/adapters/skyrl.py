"""Policy losses and advantages in SkyRL: registered under a name that its configuration then uses.

Against the registries of `skyrl.backends.skyrl_train.utils.ppo_utils`; SkyRL is imported when something is registered.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor


def register_loss(name: str, loss: Callable[..., Any], **settings: Any) -> None:
    """Register `ppo`, `gppo` or another loss of tokens: `trainer.algorithm.policy_loss_type=NAME`.

    SkyRL has scaled the advantages by its `loss_reduction` already, so that tokens are summed.
    """
    from skyrl.backends.skyrl_train.utils.ppo_utils import PolicyLossRegistry

    def policy_loss(
        log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor, config: Any, loss_mask: Tensor | None = None,
        rollout_logprobs: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, float]]:  # fmt: skip
        mask = log_probs.new_ones(log_probs.shape) if loss_mask is None else loss_mask
        each, info = loss(log_probs, old_log_probs, advantages, mask, aggregate="none", **settings)
        return each.sum(), {"clip_ratio": info["clip"].item(), "policy_kl_to_old": info["kl"].item()}

    PolicyLossRegistry.register(name, policy_loss)


def register_advantage(name: str, advantage: Callable[..., Tensor], **settings: Any) -> None:
    """Register `group_advantage` or `batch_advantage`: `trainer.algorithm.advantage_estimator=NAME`."""
    from skyrl.backends.skyrl_train.utils.ppo_utils import AdvantageEstimatorRegistry

    def estimator(
        token_level_rewards: Tensor, response_mask: Tensor, index: Any, **others: Any
    ) -> tuple[Tensor, Tensor]:
        found = advantage(token_level_rewards.sum(-1), index, **settings)[:, None] * response_mask
        return found, found

    AdvantageEstimatorRegistry.register(name, estimator)
