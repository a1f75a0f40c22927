"""GCond: conflicts between losses settled pair by pair, the worst first, by an arbitrator who remembers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from trimtab.checks import below_one, flag, number, positive, shares, whole
from trimtab.multitask.base import Combiner, Tasks, beside, check_remembered, norms, weighted_
from trimtab.tensors.norms import each_product
from trimtab.tensors.passes import working_dtype


class GCond(Combiner):
    """Gradient conductor: while a pair of losses conflicts, a winner is named and the two are bent away from each other.

    The pair with the least cosine c is taken, until no cosine is below `weak` or after `max_iterations` pairs. The winner w is
    the loss with the higher score `s_1 max(0, cos(g_t, g_(t-1))) + s_2 strength`, strength being its norm over its running
    norm, as a share of the pair's; but a loss that won all of its last conflicts yields to one that did not. With the angle
    `a = (pi / 2) (1 - (c - main) / (weak - main))` for `main <= c < weak`,
    `(pi / 2) (1 + ((c - main) / (critical - main))^power)` down to `critical` and `pi` below:

        g_w <- g_w - sin(a) <w, l> / ||l||^2 g_l,    g_l <- g_l - sin(min(a, pi / 2)) <w, l> / ||w||^2 g_w

    both from the old values. In the end all are added; the sum goes through a bias-corrected running mean.

    Args:
        thresholds: critical, main and weak cosine, rising, from -1 on. Default (-0.8, -0.5, 0.0) (paper).
        power: of the angle's rise. Above 0. Default 2 (authors' code).
        smooth: the angle as above; False: by zones, weak: both projected, main: the loser projected, critical: the loser
            dropped. `GCond(thresholds=(-1, 0, 0), smooth=False, momentum=0)` is PCGrad with the arbitrator's choice of who
            yields. Default True.
        dominance_window: conflicts in a row that a loss may win before it yields. Default 3 (authors' code).
        weights: of stability and strength in the score. Default (0.8, 0.2) (authors' code).
        norm_ema: decay of the running norms, in [0, 1). Default 0.95 (authors' code).
        norm_start: of the running norms. Default None: the first norm [ours]; 1.0 is the authors', which distorts early
            strengths.
        norm_cap: greatest norm of the sum before the running mean. Default None: no limit.
        max_iterations: pairs settled in a step at most. Default None: twice the number of losses (authors' code).
        momentum: of the running mean of the result, in [0, 1); 0 turns it off. Default 0.9 (paper, with beta1 = 0 in the
            optimizer).

    Raises:
        ValueError: a value is out of range, the thresholds do not rise, or (at the call) another number of losses, or other
            parameters, than before.

    Everything but the running mean follows from products, so a step reads the gradients twice. Keeps the gradients of the last
    step and the mean: K + 1 gradients of memory. "Stability" compares the gradients as they came [ours]; the authors' buffers
    are projected in place before they are kept. Their sign-times-trust-ratio step is an optimizer and not part of this. A
    gradient of zero is in no conflict.

    Reference: GCond, arXiv 2509.07252, with its code.

    Example:
        >>> GCond(momentum=0)(torch.tensor([[1.0, 0.0], [-1.0, 0.2]]))  # cosine -0.98: the loser loses what works against
        tensor([1.0000, 0.2000])
    """

    homogeneous = False

    def __init__(
        self,
        thresholds: tuple[float, float, float] = (-0.8, -0.5, 0.0),
        power: float = 2.0,
        *,
        smooth: bool = True,
        dominance_window: int = 3,
        weights: tuple[float, float] = (0.8, 0.2),
        norm_ema: float = 0.95,
        norm_start: float | None = None,
        norm_cap: float | None = None,
        max_iterations: int | None = None,
        momentum: float = 0.9,
    ) -> None:
        self.thresholds = tuple(number("thresholds", value, least=-1, most=1) for value in thresholds)
        if len(self.thresholds) != 3 or list(self.thresholds) != sorted(self.thresholds):
            raise ValueError(f"thresholds must be three rising cosines (critical, main, weak), got {thresholds}")
        self.power, self.smooth = positive("power", power), flag("smooth", smooth)
        self.dominance_window = whole("dominance_window", dominance_window, least=1)
        self.score_weights = shares("weights", weights)
        if len(self.score_weights) != 2:
            raise ValueError(f"weights must be two, of stability and strength, got {weights}")
        self.norm_ema, self.momentum = below_one("norm_ema", norm_ema), below_one("momentum", momentum)
        self.norm_start = None if norm_start is None else positive("norm_start", norm_start)
        self.norm_cap = None if norm_cap is None else positive("norm_cap", norm_cap)
        self.max_iterations = None if max_iterations is None else whole("max_iterations", max_iterations, least=0)
        self._steps = 0
        self._mean: list[Tensor] = []
        self._previous: list[list[Tensor]] = []
        self._previous_norms: list[float] = []
        self._running: list[float] = []
        self._won: list[list[bool]] = []

    def combine_(self, tasks: Tasks, products: Tensor) -> list[Tensor]:
        """Settle, add, smooth; the gradients of the losses are kept as those of the last step."""
        sizes = norms(products).tolist()
        if self._won and len(self._won) != len(tasks):
            raise ValueError(f"GCond was begun with {len(self._won)} losses, got {len(tasks)}")
        check_remembered("GCond", self._previous[0] if self._previous else [], tasks[0])
        if self._previous:
            self._previous = beside(self._previous, tasks)
        if self._mean:
            (self._mean,) = beside([self._mean], [tasks[0]])
        stability = self._stability(tasks, sizes)
        shares_of = self._settle(products, stability, self._strengths(sizes))
        joined = shares_of.sum(0)
        if self.norm_cap is not None:
            length = math.sqrt(max(float(joined @ products @ joined), 0.0))
            joined = joined * min(1.0, self.norm_cap / length) if length > 0 else joined
        self._previous, self._previous_norms = [list(task) for task in tasks], sizes
        found = weighted_([[part.clone() for part in tasks[0]], *tasks[1:]], joined)
        return self._smoothed(found) if self.momentum else found

    def _stability(self, tasks: Tasks, sizes: Sequence[float]) -> list[float]:
        """`max(0, cos(g_t, g_(t-1)))` of each loss; 0 in the first step."""
        if not self._previous:
            return [0.0] * len(tasks)
        found = []
        for task, before, size, size_before in zip(tasks, self._previous, sizes, self._previous_norms, strict=True):
            both = size * size_before
            found.append(max(0.0, float(each_product(task, before).sum()) / both) if both > 0 else 0.0)
        return found

    def _strengths(self, sizes: Sequence[float]) -> list[float]:
        """Norms over running norms, which learn."""
        if not self._running:
            self._running = [size if self.norm_start is None else self.norm_start for size in sizes]
        rest = 1 - self.norm_ema
        self._running = [self.norm_ema * held + rest * size for held, size in zip(self._running, sizes, strict=True)]
        return [size / held if held > 0 else 0.0 for size, held in zip(sizes, self._running, strict=True)]

    def _settle(self, products: Tensor, stability: Sequence[float], strength: Sequence[float]) -> Tensor:
        """Coefficients (K, K): row k is the bent gradient k in terms of those that came."""
        count = len(products)
        self._won = self._won or [[] for _ in range(count)]
        weak = self.thresholds[2]
        mixed = torch.eye(count, dtype=torch.float64)
        least = products.diagonal().max() * 1e-24
        for _ in range(2 * count if self.max_iterations is None else self.max_iterations):
            now = mixed @ products @ mixed.T
            squares = now.diagonal()
            there = squares > least
            both = there.unsqueeze(0) & there.unsqueeze(1) & ~torch.eye(count, dtype=torch.bool)
            if not bool(both.any()):
                break
            scale = torch.where(there, squares, 1).sqrt()
            cosines = torch.where(both, now / scale.unsqueeze(0) / scale.unsqueeze(1), torch.inf)
            place = int(cosines.argmin())
            if float(cosines.flatten()[place]) >= weak - 1e-12:
                break
            i, j = sorted(divmod(place, count))
            winner, loser = self._arbitrate(i, j, stability, strength)
            self._bend_(mixed, now, winner, loser, float(cosines[i, j]))
        return mixed

    def _arbitrate(self, i: int, j: int, stability: Sequence[float], strength: Sequence[float]) -> tuple[int, int]:
        window = self.dominance_window
        dominant = [len(self._won[k]) >= window and all(self._won[k][-window:]) for k in (i, j)]
        if dominant[0] != dominant[1]:
            winner = j if dominant[0] else i
        else:
            together = strength[i] + strength[j]
            scores = [
                self.score_weights[0] * stability[k]
                + self.score_weights[1] * (strength[k] / together if together else 0.5)
                for k in (i, j)
            ]
            winner = j if scores[1] > scores[0] else i
        loser = i + j - winner
        for k in (i, j):
            self._won[k] = [*self._won[k], k == winner][-window:]
        return winner, loser

    def _bend_(self, mixed: Tensor, now: Tensor, winner: int, loser: int, cosine: float) -> None:
        by_loser, by_winner = self._factors(cosine)
        product = now[winner, loser]
        old_winner, old_loser = mixed[winner].clone(), mixed[loser].clone()
        mixed[winner] -= by_loser * product / now[loser, loser] * old_loser
        if math.isinf(by_winner):
            mixed[loser] = 0
        else:
            mixed[loser] -= by_winner * product / now[winner, winner] * old_winner

    def _factors(self, cosine: float) -> tuple[float, float]:
        """How much of its part along the other the winner loses, and the loser; infinite: the loser is dropped."""
        critical, main, _ = self.thresholds
        if self.smooth:
            angle = self.angle(cosine)
            return (0.0 if angle == math.pi else math.sin(angle)), math.sin(min(angle, math.pi / 2))
        if cosine <= critical:
            return 0.0, math.inf
        return (0.0, 1.0) if cosine < main else (1.0, 1.0)

    def angle(self, cosine: float) -> float:
        """The angle of a pair with that cosine below the weak threshold.

        Example:
            >>> round(GCond().angle(-0.4), 6)
            1.256637
        """
        critical, main, weak = self.thresholds
        if cosine <= critical:
            return math.pi
        if cosine >= main:
            return math.pi / 2 * (1 - (cosine - main) / (weak - main))
        return float(math.pi / 2 * (1 + ((cosine - main) / (critical - main)) ** self.power))

    def _smoothed(self, found: list[Tensor]) -> list[Tensor]:
        if not self._mean:
            self._mean = [torch.zeros_like(part, dtype=working_dtype(part)) for part in found]
        self._steps += 1
        for held, part in zip(self._mean, found, strict=True):
            held.lerp_(part.to(held.dtype), 1 - self.momentum)
            part.copy_(held / (1 - self.momentum**self._steps))
        return found

    def settings(self) -> dict[str, Any]:
        """All but the memory."""
        named = (
            "power",
            "smooth",
            "dominance_window",
            "norm_ema",
            "norm_start",
            "norm_cap",
            "max_iterations",
            "momentum",
        )
        held = {"thresholds": list(self.thresholds), "weights": list(self.score_weights)}
        return held | {name: getattr(self, name) for name in named}

    def memory(self) -> dict[str, Any]:
        """Mean, last gradients, running norms, conflicts won."""
        return {
            "steps": self._steps,
            "mean": list(self._mean),
            "previous": [list(task) for task in self._previous],
            "previous_norms": list(self._previous_norms),
            "running": list(self._running),
            "won": [list(won) for won in self._won],
        }

    def remember(self, memory: dict[str, Any]) -> None:
        """Go on from there."""
        self._steps = int(memory["steps"])
        self._mean = [part.clone() for part in memory["mean"]]
        self._previous = [[part.clone() for part in task] for task in memory["previous"]]
        self._previous_norms, self._running = list(memory["previous_norms"]), list(memory["running"])
        self._won = [list(won) for won in memory["won"]]
