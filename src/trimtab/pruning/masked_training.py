"""What levers that prune by magnitude along training share: how many go, which ones, and the end."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from trimtab.checks import number, one_of, whole
from trimtab.parameters import Entry, Rule
from trimtab.parameters.zeros import set_zeros_, weight_now
from trimtab.pruning.along_training import AlongTraining
from trimtab.pruning.scopes import quotas
from trimtab.tensors.collapse import ON_COLLAPSE, OnCollapse, guarded
from trimtab.tensors.zeros import smallest_or_refusal

Scope = Literal["global", "layer"]
PLACES = ("global", "layer")
MOMENTA = ("momentum_buffer", "exp_avg")
"""Names of first moments in torch's optimizers."""


class MaskedTraining(AlongTraining):
    """Prunes the smallest weights while the network trains; subclasses say after which steps, and how much.

    Args:
        label: what a subclass calls the sparsity.
        sparsity: fraction of the weights that is zero in the end, in (0, 1).
        total_steps: optimizer steps of the whole run.
        scope: "global", "layer" or "erk": where they are compared.
        rule: which weights take part. Default: what `one_shot` prunes and the optimizer trains.
        on_collapse: where a comparison over the whole network would take all weights of a layer: "warn", "keep", "raise".
    """

    def __init__(
        self,
        label: str,
        sparsity: float,
        total_steps: int,
        scope: str,
        rule: Rule | None,
        on_collapse: OnCollapse = "warn",
    ) -> None:
        super().__init__(rule)
        self.on_collapse: OnCollapse = one_of("on_collapse", on_collapse, ON_COLLAPSE)  # type: ignore[assignment]
        self._final = number(label, sparsity, above=0, below=1)
        self.total_steps = whole("total_steps", total_steps, 1)
        self.scope = scope

    def _guard(self) -> dict[str, Any]:
        """The guard's setting, where it is not the default: what was saved before there was one still fits."""
        return {} if self.on_collapse == "warn" else {"on_collapse": self.on_collapse}

    @torch.no_grad()
    def finish(self, parameters: Sequence[Entry]) -> None:
        """Where training ended before its time, prune to the final sparsity now; called by `Handle.finish`."""
        chosen = self._chosen(parameters)
        self._entries = parameters
        self.needs_recalibration = self._zeros() < sum(self._counts(chosen, self._final))
        if self.needs_recalibration:
            self._prune(chosen, self._final)

    def _groups(self, chosen: list[Entry], sparsity: float) -> Iterator[tuple[list[Entry], int]]:
        """Weights that are compared with each other, and how many of them are zero at that sparsity."""
        for positions, count in quotas([entry.parameter for entry in chosen], sparsity, self.scope):
            yield [chosen[position] for position in positions], count

    def _counts(self, chosen: list[Entry], sparsity: float) -> list[int]:
        return [count for _, count in self._groups(chosen, sparsity)]

    def _scores(self, group: list[Entry]) -> tuple[list[Tensor], bool]:
        """What is compared, and whether by its size."""
        return [weight_now(entry) for entry in group], True

    def _prune(self, chosen: list[Entry], sparsity: float) -> None:
        """Add the smallest weights to the masks until exactly that fraction is masked: `floor(sparsity * n + 0.5)`."""
        for group, count in self._groups(chosen, sparsity):
            weights, absolute = self._scores(group)
            known = [self._gone.get(entry.name) for entry in group]
            more = count - sum(int(gone.count_nonzero()) for gone in known if gone is not None)
            if more <= 0:
                continue
            # masked weights stay so: they are out of the comparison
            open_ = [
                w if gone is None else w.masked_fill(gone, math.inf) for w, gone in zip(weights, known, strict=True)
            ]
            found = smallest_or_refusal(self, self.steps, group, open_, more, absolute=absolute)
            found = guarded(group, weights, found, more, self.on_collapse, absolute=absolute, gone=known)
            for entry, weight, gone, new in zip(group, weights, known, found, strict=True):
                # in the weight's own memory order, so that masking is one pass
                own = torch.empty_like(weight, dtype=torch.bool).copy_(new)
                self._gone[entry.name] = own if gone is None else own.logical_or_(gone)
                set_zeros_(entry, self._gone[entry.name])

    def _reset_momentum(self) -> None:
        """Set the optimizer's first moments to zero, of all its parameters."""
        for group in () if self._optimizer is None else self._optimizer.param_groups:
            for parameter in group["params"]:
                for name in MOMENTA:
                    if isinstance(value := self._state_of(parameter).get(name), Tensor):
                        value.zero_()
