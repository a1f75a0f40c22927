"""Gradual magnitude pruning (Zhu and Gupta 2017, arXiv 1710.01878)."""

from __future__ import annotations

from typing import Any

from trimtab.checks import below_one, flag, number, one_of, positive, whole
from trimtab.parameters import Entry, Rule
from trimtab.parameters.zeros import set_zeros_
from trimtab.pruning.along_training import of_run
from trimtab.pruning.masked_training import PLACES, MaskedTraining, Scope
from trimtab.tensors.collapse import OnCollapse


class GradualPruning(MaskedTraining):
    """Raise the sparsity along training: after every `every` steps the smallest of the remaining weights go.

    Formula: after t steps, `s_t = final + (initial - final) (1 - (t - t0) / (t1 - t0))^power` at t0, t0 + every, .. and at t1;
    exactly `floor(s_t n + 0.5)` of the n weights are masked, ties by position, and what is masked stays so. Exactly `initial`
    at t0 and `final` from t1 on.

    Args:
        final: sparsity at the end, in (0, 1). Default 0.9.
        begin: where the ramp begins, as a fraction of the run (t0 = begin * total_steps, rounded). Default 0.
        end: where it ends. Default 0.75 [ours]: the last quarter trains at the final sparsity.
        every: steps between prunings. Default 100 (TensorFlow's toolkit), less where the ramp has not ten of them [ours].
        initial: sparsity at the beginning of the ramp, in [0, final]. Default 0.
        power: 3 (paper) is the cubic schedule, 1 the linear one; above 0.
        scope: "layer" (paper: each tensor loses the same fraction) or "global".
        reset_state: also set what the optimizer remembers of masked weights (momentum, Adam's moments) to zero. Default True
            [ours].
        reversible: weights go on training behind the mask, by the gradient at the masked ones, and masks are chosen anew after
            every `every` steps to the end, so that a weight can come back [ours; after DPF, arXiv 2006.07253]. Default False.
        on_collapse: where scope "global" would take all weights of a layer while others keep some: "warn" (default) names it,
            "keep" takes others instead, so that 0.1 % of every tensor stays and at least one weight, the count exact all the
            same; "raise" ends the training with an error that names it.
        total_steps: optimizer steps of the whole run; `trimtab train` gives it.
        rule: which weights take part. Default: what `one_shot` prunes and the optimizer trains.

    `progressive` is this lever with power 1 and scope "global": progressive magnitude pruning in one learning-rate cycle.

    A weight under weight_norm is masked through its parts; under spectral_norm and orthogonal it is in `left_out`, and so is a
    computed weight of any kind with `reversible`.

    Raises:
        ValueError: a number out of range, begin not below end; at attach sharded weights, nothing to prune, `reversible` with
            an optimizer that needs a closure (LBFGS), or `reset_state` with one whose state lies on other ranks; in training a
            weight that is NaN when it is time to prune.
        TypeError: a value of the wrong kind, or (in training) a sparse gradient.

    Source: arXiv 1710.01878; progressive 2606.12278.

    Example:
        >>> import torch, trimtab
        >>> net = torch.nn.Linear(10, 10)
        >>> optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        >>> lever = GradualPruning(0.8, end=0.5, every=1, total_steps=4)
        >>> handle = trimtab.attach(optimizer, lever, model=net)
        >>> for _ in range(2):
        ...     net(torch.ones(1, 10)).sum().backward()
        ...     optimizer.step()
        ...     print(lever.sparsity_now)
        0.7
        0.8
    """

    def __init__(
        self,
        final: float = 0.9,
        begin: float = 0.0,
        end: float = 0.75,
        every: int | None = None,
        initial: float = 0.0,
        power: float = 3.0,
        scope: Scope = "layer",
        *,
        reset_state: bool = True,
        reversible: bool = False,
        on_collapse: OnCollapse = "warn",
        total_steps: int,
        rule: Rule | None = None,
    ) -> None:
        super().__init__("final", final, total_steps, one_of("scope", scope, PLACES), rule, on_collapse)
        self.begin, self.end = below_one("begin", begin), number("end", end, above=0, most=1)
        if not self.begin < self.end:
            raise ValueError(f"begin must be below end, got begin={begin:g}, end={end:g}")
        self.initial = below_one("initial", initial)
        if self.initial > self._final:
            raise ValueError(f"initial must be at most final={final:g}, got {initial:g}")
        self.power = positive("power", power)
        self.reset_state, self.reversible = flag("reset_state", reset_state), flag("reversible", reversible)
        self._first, self._last = of_run(self.begin, total_steps), of_run(self.end, total_steps)
        ramp = self._last - self._first
        self.every = min(100, max(1, ramp // 10)) if every is None else whole("every", every, 1)

    @property
    def resets_state(self) -> bool:  # type: ignore[override]
        """Whether what the optimizer remembers of masked weights is set to zero."""
        return self.reset_state and not self.reversible

    @property
    def behind(self) -> bool:  # type: ignore[override]
        """Whether weights train on behind the mask."""
        return self.reversible

    @property
    def final(self) -> float:
        """Sparsity at the end."""
        return self._final

    def settings(self) -> dict[str, Any]:
        """Schedule, scope and form."""
        names = (
            "final",
            "begin",
            "end",
            "every",
            "initial",
            "power",
            "scope",
            "reset_state",
            "reversible",
            "total_steps",
        )
        return {**{name: getattr(self, name) for name in names}, **self._guard()}

    def scheduled(self, steps: int) -> float:
        """The sparsity s_t after so many steps; 0 before the ramp.

        Example:
            >>> lever = GradualPruning(0.8, begin=0.0, end=1.0, initial=0.4, total_steps=100)
            >>> lever.scheduled(0), round(lever.scheduled(50), 3), lever.scheduled(100)
            (0.4, 0.75, 0.8)
        """
        if steps < self._first:
            return 0.0
        if steps >= self._last:
            return self._final
        if steps == self._first:
            return self.initial
        left = 1 - (steps - self._first) / (self._last - self._first)
        share: float = left**self.power
        return self._final + (self.initial - self._final) * share

    def _is_due(self, steps: int) -> bool:
        if steps == self._last:
            return True
        return (
            steps >= self._first and (steps - self._first) % self.every == 0 and (self.reversible or steps < self._last)
        )

    def _due_at_start(self) -> bool:
        return self._is_due(0) and self.scheduled(0) > 0

    def _act(self, chosen: list[Entry]) -> None:
        if not self._is_due(self.steps):
            return
        if self.reversible:
            self._to_dense(chosen)
            self._gone = {}
        self._prune(chosen, self.scheduled(self.steps))
        if self.resets_state:
            self._reset_state(chosen)

    def _prune(self, chosen: list[Entry], sparsity: float) -> None:
        if self.reversible:
            self._dense = {entry.name: entry.parameter.detach().clone() for entry in chosen}
        super()._prune(chosen, sparsity)
        self._dense = {name: dense for name, dense in self._dense.items() if name in self._gone}

    def _keep(self, chosen: list[Entry]) -> None:
        for entry in chosen:
            gone = self._gone.get(entry.name)
            if self.reversible and gone is not None:
                self._dense[entry.name].copy_(entry.parameter)
                set_zeros_(entry, gone)
        if not self.reversible:
            super()._keep(chosen)
