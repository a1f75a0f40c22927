"""GPPO: PPO's value, but clipped tokens keep a gradient of bounded size."""

from __future__ import annotations

import torch
from torch import Tensor

from trimtab.losses.policy.ppo import check_bounds
from trimtab.losses.policy.tokens import Aggregate, Info, as_mask, information, joined, log_ratio, spread


def gppo(
    logp: Tensor,
    old_logp: Tensor,
    advantage: Tensor,
    mask: Tensor,
    *,
    low: float = 0.2,
    high: float = 0.28,
    dual: float | None = 3.0,
    aggregate: Aggregate = "token",
) -> tuple[Tensor, Info]:
    """Gradient-preserving clipping: bounds `(1 - low) r / sg(r)` and `(1 + high) r / sg(r)` in the place of PPO's constants.

    The value is PPO's. A clipped token's gradient by its log-probability is `-A (1 + high)` or `-A (1 - low)`, where PPO has
    none: it goes on exploring, and goes on unlearning what is bad. With `dual`, a token of negative advantage whose loss lies
    above `dual * |A|` costs that and has no gradient.

    Args:
        logp, old_logp, advantage, mask, aggregate: as of `ppo`.
        low, high: default 0.2 and 0.28 (authors' code).
        dual: above 1, or None. Default 3 (authors' code).

    Returns:
        The loss, and `clip`, `kl`, `clamped` as of `ppo`.

    Raises:
        ValueError: shapes differ, a row has no token, or a setting is out of range.
        TypeError: log-probabilities that are no floating-point numbers.

    Reference: Klear-Reasoner, arXiv 2508.07629.

    Example:
        >>> logp = torch.tensor([[-1.0, -2.0]], requires_grad=True)
        >>> loss, _ = gppo(logp, torch.tensor([[-1.0, -3.0]]), torch.tensor([1.0]), torch.ones(1, 2))
        >>> loss.backward()
        >>> round(loss.item(), 4), [round(one, 4) for one in logp.grad[0].tolist()]  # PPO: [-0.5, 0]
        (-1.14, [-0.5, -0.64])
    """
    check_bounds(low, high, dual)
    kept = as_mask(mask, aggregate, logp=logp, old_logp=old_logp)
    difference = log_ratio(logp, old_logp, kept)
    with torch.no_grad():
        gain = spread(advantage, kept, difference.dtype)
        ratio = difference.exp()
        plain, held = -gain * ratio, -gain * ratio.clamp(1 - low, 1 + high)
        value = torch.maximum(plain, held)
    losses = value * (difference - difference.detach()).exp()
    if dual is not None:
        most = -dual * gain
        losses = torch.where((gain < 0) & (value > most), most, losses)
    return joined(losses, kept, aggregate), information(ratio, difference.detach(), held > plain, kept)
