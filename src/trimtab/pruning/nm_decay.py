"""Training towards N:M sparsity: masks that decay (arXiv 2402.04744) and SR-STE (Zhou et al. 2021, arXiv 2102.04010)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from trimtab.checks import below_one, non_negative, number, one_of, positive, whole
from trimtab.parameters import Entry, Rule
from trimtab.pruning.along_training import AlongTraining, of_run
from trimtab.pruning.patterns import (
    Indivisible,
    input_axis,
    reason_indivisible,
    reason_without_axis,
    refuse_indivisible,
)
from trimtab.tensors.selection import smallest_in_groups

Method = Literal["mask", "structure", "sr_ste"]
Decay = Literal["linear", "exponential"]
Variant = Literal["sparsify", "fine", "densify"]


class NMDecay(AlongTraining):
    """Train towards n of every m weights along the inputs; what is masked fades, or the groups tighten, and the rest is kept.

    Formula: M marks the n largest |W| of each group of m consecutive inputs, anew after every step. The network computes with

        W (*) (M + (1 - M) beta),    gradients go straight through to all of W.

    * method "mask": beta = 1 until `begin`, then `max(0, 1 - c t)` (linear) or `exp(-c t)` over t steps, 0 from `end` on.
    * method "structure": beta 0 and looser groups first, in equal frames from `begin` to `end`: "sparsify" keeps
      m-1, m/2, m/4, .., n of m; "fine" 8n of 8m, 4n of 4m, 2n of 2m, n of m; "densify", which comes from the other side, n of
      16m, n of 4m, n of 2m, n of m.
    * method "sr_ste": beta 0 from `begin` on, and `strength (1 - M) (*) W` is added to the gradient.

    Parameters hold the masked values between steps, so what is evaluated or saved is the network as it would be used; the
    trained values lie in the lever's state.

    Args:
        n, m: n of every m weights stay, 0 < n < m. Default 2 of 4.
        method: "mask" (default), "structure" or "sr_ste".
        decay: of method "mask": "linear" (default) or "exponential".
        rate: c per step. Default: so that beta is 0 (linear) or 0.01 (exponential) at `end` [ours].
        begin: dense until this fraction of the run. Default 0.1 [ours]; SR-STE was published with 0.
        end: n of m holds from this fraction on. Default 0.6 [ours].
        variant: of method "structure": "sparsify" (default), "fine" or "densify" (stages of the authors' code).
        strength: of method "sr_ste". Default 2e-4 (paper).
        indivisible: "refuse" (default [ours]): a weight whose inputs are no multiple of m (fine: 8m, densify: 16m) is an error
            that names it;
            "leave_out": it stays dense.
        total_steps: optimizer steps of the whole run; `trimtab train` gives it.
        rule: which weights take part. Default: what `one_shot` prunes and the optimizer trains.

    A NaN counts as large and stays where it is. A weight that is computed from others (weight_norm) is in `left_out`.

    Raises:
        ValueError: a number out of range, groups that do not divide a weight, no weight left, sharded weights, an optimizer
            that needs a closure (LBFGS).
        TypeError: a value of the wrong kind, or (in training) a sparse gradient.

    Source: arXiv 2402.04744 (masks and structure that decay), 2102.04010 (SR-STE).

    Example:
        >>> import trimtab
        >>> net = torch.nn.Linear(8, 2)
        >>> optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        >>> lever = NMDecay(2, 4, begin=0, end=0.5, total_steps=4)
        >>> handle = trimtab.attach(optimizer, lever, model=net)
        >>> for _ in range(2):
        ...     net(torch.ones(1, 8)).sum().backward()
        ...     optimizer.step()
        ...     print(lever.beta, int((net.weight == 0).sum()))
        0.5 0
        0.0 8
    """

    behind = True

    def __init__(
        self,
        n: int = 2,
        m: int = 4,
        method: Method = "mask",
        decay: Decay = "linear",
        rate: float | None = None,
        begin: float = 0.1,
        end: float = 0.6,
        variant: Variant = "sparsify",
        strength: float = 2e-4,
        indivisible: Indivisible = "refuse",
        *,
        total_steps: int,
        rule: Rule | None = None,
    ) -> None:
        super().__init__(rule)
        self.n, self.m = whole("n", n, 1), whole("m", m, 2)
        if self.n >= self.m:
            raise ValueError(f"n must be below m={m}, got {n}")
        self.method: Method = one_of("method", method, ("mask", "structure", "sr_ste"))  # type: ignore[assignment]
        self.decay: Decay = one_of("decay", decay, ("linear", "exponential"))  # type: ignore[assignment]
        self.begin, self.end = below_one("begin", begin), number("end", end, above=0, most=1)
        if not self.begin < self.end:
            raise ValueError(f"begin must be below end, got begin={begin:g}, end={end:g}")
        self.variant: Variant = one_of("variant", variant, ("sparsify", "fine", "densify"))  # type: ignore[assignment]
        self.strength = non_negative("strength", strength)
        self.indivisible: Indivisible = one_of("indivisible", indivisible, ("refuse", "leave_out"))  # type: ignore[assignment]
        self.total_steps = whole("total_steps", total_steps, 1)
        self._first, self._last = of_run(self.begin, total_steps), of_run(self.end, total_steps)
        span = max(1, self._last - self._first)
        own = 1 / span if self.decay == "linear" else math.log(100) / span
        self.rate = own if rate is None else positive("rate", rate)
        self.stages = self._stages()

    def _stages(self) -> tuple[tuple[int, int], ...]:
        """The groups (kept, of how many) in their order; the last is n of m."""
        if self.method != "structure":
            return ((self.n, self.m),)
        if self.variant == "fine":
            return tuple((self.n * factor, self.m * factor) for factor in (8, 4, 2, 1))
        if self.variant == "densify":
            return tuple((self.n, self.m * factor) for factor in (16, 4, 2, 1))
        halvings = math.log2(self.m / self.n)
        if not halvings.is_integer():
            raise ValueError(
                f"method 'structure' halves what stays from m to n, so that m/n must be a power of 2; got {self.n}:{self.m} "
                "(the other variants take any)"
            )
        return ((self.m - 1, self.m), *((self.m >> place, self.m) for place in range(1, int(halvings) + 1)))

    def settings(self) -> dict[str, Any]:
        """Pattern, method and schedule."""
        own = (
            "n",
            "m",
            "method",
            "decay",
            "rate",
            "begin",
            "end",
            "variant",
            "strength",
            "indivisible",
            "total_steps",
        )
        return {name: getattr(self, name) for name in own}

    def beta_at(self, steps: int) -> float:
        """What masked weights are multiplied by after so many steps.

        Example:
            >>> lever = NMDecay(begin=0, end=1, rate=0.01, total_steps=1000)
            >>> [lever.beta_at(steps) for steps in (0, 50, 100, 150)]
            [1.0, 0.5, 0.0, 0.0]
        """
        if steps < self._first:
            return 1.0
        if steps >= self._last or self.method != "mask":
            return 0.0
        past = self.rate * (steps - self._first)
        return max(0.0, 1 - past) if self.decay == "linear" else math.exp(-past)

    @property
    def beta(self) -> float:
        """What masked weights are multiplied by now."""
        return self.beta_at(self.steps)

    def stage_at(self, steps: int) -> tuple[int, int]:
        """(kept, of how many) after so many steps."""
        frames = len(self.stages)
        past = (steps - self._first) * frames // max(1, self._last - self._first)
        return self.stages[max(0, min(past, frames - 1))]

    @property
    def sparsity_now(self) -> float:
        """Fraction of the weights that is zero now; those that only fade are not."""
        return super().sparsity_now if self.beta == 0 else 0.0

    def _due_at_start(self) -> bool:
        return self._first == 0

    def _find(self, parameters: Sequence[Entry]) -> list[Entry]:
        chosen = super()._find(parameters)
        group = max(of for _, of in self.stages)
        judged = [(entry, reason_indivisible(entry, group)) for entry in chosen]
        ragged = [(entry, reason) for entry, reason in judged if reason is not None]
        if self.indivisible == "refuse":
            refuse_indivisible(f"{self.n}:{self.m}", ragged)
        self.left_out += ragged
        fitting = [entry for entry, reason in judged if reason is None]
        if not fitting:
            raise ValueError(
                f"{self!r} finds no weight whose inputs are a multiple of {group}: {ragged[0][0].name}: {ragged[0][1]}"
            )
        return fitting

    def _reason_against(self, entry: Entry) -> str | None:
        return super()._reason_against(entry) or reason_without_axis(entry)

    def _on_gradients(self, chosen: list[Entry]) -> None:
        if self.method != "sr_ste" or self.strength == 0:
            return
        for entry in chosen:
            gone, gradient = self._gone.get(entry.name), entry.parameter.grad
            if gone is not None and gradient is not None:
                gradient.add_(entry.parameter * gone, alpha=self.strength)

    def _keep(self, chosen: list[Entry]) -> None:
        """Nothing: masks are made anew after every step."""

    def _act(self, chosen: list[Entry]) -> None:
        if self.steps >= self._first:
            self._show(chosen, self.beta, *self.stage_at(self.steps))

    def _show(self, chosen: list[Entry], beta: float, keep: int, group: int) -> None:
        """Remember the trained values, and put what the network computes with in their place."""
        for entry in chosen:
            weight = entry.parameter.detach()
            gone = _outside(weight, keep, group, input_axis(entry))
            if (dense := self._dense.get(entry.name)) is None:
                dense = self._dense[entry.name] = torch.empty_like(weight)
                self._gone[entry.name] = torch.empty_like(weight, dtype=torch.bool)
            dense.copy_(weight)
            self._gone[entry.name].copy_(gone)
            if beta == 0:
                weight.masked_fill_(gone, 0)
            elif beta < 1:
                weight.copy_(torch.where(gone, beta * weight, weight))

    @torch.no_grad()
    def finish(self, parameters: Sequence[Entry]) -> None:
        """Where training ended before its time, n of m now; called by `Handle.finish`."""
        self.needs_recalibration = self.steps < self._last
        if self.needs_recalibration:
            chosen = self._chosen(parameters)
            self._to_dense(chosen)
            self.steps = self._last
            self._show(chosen, 0.0, self.n, self.m)

    def describe(self) -> dict[str, float]:
        """For a run's record: the sparsity, and what masked weights are multiplied by."""
        return {"sparsity": self.sparsity_now, "beta": self.beta}


def _outside(weight: Tensor, keep: int, group: int, axis: int) -> Tensor:
    """True at all but the `keep` largest of every `group`; a NaN counts as large."""
    return smallest_in_groups(weight.abs().nan_to_num_(nan=math.inf, posinf=math.inf), keep, group, axis)
