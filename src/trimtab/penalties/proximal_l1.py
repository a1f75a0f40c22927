"""ProximalL1: L1 as a soft threshold after the step, decoupled from the gradient."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from trimtab.checks import non_negative
from trimtab.parameters import Rule
from trimtab.penalties.base import by_device_and_dtype
from trimtab.penalties.decoupled import DecoupledPenalty, Stepped, rates_of
from trimtab.penalties.shrinking import Shrinking


class ProximalL1(DecoupledPenalty):
    """After the step `w <- sign(w) max(|w| - lr strength, 0)`: the proximal step of `strength * sum |w|`.

    Weights that it reaches are exactly zero until a gradient moves them again; `L1` lets them swing about zero.

    What the strength means: without momentum each step pulls as `L1` of the same strength does. Momentum m multiplies the
    pull of a penalty in the gradient by 1 / (1 - m) in the long run, so at 0.9 this one needs ten times the strength of `L1`.
    Adam divides the gradient of `L1` by the root of the second moment, weight by weight; here every weight is pulled alike.

    Args:
        strength: lambda. Default 1e-4 [ours]: at momentum 0.9 the pull of `L1`'s default; choose it on validation data.
        rule: which tensors count. Default at least two dimensions [ours].

    Raises:
        ValueError: the strength is negative or not finite.
        TypeError: (in training) a chosen tensor's gradient is sparse; the message names it.

    Source: Combettes, Wajs 2005 (forward-backward splitting); decoupled from momentum and Adam as AdamW's decay is,
    arXiv 1711.05101 [ours].

    Example:
        >>> import torch, trimtab
        >>> weight = torch.nn.Parameter(torch.tensor([[1.0, -0.25]]))
        >>> optimizer = torch.optim.SGD([weight], lr=0.5)
        >>> handle = trimtab.attach(optimizer, ProximalL1(strength=1.0))
        >>> weight.grad = torch.zeros(1, 2)
        >>> optimizer.step()
        >>> weight.tolist()
        [[0.5, 0.0]]
    """

    def __init__(self, strength: float = 1e-4, rule: Rule | None = None) -> None:
        super().__init__(rule)
        self.strength = non_negative("strength", strength)

    def settings(self) -> dict[str, Any]:
        """The strength."""
        return {"strength": self.strength}

    def act_(self, stepped: Sequence[Stepped]) -> None:
        """Pull every weight towards zero by `lr * strength`, not beyond."""
        rates = {id(one.entry): one for one in stepped}
        for group in by_device_and_dtype([one.entry for one in stepped]):
            thresholds = self.strength * rates_of([rates[id(entry)] for entry in group], group[0].parameter.device)
            Shrinking([entry.parameter for entry in group]).shrink_(thresholds)
