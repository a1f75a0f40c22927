"""EMA: the exponential moving average of the weights."""

from __future__ import annotations

from typing import Any

from torch.optim.swa_utils import get_ema_multi_avg_fn

from trimtab.averaging.base import Buffers, Update, WeightAverage
from trimtab.checks import below_one


class EMA(WeightAverage):
    """`average <- d average + (1 - d) w` after every step, and the network holds the average at the end.

    With `warmup`, `d = min(decay, (1 + n) / (10 + n))` after n steps in the average: a short run then averages over its last
    tenth, where 0.999 alone would still hold a third of the weights of 1,000 steps ago. The first step's weights begin it.

    Args:
        decay: d, in [0, 1). Default 0.999 [ours], an average over the last 1,000 steps or so.
        warmup: smaller decay while there are few steps. Default True [ours], by TensorFlow's rule.
        buffers: "recalibrate" (default [ours]): estimate BatchNorm's statistics anew at the end; "average": average
            floating-point buffers too.

    Raises:
        ValueError: a decay outside [0, 1), an unknown word for the buffers; (at attach) buffers to average and no model.

    Source: Polyak, Juditsky 1992; the rule of warm-up is that of tf.train.ExponentialMovingAverage; against pruning and
    quantisation see arXiv 2510.06213.

    Example:
        >>> import torch, trimtab
        >>> weight = torch.nn.Parameter(torch.tensor([1.0]))
        >>> optimizer = torch.optim.SGD([weight], lr=1.0)
        >>> handle = trimtab.attach(optimizer, EMA(decay=0.5, warmup=False))
        >>> for _ in range(2):
        ...     weight.grad = torch.ones(1)
        ...     optimizer.step()
        >>> handle.finish()  # True: BatchNorm's statistics are of other weights
        True
        >>> weight.item()
        -0.5
    """

    def __init__(self, decay: float = 0.999, *, warmup: bool = True, buffers: Buffers = "recalibrate") -> None:
        super().__init__(buffers)
        self.decay = below_one("decay", decay)
        self.warmup = warmup

    def settings(self) -> dict[str, Any]:
        """Decay and warm-up."""
        return {"decay": self.decay, "warmup": self.warmup}

    def update(self) -> Update:
        """torch's, at the decay of this step."""
        steps = self.averaged
        decay = min(self.decay, (1 + steps) / (10 + steps)) if self.warmup else self.decay
        found: Update = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
        return found
