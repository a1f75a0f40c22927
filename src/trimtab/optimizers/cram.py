"""Compression-Aware Minimization (Peste et al. 2023, arXiv 2207.14200)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from trimtab.checks import below_one, n_of_m, non_negative
from trimtab.collectives import from_first_rank, is_sharded
from trimtab.optimizers.two_pass import TwoPassOptimizer
from trimtab.parameters import Entry, Rule, entries, no_axis
from trimtab.tensors.selection import (
    kth_threshold,
    removed_count,
    smallest_in_groups,
    smallest_masks,
)

_WEIGHTS = Rule()


@dataclass(frozen=True)
class _Memory:
    """What one step keeps between its two passes: the compressed positions and, for CrAM+, the first gradient."""

    masks: list[tuple[Tensor, Tensor]]
    first: list[tuple[Tensor, Tensor]]


def _checked_sparsities(sparsities: Sequence[float]) -> tuple[float, ...]:
    values = tuple(below_one(f"sparsities[{place}]", value) for place, value in enumerate(sparsities))
    if not values:
        raise ValueError("sparsities must name at least one fraction of zeros in [0, 1), got none")
    return values


def _checked_patterns(pattern: str | Sequence[str] | None) -> tuple[tuple[int, int], ...]:
    if pattern is None:
        return ()
    patterns = tuple(n_of_m("pattern", text) for text in ((pattern,) if isinstance(pattern, str) else pattern))
    if not patterns:
        raise ValueError("pattern must be None, a pattern such as '2:4', or a tuple of them, got an empty one")
    return patterns


class CrAM(TwoPassOptimizer):
    """Step with the gradient taken at a compressed, perturbed copy of the weights: trains networks to bear pruning.

    Formula: `w' = w + rho * g`; draw a sparsity k; `C(w')` sets the fraction k of the smallest |w'|, over all weights
    (tensors with more than one dimension, as for pruning) together, to zero; `h` = gradient at `C(w')`, set to zero where C did
    (`sparse_grad`); the base optimizer steps from w with `h`, or with `h + g` (`plus`, CrAM+, which also keeps the
    dense network good).

    Costs a second forward and backward pass per step and a selection; during the step one copy of the weights, the
    masks, and for `plus` one of the gradients. Keeps no state beyond the base optimizer's but a step count and the
    state of the generator that draws k.

    Args:
        base: any `torch.optim` optimizer instance whose step needs no closure.
        rho: step length of the perturbation; the gradient is not normalised. The authors use 0.2 for ResNet-18 and
            ResNet-20 on CIFAR-10, and 0.15 with up to 95 %, which is the default.
        sparsities: fractions of zeros in [0, 1), one drawn per step with equal chance; the authors use (0.95,) for
            ResNet-18 and (0.5, 0.7, 0.8, 0.9, 0.95) for ResNet-20, the default. Unused when `pattern` is given.
        sparse_grad: mask the second gradient. Default True (authors' code).
        plus: CrAM+. Default True.
        pattern: "N:M" or several of them, such as ("2:4", "4:8"), drawn with equal chance: N of M consecutive weights
            along the input axis stay. Default None: any weight may go.
        seed: a number, or a CPU `torch.Generator`. Default 0.
        model: see `SAM`; also tells what is a weight and which dimension its inputs are. Without it every tensor with more than
            one dimension is compressed, inputs along dimension 1.

    Ours: exactly `floor(k * n + 0.5)` weights go, ties by position; trainable weights without a gradient take part in
    the compression; with several ranks, rank 0's draw is used; with a pattern, tensors whose input axis is not a
    multiple of M stay dense; so do the parts of a weight that is computed from others (weight_norm), in `left_out` with what
    else was left dense in the last step, each with its reason; the inputs' random numbers are shared by both passes, as in
    `SAM`.

    Raises:
        TypeError: as `SAM`.
        ValueError: a number out of range, a damaged pattern, or (in `step`) sharded weights.

    Reference: arXiv 2207.14200.

    Example:
        >>> net = torch.nn.Linear(8, 4)
        >>> CrAM(torch.optim.SGD(net.parameters(), lr=0.1), rho=0.2, sparsities=(0.5, 0.9))
        CrAM(SGD with 1 group, rho=0.2, sparsities=(0.5, 0.9), sparse_grad=True, plus=True)
    """

    def __init__(
        self,
        base: torch.optim.Optimizer,
        rho: float = 0.15,
        sparsities: Sequence[float] = (0.5, 0.7, 0.8, 0.9, 0.95),
        *,
        sparse_grad: bool = True,
        plus: bool = True,
        pattern: str | Sequence[str] | None = None,
        seed: int | torch.Generator = 0,
        model: nn.Module | None = None,
    ) -> None:
        self.rho = non_negative("rho", rho)
        self.sparsities = _checked_sparsities(sparsities)
        self.sparse_grad = sparse_grad
        self.plus = plus
        self.patterns = _checked_patterns(pattern)
        self._generator = seed if isinstance(seed, torch.Generator) else torch.Generator().manual_seed(seed)
        if self._generator.device.type != "cpu":
            raise ValueError(f"the generator must be on the CPU, got one on {self._generator.device}")
        self.left_out: list[tuple[Entry, str]] = []
        self._known: dict[Tensor, Entry] = {}
        super().__init__(base, model)

    def _compressible(self, parameters: list[Tensor]) -> list[Entry]:
        """What C acts on; the others go to `left_out`."""
        if any(parameter not in self._known for parameter in parameters):
            listed = [*entries(parameters), *(() if self.model is None else entries(self.model))]
            self._known = {entry.parameter: entry for entry in listed}
        chosen: list[Entry] = []
        self.left_out = []
        for parameter in parameters:
            entry = self._known[parameter]
            reason = _WEIGHTS.reason_against(entry)
            if reason is None and entry.computed is not None:
                reason = f"a part of {entry.computed.label} under {entry.computed.how}, which is not compressed"
            if reason is not None:
                self.left_out.append((entry, reason))
            else:
                chosen.append(entry)
        return chosen

    def _draw(self, choices: int, device: torch.device) -> int:
        if choices == 1:
            return 0
        drawn = int(torch.randint(choices, (), generator=self._generator))
        return from_first_rank(drawn, device)

    def _smallest(self, chosen: list[Entry]) -> list[tuple[Tensor, Tensor]]:
        """Weights and where they are compressed away."""
        weights = [entry.parameter for entry in chosen]
        device = weights[0].device
        if not self.patterns:
            sparsity = self.sparsities[self._draw(len(self.sparsities), device)]
            count = removed_count(sparsity, sum(weight.numel() for weight in weights))
            (threshold,) = kth_threshold(weights, [count], absolute=True)
            return list(zip(weights, smallest_masks(weights, threshold, absolute=True), strict=True))
        keep, group = self.patterns[self._draw(len(self.patterns), device)]
        fitting = []
        for entry in chosen:
            axis = 1 - (entry.output_axis or 0) if entry.owner is None else entry.input_axis
            reason = no_axis(entry, "input_axis")
            if axis is not None and reason is None and (size := entry.parameter.shape[axis]) % group:
                reason = f"input axis of {size} is not a multiple of {group}"
            if axis is None or reason is not None:
                self.left_out.append((entry, reason or ""))
            else:
                fitting.append((entry.parameter, axis))
        if not fitting:
            raise ValueError(f"pattern {keep}:{group} fits no weight: no input axis is a multiple of {group}")
        return [(weight, smallest_in_groups(weight.abs(), keep, group, axis)) for weight, axis in fitting]

    def _perturb(self, parameters: list[Tensor], norm: float) -> _Memory:
        if any(is_sharded(parameter) for parameter in parameters):
            raise ValueError("CrAM selects over whole tensors and does not take sharded weights (DTensor) yet")
        holders = [parameter for parameter in parameters if parameter.grad is not None]
        gradients = [parameter.grad for parameter in holders if parameter.grad is not None]
        first = [gradient.clone() for gradient in gradients] if self.plus else []
        if holders:
            torch._foreach_add_(holders, gradients, alpha=self.rho)
        chosen = self._compressible(parameters)
        if not chosen:
            reasons = "; ".join(f"{entry.name}: {reason}" for entry, reason in self.left_out[:3])
            raise ValueError(f"CrAM found nothing to compress: no trained tensor is a weight ({reasons})")
        masks = self._smallest(chosen)
        for weight, mask in masks:
            weight.masked_fill_(mask, 0.0)
        return _Memory(masks, list(zip(holders, first, strict=True)) if self.plus else [])

    def _final_gradient(self, parameters: list[Tensor], memory: _Memory) -> None:
        if self.sparse_grad:
            for weight, mask in memory.masks:
                if weight.grad is not None:
                    weight.grad.masked_fill_(mask, 0.0)
        present = [(p.grad, first) for p, first in memory.first if p.grad is not None]
        if present:
            torch._foreach_add_([gradient for gradient, _ in present], [first for _, first in present])
        for parameter, first in memory.first:
            if parameter.grad is None:
                parameter.grad = first

    def own_state(self) -> dict[str, Any]:
        """Steps counted, and the generator of its draws."""
        return {**super().own_state(), "generator": self._generator.get_state()}

    def load_own_state(self, state: dict[str, Any]) -> None:
        """Take over what `own_state` gave."""
        super().load_own_state(state)
        self._generator.set_state(state["generator"].cpu())

    def _settings(self) -> str:
        what = f"sparsities={self.sparsities}"
        if self.patterns:
            what = f"pattern={tuple(f'{keep}:{group}' for keep, group in self.patterns)}"
        return f"rho={self.rho:g}, {what}, sparse_grad={self.sparse_grad}, plus={self.plus}"
