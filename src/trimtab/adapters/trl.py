"""TRL's GRPO trainer with a policy loss and an advantage of your choice."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

try:
    from trl import GRPOTrainer
except ModuleNotFoundError as error:
    raise ImportError("the trainer needs TRL: pip install trl") from error

from trimtab.checks import one_of
from trimtab.losses.policy.advantages import group_advantage
from trimtab.losses.policy.gppo import gppo

JOINS = ("grpo", "bnpo", "dr_grpo", "dapo")
LEFT_OUT = {
    "importance_sampling_level": "token", "top_entropy_quantile": 1.0, "off_policy_mask_threshold": None, "entropy_coef": 0.0,
    "use_adaptive_entropy": False, "use_liger_kernel": False,
}  # fmt: skip
"""Settings of TRL's own loss, with the only value that is taken."""


class PolicyTrainer(GRPOTrainer):  # type: ignore[misc]
    """`trl.GRPOTrainer` whose tokens' loss and whose advantage are functions.

    TRL goes on generating, scoring, logging, and joining tokens by `loss_type` ("grpo": mean over sequences of their means,
    "bnpo": mean over tokens, "dr_grpo": sum by a constant, "dapo": mean over the tokens of the whole step), adding its `beta`
    times KL to the reference and, with vLLM, its importance weights.

    Args:
        policy_loss: `policy_loss(logp, old_logp, advantage, mask, aggregate="none")` gives the losses (b, t) and a dictionary
            of numbers, which are logged. Default `trimtab.losses.policy.gppo`. Other settings by `functools.partial`;
            `epsilon`, `epsilon_high` and `delta` of the config are not read.
        advantage: `advantage(rewards, groups)` of all rollouts of a step, over all processes. Default `group_advantage`;
            `scale_rewards` of the config is not read. A rollout that no reward function scored has advantage 0.
        arguments, settings: those of `GRPOTrainer`.

    Raises:
        ValueError: the config asks for something that only TRL's own loss does.

    Example:
        >>> PolicyTrainer.__mro__[1].__name__
        'GRPOTrainer'
    """

    def __init__(
        self,
        *arguments: Any,
        policy_loss: Callable[..., tuple[Tensor, dict[str, Tensor]]] = gppo,
        advantage: Callable[[Tensor, Tensor], Tensor] = group_advantage,
        **settings: Any,
    ) -> None:
        super().__init__(*arguments, **settings)
        self.policy_loss, self.advantage = policy_loss, advantage
        self._scored: Tensor | None = None
        one_of("loss_type", self.loss_type, JOINS)
        for name, taken in LEFT_OUT.items():
            if (value := getattr(self.args, name, taken)) != taken:
                raise ValueError(
                    f"PolicyTrainer takes {name}={taken!r} only, got {value!r}: it belongs to TRL's own loss"
                )

    def _calculate_rewards(self, *arguments: Any, **settings: Any) -> Tensor:
        """TRL's rewards (rollouts of all processes, reward functions), remembered."""
        self._scored = super()._calculate_rewards(*arguments, **settings)
        return self._scored

    def _generate_and_score_completions(self, inputs: Any) -> dict[str, Any]:
        """TRL's rollouts with our advantage."""
        output: dict[str, Any] = super()._generate_and_score_completions(inputs)
        assert self._scored is not None
        scored, self._scored = self._scored, None
        known = ~scored.isnan().all(1)
        rewards = (scored * self.reward_weights.to(scored.device)).nansum(1)
        members = self.num_generations if self.model.training else self.num_generations_eval
        groups = torch.arange(len(rewards), device=rewards.device) // members
        found = torch.zeros_like(rewards)
        if bool(known.any()):
            found[known] = self.advantage(rewards[known], groups[known]).to(found.dtype)
        own = len(output["advantages"])
        output["advantages"] = found[self.accelerator.process_index * own :][:own].to(output["advantages"].device)
        return output

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        """The policy loss on this part of the batch."""
        mode = "train" if self.model.training else "eval"
        drawn = inputs["completion_ids"]
        mask = inputs["completion_mask"] * inputs.get("tool_mask", 1)
        forward = ("pixel_values", "image_grid_thw", "num_images", "pixel_attention_mask", "spatial_shapes", "num_tiles",
                   "image_sizes", "token_type_ids", "mm_token_type_ids", "image_position_ids")  # fmt: skip
        logp, entropies, _ = self._get_per_token_logps_and_entropies(
            model, torch.cat([inputs["prompt_ids"], drawn], 1),
            torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], 1), drawn.shape[1], compute_entropy=True,
            **{name: inputs[name] for name in forward if name in inputs},
        )  # fmt: skip
        old = inputs.get("old_per_token_logps")
        old = logp.detach() if old is None else old
        each, info = self.policy_loss(logp, old, inputs["advantages"], mask, aggregate="none")
        each = each * inputs.get("importance_sampling_ratio", 1)
        if self.beta != 0.0:
            apart = inputs["ref_per_token_logps"] - logp
            kl = apart.exp() - apart - 1
            kl = kl * (logp - old).exp() if getattr(self.args, "use_bias_correction_kl", False) else kl
            each = each + self.beta * torch.where(mask != 0, kl, 0)
        for name, value in {**info, "entropy": (entropies * mask).sum() / mask.sum().clamp(min=1)}.items():
            gathered = self.accelerator.gather(value.detach().float().reshape(1).to(logp.device))
            self._metrics[mode][name if name == "entropy" else f"policy/{name}"].append(gathered.nanmean().item())
        return self._joined(each, mask, inputs, mode)

    def _joined(self, each: Tensor, mask: Tensor, inputs: dict[str, Any], mode: str) -> Tensor:
        """As TRL joins tokens, over accumulated parts and processes."""
        parts = self.current_gradient_accumulation_steps if mode == "train" else 1.0
        found: Tensor
        if self.loss_type == "grpo":
            found = (each.sum(1) / mask.sum(1).clamp(min=1)).mean() / parts
        elif self.loss_type == "bnpo":
            found = each.sum() / mask.sum().clamp(min=1) / parts
        elif self.loss_type == "dr_grpo":
            found = each.sum() / (len(each) * self.max_completion_length) / parts
        else:  # "dapo": the tokens of the whole step
            tokens = inputs["num_items_in_batch"].clamp(min=1) / self.accelerator.num_processes
            found = each.sum() / (tokens * parts / self.args.steps_per_generation if mode == "train" else tokens)
        return found
