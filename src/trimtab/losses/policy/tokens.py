"""What every policy loss shares: shapes, the log-ratio of two policies, and how tokens become one number."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from trimtab.checks import one_of

Aggregate = Literal["token", "sequence", "sequence_sum_norm", "sum", "none"]
"""How the losses (b, t) of tokens become one number: mean over tokens; mean over sequences of their means; sum over tokens by
b times t (a constant where batches have one width); sum; not at all."""
LIMIT = 20.0
"""Log-ratios are held within this size [ours, as verl and SkyRL]; beyond it there is no gradient."""
Info = dict[str, Tensor]


def as_mask(mask: Tensor, aggregate: str, **others: Tensor) -> Tensor:
    """The mask as booleans, after all checks.

    Args:
        mask: shape (b, t), 1 at the tokens of the policy's own, 0 at prompt and padding.
        aggregate: see `Aggregate`; with "none" a row without a token is let through, since the caller joins the tokens.
        others: tensors of the mask's shape.

    Raises:
        ValueError: shapes differ, the mask holds something else than 0 and 1, or a row has no token.
        TypeError: one of `others` is not floating-point.
    """
    one_of("aggregate", aggregate, get_args(Aggregate))
    for name, tensor in others.items():
        if not tensor.is_floating_point():
            raise TypeError(f"{name} must be floating-point, got {tensor.dtype}")
        if mask.ndim != 2 or tensor.shape != mask.shape:
            raise ValueError(
                f"{name} and mask must be of one shape (sequences, tokens), got {tuple(tensor.shape)} and {tuple(mask.shape)}"
            )
    if mask.ndim != 2:
        raise ValueError(f"the mask must have the shape (sequences, tokens), got {tuple(mask.shape)}")
    if mask.dtype is not torch.bool:
        if not bool(((mask == 0) | (mask == 1)).all()):
            raise ValueError("the mask must hold 0 and 1 only")
        mask = mask != 0
    if aggregate != "none" and not bool((filled := mask.any(1)).all()):
        row = int((~filled).nonzero()[0])
        raise ValueError(f"row {row} of the mask has no token: leave such rows out, as in logp[mask.any(1)]")
    return mask


def log_ratio(logp: Tensor, old_logp: Tensor, mask: Tensor) -> Tensor:
    """`log pi / pi_old` of each token in float32 at least, 0 where masked, held within +-LIMIT."""
    wide = torch.promote_types(logp.dtype, torch.float32)
    return torch.where(mask, logp.to(wide) - old_logp.detach().to(wide), 0).clamp(-LIMIT, LIMIT)


def spread(advantage: Tensor, mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Advantages of tokens, 0 where masked, from those of tokens (b, t) or of sequences (b,).

    Raises:
        ValueError: another shape.
    """
    if advantage.ndim == 1:
        advantage = advantage[:, None]
    if advantage.shape not in ((len(mask), 1), mask.shape):
        raise ValueError(
            f"advantage must have the shape ({len(mask)},) or {tuple(mask.shape)}, got {tuple(advantage.shape)}"
        )
    return torch.where(mask, advantage.detach().to(dtype), 0)


def joined(losses: Tensor, mask: Tensor, aggregate: str) -> Tensor:
    """The losses of tokens, 0 where masked, as one number.

    Example:
        >>> losses, mask = torch.tensor([[1.0, 3.0], [5.0, 0.0]]), torch.tensor([[True, True], [True, False]])
        >>> [joined(losses, mask, how).item() for how in ("token", "sequence", "sequence_sum_norm", "sum")]
        [3.0, 3.5, 2.25, 9.0]
    """
    if aggregate == "none":
        return losses
    if aggregate == "sequence":
        return (losses.sum(1) / mask.sum(1)).mean()
    total = losses.sum()
    if aggregate == "sum":
        return total
    return total / (mask.sum() if aggregate == "token" else mask.numel())


@torch.no_grad()
def information(ratio: Tensor, log_ratio: Tensor, clipped: Tensor, mask: Tensor) -> Info:
    """`clip`: share of tokens clipped; `kl`: KL(old, new), by `r - 1 - log r`; `clamped`: tokens beyond LIMIT.

    All 0 where there is no token.
    """
    count = mask.sum().clamp(min=1)
    return {
        "clip": clipped.sum() / count,
        "kl": (ratio - 1 - log_ratio).sum() / count,
        "clamped": (log_ratio.abs() == LIMIT).sum(),
    }
