"""Dynamic sparse training: RigL (Evci et al. 2020, arXiv 1911.11134) and SET (Mocanu et al. 2018, arXiv 1707.04780)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from trimtab.checks import number, one_of, whole
from trimtab.parameters import Entry, Rule
from trimtab.parameters.zeros import set_zeros_
from trimtab.pruning.along_training import of_run
from trimtab.pruning.masked_training import MaskedTraining
from trimtab.tensors.zeros import refuse_nan, smallest_or_refusal

Distribution = Literal["erk", "uniform"]
Grow = Literal["gradient", "random"]
Start = Literal["random", "magnitude"]
FirstLayer = Literal["as_published", "dense", "sparse"]


class DynamicSparse(MaskedTraining):
    """Sparse from the first step to the last: now and then the smallest weights go and as many come back elsewhere.

    Formula: at the start exactly `floor(sparsity n + 0.5)` of the n weights are masked. After each `every` steps, while
    t < T = stop * total_steps, in every tensor with `a` weights left

        f = fraction / 2 (1 + cos(pi t / T)),    k = floor(f a):

    the k smallest |w| of those left go, then the k of all that are gone now with the largest |gradient| come back, at 0
    (`grow="random"`: k at random). Ties go by position. One that has just gone may come back at once and keeps its value. The
    gradient is that of the step before, at the masked weights; the optimizer takes this step, too [ours; RigL skips it].

    Args:
        sparsity: fraction of the weights that is zero, in (0, 1). Default 0.9.
        distribution: "erk" (default): density of a layer `min(1, c sum(shape) / prod(shape))`; "uniform": the same sparsity for
            each, the first layer left dense (paper) unless `first_layer` says otherwise.
        grow: "gradient" (default, RigL) or "random" (SET).
        fraction: of the weights left that move at the first update, in (0, 1]. Default 0.3 (paper).
        every: steps between updates. Default 100 (paper), less where the run has not ten of them [ours].
        stop: no update from this fraction of the run on, in (0, 1]. Default 0.75 (paper).
        start: "random" (default, paper) or "magnitude": the smallest go, for a network that is trained already [ours].
        first_layer: "dense", "sparse" or "as_published" (default): dense with "uniform" only.
        total_steps: optimizer steps of the whole run; `trimtab train` gives it.
        seed: of the masks at the start and of random growth; the same on every rank.
        rule: which weights take part. Default: what `one_shot` prunes and the optimizer trains.

    What the optimizer remembers of a weight that goes (momentum, Adam's moments) is set to zero. `set` is this lever with
    `grow="random"`, `rigl` with "gradient".

    Raises:
        ValueError: a number out of range, no weight to prune, sharded weights; at attach an optimizer whose state lies on other
            ranks; in training a weight that is NaN when it is time to update.
        TypeError: a value of the wrong kind, or (in training) a sparse gradient.

    Source: arXiv 1911.11134 (RigL), 1707.04780 (SET).

    Example:
        >>> import trimtab
        >>> net = torch.nn.Linear(10, 10)
        >>> optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        >>> lever = DynamicSparse(0.8, every=1, total_steps=4)
        >>> handle = trimtab.attach(optimizer, lever, model=net)
        >>> net(torch.ones(1, 10)).sum().backward()
        >>> optimizer.step()
        >>> int((lever.masks["weight"]).sum()), lever.sparsity_now
        (20, 0.8)
    """

    resets_state = True

    def __init__(
        self,
        sparsity: float = 0.9,
        distribution: Distribution = "erk",
        grow: Grow = "gradient",
        fraction: float = 0.3,
        every: int | None = None,
        stop: float = 0.75,
        start: Start = "random",
        first_layer: FirstLayer = "as_published",
        *,
        total_steps: int,
        seed: int = 0,
        rule: Rule | None = None,
    ) -> None:
        self.distribution: Distribution = one_of("distribution", distribution, ("erk", "uniform"))  # type: ignore[assignment]
        super().__init__("sparsity", sparsity, total_steps, "erk" if distribution == "erk" else "layer", rule)
        self.grow: Grow = one_of("grow", grow, ("gradient", "random"))  # type: ignore[assignment]
        self.fraction = number("fraction", fraction, above=0, most=1)
        self.stop = number("stop", stop, above=0, most=1)
        self._last = of_run(self.stop, self.total_steps)
        self.every = min(100, max(1, self._last // 10)) if every is None else whole("every", every, 1)
        self.start: Start = one_of("start", start, ("random", "magnitude"))  # type: ignore[assignment]
        self.first_layer: FirstLayer = one_of("first_layer", first_layer, get_args(FirstLayer))  # type: ignore[assignment]
        self.seed = whole("seed", seed, 0)
        self._gradients: dict[str, Tensor] = {}
        """Sizes of the gradient at all weights, of a step after which weights come back."""

    @property
    def sparsity(self) -> float:
        """Fraction of the weights that is zero."""
        return self._final

    def settings(self) -> dict[str, Any]:
        """Sparsity, where it lies, and how it moves."""
        own = (
            "sparsity",
            "distribution",
            "grow",
            "fraction",
            "every",
            "stop",
            "start",
            "first_layer",
            "total_steps",
            "seed",
        )
        return {name: getattr(self, name) for name in own}

    def fraction_at(self, steps: int) -> float:
        """The fraction f of the weights left that moves after so many steps.

        Example:
            >>> lever = DynamicSparse(0.9, stop=1.0, total_steps=100)
            >>> [round(lever.fraction_at(steps), 4) for steps in (0, 50, 100)]
            [0.3, 0.15, 0.0]
        """
        if steps >= self._last:
            return 0.0
        return self.fraction / 2 * (1 + math.cos(math.pi * steps / self._last))

    def _moves_after(self, steps: int) -> bool:
        return 0 < steps < self._last and steps % self.every == 0

    def _due_at_start(self) -> bool:
        return True

    def _reason_against(self, entry: Entry) -> str | None:
        return None if entry.computed is None else "computed from other parameters: no gradient of its own to grow by"

    def _find(self, parameters: Sequence[Entry]) -> list[Entry]:
        chosen = super()._find(parameters)
        if self.first_layer == "sparse" or (self.first_layer, self.distribution) == ("as_published", "erk"):
            return chosen
        return self._without_first(chosen, "dense")

    @torch.no_grad()
    def before_step(self, parameters: Sequence[Entry]) -> None:
        """Set the gradients of masked weights to zero, once seen where weights may come back; called by `trimtab.attach`."""
        if self.grow == "gradient" and self._moves_after(self.steps + 1):
            self._gradients = {
                entry.name: entry.parameter.grad.abs()
                for entry in self._dense_ones(parameters)
                if entry.parameter.grad is not None
            }
        super().before_step(parameters)

    def _act(self, chosen: list[Entry]) -> None:
        if self.steps == 0:
            self._begin(chosen)
        elif self._moves_after(self.steps):
            fraction = self.fraction_at(self.steps)
            generator = self._generator()
            for entry in chosen:
                self._move(entry, fraction, generator)
            self._gradients = {}

    def _generator(self) -> torch.Generator:
        """Of this step; nothing of it need be kept for a run that goes on."""
        return torch.Generator().manual_seed((self.seed * 1_000_003 + self.steps) % 2**32)

    def _begin(self, chosen: list[Entry]) -> None:
        if self.start == "magnitude":
            self._prune(chosen, self._final)
            return
        generator = self._generator()
        for group, count in self._groups(chosen, self._final):
            for entry in group if count else ():  # with these scopes each group is one tensor
                drawn = _random(entry.parameter, generator)
                (gone,) = smallest_or_refusal(self, self.steps, [entry], [drawn], count)
                self._gone[entry.name] = torch.empty_like(entry.parameter, dtype=torch.bool).copy_(gone)
                set_zeros_(entry, self._gone[entry.name])

    def _move(self, entry: Entry, fraction: float, generator: torch.Generator) -> None:
        weight, before = entry.parameter.detach(), self._gone.get(entry.name)
        drawn = _random(weight, generator) if self.grow == "random" else None
        if before is None:
            return
        refuse_nan(self, self.steps, [entry], [weight])
        count = int(fraction * (weight.numel() - int(before.count_nonzero())))
        growth = self._gradients.get(entry.name) if drawn is None else drawn
        if count == 0 or growth is None:
            return
        (dropped,) = smallest_or_refusal(
            self, self.steps, [entry], [weight.abs().masked_fill_(before, math.inf)], count, absolute=False
        )
        gone = before | dropped
        order = growth.nan_to_num(nan=0.0).neg().masked_fill_(~gone, math.inf)  # a NaN gradient brings nothing back
        (grown,) = smallest_or_refusal(self, self.steps, [entry], [order], count, absolute=False)
        after = torch.empty_like(before).copy_(gone & ~grown)
        self._gone[entry.name] = before | after  # what they remember of those that go, and of those that come, is none
        self._reset_state([entry])
        self._gone[entry.name] = after
        set_zeros_(entry, after)


def _random(weight: Tensor, generator: torch.Generator) -> Tensor:
    """Uniform numbers, drawn on the CPU, so that every device and rank draws the same."""
    return torch.rand(weight.shape, generator=generator, dtype=torch.float64).to(weight.device)
