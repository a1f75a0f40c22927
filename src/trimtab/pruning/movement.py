"""Movement pruning (Sanh, Wolf, Rush 2020, arXiv 2005.07683)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from trimtab.checks import positive
from trimtab.parameters import Entry, Rule
from trimtab.pruning.gradual import GradualPruning
from trimtab.pruning.masked_training import Scope
from trimtab.tensors.collapse import OnCollapse
from trimtab.tensors.passes import working_dtype
from trimtab.tensors.zeros import laid_like


class MovementPruning(GradualPruning):
    """Prune, while a trained network is fine-tuned, the weights that move towards zero, not those that are small.

    Formula: every weight has a score, 0 at the start, and the network computes with `W (*) M`, M where scores are largest. In
    each step, with g the gradient at the masked weights,

        S <- S - score_lr g (*) W,    W's own gradient is g (*) M,

    so that the score of a masked weight goes on moving and it may come back, with the value that it had. After every `every`
    steps the `floor(s_t n + 0.5)` smallest scores are masked, s_t the schedule of `GradualPruning`.

    Args:
        final: sparsity at the end, in (0, 1). Default 0.9; the method is for 0.85 and more (paper).
        begin: where the ramp begins, as a fraction of the run; scores are gathered before. Default 0.1 [ours].
        end: where it ends. Default 0.75 [ours].
        every: steps between prunings. Default 100, less where the ramp has not ten of them [ours]; 1 in the paper.
        initial: sparsity at the beginning of the ramp, in [0, final]. Default 0.
        power: 3 is the cubic schedule (paper), above 0.
        score_lr: of the scores. Default 1e-2 (paper). Only ratios of scores decide, so it matters for their rounding alone.
        scope: "layer" or "global" (default "layer", paper).
        on_collapse: where scope "global" would take all weights of a layer while others keep some: "warn" (default) names it,
            "keep" takes others instead, so that 0.1 % of every tensor stays and at least one weight, the count exact all the
            same; "raise" ends the training with an error that names it.
        total_steps: optimizer steps of the whole run; `trimtab train` gives it.
        rule: which weights take part. Default: what `one_shot` prunes and the optimizer trains.

    A weight that is computed from others (weight_norm) is in `left_out`.

    Raises:
        ValueError, TypeError: as `GradualPruning` with `reversible=True`; the weight of a score that is NaN is named when it is
            time to prune.

    Source: arXiv 2005.07683.

    Example:
        >>> import trimtab
        >>> net = torch.nn.Linear(10, 10)
        >>> optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        >>> lever = MovementPruning(0.8, begin=0, end=0.5, every=1, total_steps=4)
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
        begin: float = 0.1,
        end: float = 0.75,
        every: int | None = None,
        initial: float = 0.0,
        power: float = 3.0,
        score_lr: float = 1e-2,
        scope: Scope = "layer",
        *,
        on_collapse: OnCollapse = "warn",
        total_steps: int,
        rule: Rule | None = None,
    ) -> None:
        super().__init__(
            final,
            begin,
            end,
            every,
            initial,
            power,
            scope,
            reversible=True,
            on_collapse=on_collapse,
            total_steps=total_steps,
            rule=rule,
        )
        self.score_lr = positive("score_lr", score_lr)
        self._score: dict[str, Tensor] = {}

    def settings(self) -> dict[str, Any]:
        """Schedule, scope and rate."""
        own = super().settings()
        return {
            **{name: own[name] for name in own if name not in ("reset_state", "reversible")},
            "score_lr": self.score_lr,
        }

    @property
    def scores(self) -> dict[str, Tensor]:
        """The scores so far, by weight; the largest stay."""
        return {name: score.clone() for name, score in self._score.items()}

    def _score_of(self, entry: Entry) -> Tensor:
        if entry.name not in self._score:
            dtype = working_dtype(entry.parameter)
            self._score[entry.name] = torch.zeros_like(entry.parameter, dtype=dtype, requires_grad=False)
        return self._score[entry.name]

    def _on_gradients(self, chosen: list[Entry]) -> None:
        for entry in chosen:
            if (gradient := entry.parameter.grad) is not None:
                score = self._score_of(entry)
                score.addcmul_(gradient.to(score.dtype), entry.parameter.to(score.dtype), value=-self.score_lr)
                if (gone := self._gone.get(entry.name)) is not None:
                    gradient.masked_fill_(gone, 0)

    def _scores(self, group: list[Entry]) -> tuple[list[Tensor], bool]:
        return [self._score_of(entry) for entry in group], False

    def state_dict(self) -> dict[str, Any]:
        """As `GradualPruning`, and the scores."""
        return {**super().state_dict(), "scores": self.scores}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take a saved state over; ValueError when its settings are not this object's."""
        super().load_state_dict(state)
        places = self._places()
        self._score = {name: laid_like(score, places.get(name)) for name, score in state["scores"].items()}
