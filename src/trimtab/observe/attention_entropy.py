"""How evenly attention looks around: the entropy of its weights."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from trimtab.observe.meters.attention import AttentionStatistics


def attention_entropy(weights: Tensor) -> Tensor:
    """`-sum_s a_s log a_s` in nats, mean over all rows; `0 log 0 = 0`, and a row that sees no key does not count.

    Args:
        weights: shape (..., keys), sums 1: the softmax.

    Returns:
        Shape (), float32 at least: 0 where every query looks at one key, `ln(keys)` where at all alike.

    Example:
        >>> attention_entropy(torch.tensor([[0.5, 0.5], [1.0, 0.0]]))
        tensor(0.3466)
    """
    wide = weights.detach().to(torch.promote_types(weights.dtype, torch.float32))
    found: Tensor = -torch.special.xlogy(wide, wide).sum(-1).nanmean()
    return found


class AttentionEntropy(AttentionStatistics):
    """The entropy of every attention layer in one forward pass; listens to the same calls as `AttentionStatistics`.

    Keeps, for each layer, the sum of entropies of its calls and their number.
    """

    def entropies(self) -> dict[str, float]:
        """Of each module in which attention ran, since the last call; mean over its calls."""
        found, self._seen = self._seen, {}
        return {name: float(total / calls) for name, (total, calls) in found.items()}

    @staticmethod
    def _of_attention(
        query: Tensor, key: Tensor, mask: Tensor | None = None, *, causal: bool = False, scale: float | None = None
    ) -> Tensor:
        """Entropy of the weights that the fused kernel does not return, computed once more."""
        query, key = (one.detach().to(torch.promote_types(one.dtype, torch.float32)) for one in (query, key))
        if key.ndim > 2 and key.shape[-3] != query.shape[-3]:
            key = key.repeat_interleave(query.shape[-3] // key.shape[-3], -3)
        logits = query @ key.transpose(-1, -2) * (1 / math.sqrt(query.shape[-1]) if scale is None else scale)
        if mask is not None:
            logits = logits.masked_fill(~mask, -math.inf) if mask.dtype is torch.bool else logits + mask
        if causal:
            ones = torch.ones(logits.shape[-2:], dtype=torch.bool, device=logits.device)
            logits = logits.masked_fill(~ones.tril(), -math.inf)
        return attention_entropy(logits.softmax(-1))

    def _of_softmax(self, logits: Tensor) -> Tensor:
        return attention_entropy(logits.detach().float().softmax(-1))

    def _keep(self, found: Tensor) -> None:
        name = self._inside[-1][0] if self._inside else "(model)"
        new = torch.stack([found, torch.ones_like(found)])
        self._seen[name] = self._seen[name] + new if name in self._seen else new
