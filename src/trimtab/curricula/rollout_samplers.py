"""Samplers for questions with a right answer: by how uncertain the outcome of a try is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.data import Sampler

from trimtab.checks import number, one_of, positive, shares, whole
from trimtab.collectives import first_ranks_, is_distributed

Gain = Literal["p(1-p)", "mixed"]
GAINS = ("p(1-p)", "mixed")


def _checked_items(ids: Sequence[int] | Tensor, items: int, *others: Sequence[float] | Tensor) -> Tensor:
    """Ids of different items, as int64 on the CPU, with as many values each."""
    found = torch.as_tensor(ids)
    if found.is_floating_point() or found.dtype == torch.bool:
        raise TypeError(f"ids must be whole numbers, got {found.dtype}")
    found = found.long().cpu()
    if found.ndim != 1 or any(len(other) != len(found) for other in others):
        raise ValueError(f"there must be one value of each kind for each of {len(found)} ids")
    if len(found) and not 0 <= int(found.min()) <= int(found.max()) < items:
        raise ValueError(f"ids must lie in 0..{items - 1}, found {int(found.min())}..{int(found.max())}")
    if len(torch.unique(found)) < len(found):
        values, counts = torch.unique(found, return_counts=True)
        raise ValueError(f"item {int(values[counts > 1][0])} stands twice in one update; add its tries up")
    return found


def _of_first_rank(drawn: Tensor) -> Tensor:
    """What rank 0 drew."""
    if is_distributed():
        device = torch.device("cuda") if dist.get_backend() == "nccl" else torch.device("cpu")
        return first_ranks_(drawn.to(device)).cpu()
    return drawn


class _Drawing(Sampler[int]):
    """Draws of one epoch, the same on all ranks; rank r gets every world-th."""

    def __init__(self, items: int, length: int | None, seed: int, rank: int, world: int) -> None:
        self.items = whole("items", items, least=1)
        self.world = whole("world", world, least=1)
        self.rank = whole("rank", rank, 0, world - 1)
        self.length = whole("length", items if length is None else length, least=world) // world * world
        self.seed = whole("seed", seed, least=0)
        self.draws = 0

    def draw(self, count: int) -> Tensor:
        """So many items, int64; what all ranks train on together. Every rank must call it."""
        whole("count", count, least=1)
        generator = np.random.default_rng((self.seed, self.draws))
        self.draws += 1
        return _of_first_rank(torch.from_numpy(self._drawn(count, generator)))

    def _drawn(self, count: int, generator: np.random.Generator) -> Any:
        raise NotImplementedError

    def __len__(self) -> int:
        return self.length // self.world

    def __iter__(self) -> Iterator[int]:
        """One epoch of this rank, drawn by what is known now."""
        return iter(self.draw(self.length)[self.rank :: self.world].tolist())

    def _arrays(self) -> dict[str, Tensor]:
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """What is known of every item, and the number of draws so far."""
        return {"seed": self.seed, "draws": self.draws, **{name: one.clone() for name, one in self._arrays().items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there.

        Raises:
            ValueError: the state is of another seed or number of items.
        """
        for name, own in self._arrays().items():
            if state["seed"] != self.seed or state[name].shape != own.shape:
                raise ValueError(
                    f"the state is of seed {state['seed']} and {len(state[name])} items, this sampler of {self.seed} and "
                    f"{self.items}"
                )
            own.copy_(state[name])
        self.draws = int(state["draws"])


class VarianceSampler(_Drawing):
    """VAS: questions whose tries come out now right, now wrong, and unlike each other, are drawn more often.

    `score = alpha p (1 - p) + beta diversity`, with p the share of right tries; of every draw the part `mix` goes by the
    score, with repetition, the rest is uniform.

    Args:
        items: questions; their ids are 0 to items - 1.
        alpha, beta: 0 or more, not both 0. Default 0.8 and 0.2 (paper).
        mix: in [0, 1]. Default 0.5 (paper).
        refresh: steps after which the scores should be measured anew; `due(step)` says when. Default 35 (paper, with 32 tries).
        length: draws of an epoch over all ranks. Default the number of items.
        seed: of the draws.
        rank, world: this process and their number.

    Raises:
        ValueError: a setting is out of range; (at an update) an id out of range or twice, a rate or diversity outside [0, 1].

    A question without a measurement has the mean score of those measured [ours]; before the first all are alike. The draws are
    those of rank 0. `trimtab.curricula.edit_diversity` and its like give the diversity of the tries.

    Reference: MMR1, arXiv 2509.21268.

    Example:
        >>> sampler = VarianceSampler(items=4)
        >>> sampler.update([0, 1, 2, 3], rates=[0, 0.5, 1, 0.25], diversity=[0.1, 0.2, 0.3, 0.4])
        >>> sampler.probabilities()
        tensor([0.1432, 0.3432, 0.1795, 0.3341], dtype=torch.float64)
    """

    def __init__(
        self,
        items: int,
        alpha: float = 0.8,
        beta: float = 0.2,
        mix: float = 0.5,
        refresh: int = 35,
        *,
        length: int | None = None,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        super().__init__(items, length, seed, rank, world)
        self.alpha, self.beta = shares("alpha, beta", (alpha, beta))
        self.mix = number("mix", mix, least=0, most=1)
        self.refresh = whole("refresh", refresh, least=1)
        self.rates = torch.full((items,), torch.nan, dtype=torch.float64)
        self.diversity = torch.full((items,), torch.nan, dtype=torch.float64)

    def due(self, step: int) -> bool:
        """Whether the questions should be tried anew before this step."""
        return whole("step", step, least=0) % self.refresh == 0

    def update(
        self,
        ids: Sequence[int] | Tensor,
        rates: Sequence[float] | Tensor,
        diversity: Sequence[float] | Tensor | None = None,
    ) -> None:
        """Take in measurements: of each id the share of right tries, and how unlike the tries are (0 where not given)."""
        given = [0.0] * len(ids) if diversity is None else diversity
        places = _checked_items(ids, self.items, rates, given)
        found = [torch.as_tensor(one, dtype=torch.float64).cpu() for one in (rates, given)]
        for name, values in zip(("rates", "diversity"), found, strict=True):
            if not bool(((values >= 0) & (values <= 1)).all()):
                raise ValueError(f"{name} must lie in [0, 1], got {values.tolist()}")
        self.rates[places], self.diversity[places] = found

    def scores(self) -> Tensor:
        """Of every question, float64; NaN where it was not measured."""
        return self.alpha * self.rates * (1 - self.rates) + self.beta * self.diversity

    def probabilities(self) -> Tensor:
        """Chance of every question at each draw, float64."""
        scores, even = self.scores(), torch.full((self.items,), 1 / self.items, dtype=torch.float64)
        scores = scores.nan_to_num(float(scores.nanmean()) if bool(scores.isfinite().any()) else 1.0)
        total = scores.sum()
        return self.mix * scores / total + (1 - self.mix) * even if float(total) > 0 else even

    def _drawn(self, count: int, generator: np.random.Generator) -> Any:
        scored = generator.binomial(count, self.mix)
        chances = (self.probabilities() - (1 - self.mix) / self.items).clamp(min=0).numpy()
        by_score = chances / chances.sum() if chances.sum() > 0 else None
        drawn = np.concatenate(
            [generator.choice(self.items, scored, p=by_score), generator.integers(self.items, size=count - scored)]
        )
        return generator.permutation(drawn)

    def _arrays(self) -> dict[str, Tensor]:
        return {"rates": self.rates, "diversity": self.diversity}

    def __repr__(self) -> str:
        return (
            f"VarianceSampler(items={self.items}, alpha={self.alpha}, beta={self.beta}, mix={self.mix}, "
            f"refresh={self.refresh})"
        )


class BetaDifficultySampler(_Drawing):
    """VADE: what is known of each question's pass rate is a Beta distribution; questions are drawn by Thompson sampling.

    Each draw takes `p ~ Beta(a, b)` of every question and the questions whose p gains most; after the tries
    `a <- prior + decay (a - prior) + right` and `b` alike with the wrong ones, so that old evidence fades while the policy
    changes.

    Args:
        items: questions; their ids are 0 to items - 1.
        gain: "p(1-p)" (default [ours]), the variance of a right-or-wrong reward, or "mixed", the chance `1 - p^n - (1 - p)^n`
            that a group of n tries holds both.
        seen, unseen: decay of the evidence of a question at an update with it and at one without, in [0, 1]. Default 0.9 and
            0.99 [ours]; the published values were not found. 1: nothing fades.
        prior: of a and b, above 0. Default (1, 1): nothing known.
        group: tries of a group, for "mixed". Default 8.
        length, seed, rank, world: as in `VarianceSampler`. An epoch draws `length` questions, `batch` at a time.
        batch: questions of one Thompson draw, all different. Default 1.

    Raises:
        ValueError: a setting is out of range; (at an update) an id out of range or twice, negative tries, more questions asked
            for at once than there are.

    The decay bounds what is remembered at 1 / (1 - seen) visits.

    Reference: VADE, arXiv 2511.18902.

    Example:
        >>> sampler = BetaDifficultySampler(items=2)
        >>> sampler.a[0], sampler.b[0] = 5, 3
        >>> sampler.update([0], right=[2], wrong=[6])
        >>> sampler.a, sampler.b
        (tensor([6.6000, 1.0000], dtype=torch.float64), tensor([8.8000, 1.0000], dtype=torch.float64))
    """

    def __init__(
        self,
        items: int,
        gain: Gain = "p(1-p)",
        seen: float = 0.9,
        unseen: float = 0.99,
        prior: tuple[float, float] = (1.0, 1.0),
        *,
        group: int = 8,
        batch: int = 1,
        length: int | None = None,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        super().__init__(items, length, seed, rank, world)
        self.gain = one_of("gain", gain, GAINS)
        self.seen, self.unseen = (
            number(name, value, least=0, most=1) for name, value in (("seen", seen), ("unseen", unseen))
        )
        self.prior = positive("prior", prior[0]), positive("prior", prior[1])
        self.group = whole("group", group, least=2)
        self.batch = whole("batch", batch, 1, self.items)
        self.a = torch.full((items,), self.prior[0], dtype=torch.float64)
        self.b = torch.full((items,), self.prior[1], dtype=torch.float64)

    def update(
        self, ids: Sequence[int] | Tensor, right: Sequence[float] | Tensor, wrong: Sequence[float] | Tensor
    ) -> None:
        """Take in the tries of these questions; the evidence of all others fades too."""
        places = _checked_items(ids, self.items, right, wrong)
        added = [torch.as_tensor(one, dtype=torch.float64).cpu() for one in (right, wrong)]
        for name, values in zip(("right", "wrong"), added, strict=True):
            if not bool((values >= 0).all()) or not bool(values.isfinite().all()):
                raise ValueError(f"{name} must be numbers of tries, 0 or more, got {values.tolist()}")
        decay = torch.full((self.items,), self.unseen, dtype=torch.float64)
        decay[places] = self.seen
        for held, prior, more in zip((self.a, self.b), self.prior, added, strict=True):
            held.copy_(prior + decay * (held - prior))
            held[places] += more

    def rates(self) -> Tensor:
        """Expected pass rate of every question, `a / (a + b)`."""
        return self.a / (self.a + self.b)

    def _drawn(self, count: int, generator: np.random.Generator) -> Any:
        a, b, parts = self.a.numpy(), self.b.numpy(), []
        for start in range(0, count, self.batch):
            p = generator.beta(a, b)
            n = self.group
            gains = p * (1 - p) if self.gain == "p(1-p)" else 1 - p**n - (1 - p) ** n
            parts.append(np.argsort(-gains, kind="stable")[: min(self.batch, count - start)])
        return np.concatenate(parts)

    def _arrays(self) -> dict[str, Tensor]:
        return {"a": self.a, "b": self.b}

    def __repr__(self) -> str:
        return (
            f"BetaDifficultySampler(items={self.items}, gain={self.gain!r}, seen={self.seen}, unseen={self.unseen}, "
            f"prior={self.prior})"
        )
