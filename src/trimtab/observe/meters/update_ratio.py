"""UpdateRatio: how far a step moves the weights, against how long they are."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from trimtab.collectives import local_part
from trimtab.observe.meters.meter import EachTensor
from trimtab.parameters import Entry, Rule
from trimtab.tensors.norms import each_norm


class UpdateRatio(EachTensor):
    """Update-to-weight ratio: `||w_after - w_before|| / ||w_before||`, of all tensors together and of each.

    Around 1e-3 in networks that train well; a layer far above the others is about to run away, one far below does not learn.
    It keeps one copy of the weights during a step that it looks at.

    Signals: `update_ratio`, `update_ratio_max` and `update_ratio_min` over the tensors; `layers()` has each.

    Args:
        every: as of `Meter`.
        rule: which tensors count. Default `Rule(role="any")`: trainable, at least two dimensions [ours].

    Reference: the ratio that Karpathy's notes (CS231n) made customary; [ours].

    Example:
        >>> import trimtab
        >>> net = torch.nn.Linear(1, 2, bias=False)
        >>> _ = net.weight.data.fill_(2.0)
        >>> optimizer, meter = torch.optim.SGD(net.parameters(), lr=0.1), UpdateRatio()
        >>> handle = trimtab.attach(optimizer, meter, model=net)
        >>> net(torch.ones(1, 1)).sum().backward()
        >>> optimizer.step()
        >>> round(float(meter.signals()["update_ratio"]), 3), {name: round(value, 3) for name, value in meter.layers().items()}
        (0.05, {'weight': 0.05})
    """

    def __init__(self, every: int | Callable[[int], bool] = 1, rule: Rule | None = None) -> None:
        super().__init__(every, rule)
        self._before: list[tuple[Entry, Tensor]] = []

    def measure(self, parameters: Sequence[Entry]) -> dict[str, Tensor]:
        """Remember the weights."""
        self._before = [(one, local_part(one.parameter).detach().clone()) for one in self._picked(parameters)]
        return {}

    @torch.no_grad()
    def after_step(self, parameters: Sequence[Entry]) -> None:
        """Find how far they moved; called by `trimtab.attach`."""
        before, self._before = self._before, []
        if not before:
            return
        owners, kept = [one.parameter for one, _ in before], [weight for _, weight in before]
        weights = each_norm(kept, owners)
        torch._foreach_sub_(kept, [local_part(owner) for owner in owners])
        moved = each_norm(kept, owners)
        self._names, self._each = [one.name for one, _ in before], moved / weights
        known = torch.where(weights > 0, self._each, torch.nan)
        self._signals = {
            "update_ratio": moved.square().sum().sqrt() / weights.square().sum().sqrt(),
            "update_ratio_max": known.nan_to_num(-torch.inf).amax(),
            "update_ratio_min": known.nan_to_num(torch.inf).amin(),
        }
