"""PPO: the clipped surrogate, which every other loss here starts from."""

from __future__ import annotations

import torch
from torch import Tensor

from trimtab.checks import non_negative, number
from trimtab.losses.policy.tokens import Aggregate, Info, as_mask, information, joined, log_ratio, spread


def check_bounds(low: float, high: float, dual: float | None) -> None:
    """`low` in [0, 1), `high` of 0 or more, `dual` above 1 or None; ValueError otherwise."""
    number("low", low, least=0, below=1)
    non_negative("high", high)
    if dual is not None:
        number("dual", dual, above=1)


def ppo(
    logp: Tensor,
    old_logp: Tensor,
    advantage: Tensor,
    mask: Tensor,
    *,
    low: float = 0.2,
    high: float = 0.2,
    dual: float | None = None,
    aggregate: Aggregate = "token",
) -> tuple[Tensor, Info]:
    """Clipped surrogate of PPO: `max(-A r, -A clip(r, 1 - low, 1 + high))`, `r = pi / pi_old`, of each token.

    A token beyond the bound that its advantage pushes it to has no gradient. `high` above `low` is "clip-higher" (DAPO).
    With `dual`, a token of negative advantage costs at most `dual * |A|`.

    Args:
        logp: log-probabilities of the tokens under the policy, shape (b, t); the only ones with a gradient.
        old_logp: the same under the policy that drew them.
        advantage: of tokens (b, t) or sequences (b,).
        mask: shape (b, t), 1 at the policy's own tokens.
        low, high: how far a ratio may go. Default 0.2 (PPO).
        dual: above 1, or None (default).
        aggregate: "token" (mean over tokens, default), "sequence" (mean over sequences of their means), "sequence_sum_norm"
            (sum by b times t), "sum" or "none" (shape (b, t)).

    Returns:
        The loss, and `clip` (share of tokens clipped), `kl`, `clamped` (tokens with a log-ratio beyond 20, held there).

    Raises:
        ValueError: shapes differ, a row has no token, or a setting is out of range.
        TypeError: log-probabilities that are no floating-point numbers.

    Reference: Schulman et al., arXiv 1707.06347; dual clip 1912.09729; clip-higher 2503.14476.

    Example:
        >>> logp = torch.tensor([[-1.0, -2.0]], requires_grad=True)
        >>> loss, info = ppo(logp, torch.tensor([[-1.0, -3.0]]), torch.tensor([1.0]), torch.ones(1, 2))
        >>> loss.backward()
        >>> round(loss.item(), 4), logp.grad.tolist(), info["clip"].item()
        (-1.1, [[-0.5, 0.0]], 0.5)
    """
    check_bounds(low, high, dual)
    kept = as_mask(mask, aggregate, logp=logp, old_logp=old_logp)
    difference = log_ratio(logp, old_logp, kept)
    gain = spread(advantage, kept, difference.dtype)
    ratio = difference.exp()
    plain, held = -gain * ratio, -gain * ratio.clamp(1 - low, 1 + high)
    losses = torch.maximum(plain, held)
    if dual is not None:
        losses = torch.where(gain < 0, torch.minimum(losses, -dual * gain), losses)
    return joined(losses, kept, aggregate), information(ratio, difference, held > plain, kept)
