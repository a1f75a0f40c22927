"""StableMax: cross-entropy with a rational tail, so that no confident example's gradient becomes zero."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from trimtab.checks import one_of, whole
from trimtab.losses.reduction import REDUCTIONS, Reduction, check_targets, reduced

DTYPES = {"float64": torch.float64, "float32": torch.float32}


def _log_s(logits: Tensor) -> Tensor:
    """`log s(x)`, exact: `log(1 + x)` from 0 on, `-log(1 - x)` below; each branch sees only what is its own."""
    return torch.where(logits >= 0, torch.log1p(logits.clamp(min=0)), -torch.log1p(-logits.clamp(max=0)))


def stable_log_softmax(logits: Tensor, dim: int = -1) -> Tensor:
    """`log(s(x_i) / sum_j s(x_j))` with `s(x) = x + 1` from 0 on and `1 / (1 - x)` below.

    Not invariant to adding a number to all logits, as softmax is.

    Args:
        logits: of a real dtype, in which it is computed.
        dim: of the classes.

    Reference: Prieto et al., arXiv 2501.04697.

    Example:
        >>> stable_log_softmax(torch.tensor([1.0, 0.0])).exp()  # 2 and 1
        tensor([0.6667, 0.3333])
    """
    scale = _log_s(logits)
    return scale - torch.logsumexp(scale, dim, keepdim=True)


def stable_max_cross_entropy(
    logits: Tensor,
    targets: Tensor,
    *,
    reduction: Reduction = "mean",
    ignore_index: int = -100,
    dtype: torch.dtype = torch.float64,
) -> Tensor:
    """`-log(s(x_y) / sum_j s(x_j))`; see `StableMaxCrossEntropy`.

    Example:
        >>> stable_max_cross_entropy(torch.zeros(1, 2), torch.tensor([0]))  # ln 2
        tensor(0.6931, dtype=torch.float64)
    """
    check_targets(logits, targets)
    if dtype == torch.float64 and logits.device.type == "mps":  # which has none
        dtype = torch.float32
    found, kept = stable_log_softmax(logits.to(dtype), 1), targets != ignore_index
    own = found.gather(1, torch.where(kept, targets, 0).unsqueeze(1)).squeeze(1)
    return reduced(-own, kept, reduction)


class StableMaxCrossEntropy(nn.Module):
    """StableMax loss: cross-entropy in which e^x is replaced by a function that grows like x.

    `s(x) = x + 1 (x >= 0), 1 / (1 - x) (x < 0)`, loss `-log(s(x_y) / sum_j s(x_j))`. A confident logit is not absorbed in
    the sum, so the gradient of an example that is right stays above zero and a network without weight decay goes on learning.

    Args:
        reduction: "mean" (default), "sum" or "none", as in torch.
        dtype: in which it is computed: "float64" (default, authors' code; float32 where the device has none) or "float32".
        ignore_index: targets that do not count. Default -100.

    Raises:
        ValueError: an unknown word, or (at the call) shapes that do not fit.
        TypeError: (at the call) targets are no classes. Class weights and label smoothing are not offered: the loss has no
            published form with them.

    Computed by logarithms (`log s = log(1 + x)` or `-log(1 - x)`), which is exact; the authors add 1e-30 to a denominator,
    which leaves the gradient NaN at x = 1 in float32.

    Reference: Prieto et al., arXiv 2501.04697.

    Example:
        >>> loss = StableMaxCrossEntropy()
        >>> loss(torch.tensor([[3.0, 0.0], [0.0, 3.0]]), torch.tensor([0, 0]))
        tensor(0.9163, dtype=torch.float64)
    """

    def __init__(self, reduction: Reduction = "mean", dtype: str = "float64", ignore_index: int = -100) -> None:
        super().__init__()
        self.reduction: Reduction = reduction
        one_of("reduction", reduction, REDUCTIONS)
        self.dtype = one_of("dtype", dtype, DTYPES)
        self.ignore_index = whole("ignore_index", ignore_index)

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Loss of logits (examples, classes, ...) and classes (examples, ...)."""
        return stable_max_cross_entropy(
            logits, targets, reduction=self.reduction, ignore_index=self.ignore_index, dtype=DTYPES[self.dtype]
        )

    def extra_repr(self) -> str:
        """Reduction and dtype."""
        return f"reduction={self.reduction!r}, dtype={self.dtype!r}"
