"""AC/DC: alternating compressed and decompressed training (Peste et al. 2021, arXiv 2106.12379)."""

from __future__ import annotations

from typing import Any

from trimtab.checks import below_one, flag, one_of, positive
from trimtab.parameters import Entry, Rule
from trimtab.pruning.along_training import of_run
from trimtab.pruning.masked_training import PLACES, MaskedTraining, Scope
from trimtab.tensors.collapse import OnCollapse


class ACDC(MaskedTraining):
    """Alternate phases in which the network trains sparse and dense, and end sparse.

    A dense warm-up; then sparse and dense phases of equal length, beginning and ending with a sparse one; a last dense phase;
    a last sparse phase. At the start of each sparse phase the smallest weights by magnitude go, exactly
    `floor(sparsity n + 0.5)` of the n over all tensors, ties by position, and the optimizer's momentum is set to zero; while it
    lasts they stay zero. In a dense phase all weights train, those that were pruned from 0.

    Phases are fractions of the run. The defaults are the paper's for ImageNet (10 epochs of warm-up, 5 + 5 alternating, the
    last dense phase 10, the last sparse one 15, of 100): sparse from 10 to 15 %, dense to 20 %, .., dense from 75 %, sparse
    from 85 % to the end. Where `phase` does not divide what lies between into an odd number of phases, the nearest odd number
    of equal ones is taken [ours]. What an optimizer remembers of masked weights beside momentum (Adam's second moment) is set
    to zero with them [ours].

    Args:
        sparsity: in a sparse phase and at the end, in (0, 1). Default 0.9 (the paper has 0.8 to 0.98).
        warm_up: fraction of the run before the first sparse phase. Default 0.1 (paper); 0 begins sparse.
        phase: of each sparse and each dense phase. Default 0.05 (paper).
        last_dense: of the last dense phase. Default 0.1 (paper).
        last_sparse: of the last sparse phase. Default 0.15 (paper).
        scope: "global" (paper) or "layer".
        reset_momentum: set momentum (of Adam the first moment) to zero on entering a sparse phase. Default True (paper).
        on_collapse: where scope "global" would take all weights of a layer while others keep some: "warn" (default) names it,
            "keep" takes others instead, so that 0.1 % of every tensor stays and at least one weight, the count exact all the
            same; "raise" ends the training with an error that names it.
        total_steps: optimizer steps of the whole run; `trimtab train` gives it.
        rule: which weights take part. Default: what `one_shot` prunes and the optimizer trains.

    A weight under weight_norm is masked through its parts; under spectral_norm and orthogonal it is in `left_out`.

    Raises:
        ValueError: a number out of range, phases longer than the run, or a run too short for its phases; at attach sharded
            weights, an optimizer whose state lies on other ranks, or nothing to prune; in training a weight that is NaN when it
            is time to prune.
        TypeError: a value of the wrong kind, or (in training) a sparse gradient.

    Source: arXiv 2106.12379.

    Example:
        >>> lever = ACDC(0.9, total_steps=1000)
        >>> lever.starts[:3], lever.starts[-2:]
        (((100, 'sparse'), (150, 'dense'), (200, 'sparse')), ((750, 'dense'), (850, 'sparse')))
    """

    resets_state = True

    def __init__(
        self,
        sparsity: float = 0.9,
        warm_up: float = 0.1,
        phase: float = 0.05,
        last_dense: float = 0.1,
        last_sparse: float = 0.15,
        scope: Scope = "global",
        *,
        reset_momentum: bool = True,
        on_collapse: OnCollapse = "warn",
        total_steps: int,
        rule: Rule | None = None,
    ) -> None:
        super().__init__("sparsity", sparsity, total_steps, one_of("scope", scope, PLACES), rule, on_collapse)
        self.warm_up, self.phase = below_one("warm_up", warm_up), positive("phase", phase)
        self.last_dense, self.last_sparse = positive("last_dense", last_dense), positive("last_sparse", last_sparse)
        self.reset_momentum = flag("reset_momentum", reset_momentum)
        self.starts = self._starts()

    def _starts(self) -> tuple[tuple[int, str], ...]:
        """After how many steps each phase begins, without the warm-up."""
        ends = 1 - self.last_sparse, 1 - self.last_sparse - self.last_dense
        between = ends[1] - self.warm_up
        if between <= 0:
            raise ValueError(
                f"warm_up, last_dense and last_sparse must leave room for phases between them, got {self.warm_up:g} + "
                f"{self.last_dense:g} + {self.last_sparse:g} of the run"
            )
        number = max(1, 2 * round((between / self.phase - 1) / 2) + 1)
        fractions = [self.warm_up + between * place / number for place in range(number)] + [ends[1], ends[0]]
        kinds = ["sparse" if place % 2 == 0 else "dense" for place in range(number)] + ["dense", "sparse"]
        steps = [of_run(fraction, self.total_steps) for fraction in fractions]
        if any(later <= earlier for earlier, later in zip(steps, [*steps[1:], self.total_steps], strict=True)):
            raise ValueError(
                f"total_steps must give each of the {number + 2} phases a step, got {self.total_steps}; make phase "
                f"({self.phase:g} of the run) longer"
            )
        return tuple(zip(steps, kinds, strict=True))

    def settings(self) -> dict[str, Any]:
        """Sparsity, phases and scope."""
        own = ("warm_up", "phase", "last_dense", "last_sparse", "scope", "reset_momentum", "total_steps")
        return {"sparsity": self._final, **{name: getattr(self, name) for name in own}, **self._guard()}

    def _due_at_start(self) -> bool:
        return self.starts[0][0] == 0

    def _act(self, chosen: list[Entry]) -> None:
        kind = dict(self.starts).get(self.steps)
        if kind is None:
            return
        self._gone = {}
        if kind == "sparse":
            self._prune(chosen, self._final)
            if self.reset_momentum:
                self._reset_momentum()
            self._reset_state(chosen)
