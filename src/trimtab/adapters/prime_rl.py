"""Policy losses and advantages in prime-rl: named in its configuration by `import_path` and `kwargs`.

Against the interface of its "Bring your own algorithms".
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prime_rl.orchestrator.advantage import AdvantageInputs, AdvantageOutputs
    from prime_rl.trainer.rl.loss import LossInputs, LossOutputs

from trimtab.checks import one_of
from trimtab.losses import policy

LOSSES = {"ppo": policy.ppo, "gppo": policy.gppo}
ADVANTAGES: dict[str, Any] = {"group": policy.group_advantage, "batch": policy.batch_advantage}


def loss(inputs: LossInputs, name: str = "gppo", **settings: Any) -> LossOutputs:
    """One sequence's sum: `[trainer.loss] type = "custom"`, `import_path = "trimtab.adapters.prime_rl.loss"`."""
    from prime_rl.trainer.rl.loss import LossOutputs

    rows = (inputs.trainer_logprobs, inputs.inference_logprobs, inputs.advantages, inputs.loss_mask)
    function = LOSSES[one_of("name", name, LOSSES)]
    each, info = function(*(row[None] for row in rows), aggregate="none", **settings)
    weights = getattr(inputs, "loss_weights", None)
    return LossOutputs(loss=(each[0] if weights is None else each[0] * weights).sum(), metrics=dict(info))


def advantage(inputs: AdvantageInputs, name: str = "group", **settings: Any) -> AdvantageOutputs:
    """Of the rollouts of many prompts: `import_path = "trimtab.adapters.prime_rl.advantage"`."""
    from prime_rl.orchestrator.advantage import AdvantageOutputs

    groups, members = inputs.rewards.shape
    function = ADVANTAGES[one_of("name", name, ADVANTAGES)]
    found = function(inputs.rewards.flatten(), [at // members for at in range(groups * members)], **settings)
    return AdvantageOutputs(advantages=found.reshape(groups, members))
