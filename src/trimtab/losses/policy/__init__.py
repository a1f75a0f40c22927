"""Losses, advantages and rewards of policies: pure functions of log-probabilities, rewards and masks, one file each."""

from trimtab.losses.policy.advantages import batch_advantage, group_advantage
from trimtab.losses.policy.dot import dot_lengths
from trimtab.losses.policy.drpo import drpo
from trimtab.losses.policy.dynamic_dpo import borderline, dynamic_dpo
from trimtab.losses.policy.g2rl import g2rl, gradient_features
from trimtab.losses.policy.gppo import gppo
from trimtab.losses.policy.ppo import ppo
from trimtab.losses.policy.tokens import Aggregate
from trimtab.losses.policy.void_turns import has_code_or_answer, void_turn_mask

__all__ = [
    "Aggregate",
    "batch_advantage",
    "borderline",
    "dot_lengths",
    "drpo",
    "dynamic_dpo",
    "g2rl",
    "gppo",
    "gradient_features",
    "group_advantage",
    "has_code_or_answer",
    "ppo",
    "void_turn_mask",
]
