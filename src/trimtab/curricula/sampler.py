"""Which items come when: a sampler that follows a stage scheduler, domain by domain."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import Sampler

from trimtab.curricula.base import StageScheduler


class CurriculumSampler(Sampler[int]):
    """Draws items of a map-style data set so that each epoch has the scheduler's shares of stages in every domain.

    The rules:

    * Domains get draws in proportion to their numbers of items. Within a domain, stage s gets `share_s` of them, rounded up or
      down by one seeded draw per domain (systematic sampling), so that a small share is right on average and never off by more
      than one.
    * The items of a stage and domain are drawn in a shuffled order that goes on from epoch to epoch and is shuffled anew when
      all were drawn: none is drawn again before all others of its stage and domain were. Then the epoch is shuffled as a whole.
    * A domain whose open stages have no items sits the epoch out (see `StageScheduler.add_domain`); its draws go to the others.
    * With `lengths`, the epoch's items are sorted by length, cut into batches of `bucket`, and the batches are shuffled: less
      padding, and batches that hold items alike, so often of one stage. Which items an epoch draws does not change.
    * The order is a function of seed, epoch, shares, lengths and the numbers drawn so far, nothing else.

    Call `scheduler.end_epoch()` between epochs; the sampler takes the new shares when it is iterated next.

    Args:
        stages: stage of every item.
        scheduler: its domains are added here.
        domains: domain of every item. Default one domain, "all".
        length: draws per epoch over all ranks. Default the number of items.
        seed: of all draws.
        batch: items in a row that are of one domain, for batches of one domain; `length` is rounded down to a multiple.
            Default 1.
        lengths: length of every item, in any unit. Default none: no bucketing.
        bucket: items of a batch, for bucketing by length; `length` is rounded down to a multiple. Needs `lengths`.
        rank, world: this process and their number: rank r gets blocks r, r + world, ... of one shared order, the tail that does
            not fill all ranks is left out. Leave them where the loop shards the sampler itself, as accelerate does.

    Raises:
        ValueError: no items, lists of unequal length, an unknown stage, a length too short for one block per rank, or lengths
            with `batch` above 1; (when iterated) no domain has items in its open stages.

    Example:
        >>> from trimtab.curricula import Mixed
        >>> sampler = CurriculumSampler(["easy", "easy", "medium", "hard"], Mixed(weights=(2, 1, 1)))
        >>> sorted(sampler)
        [0, 1, 2, 3]
    """

    def __init__(
        self,
        stages: Sequence[str],
        scheduler: StageScheduler,
        domains: Sequence[str] | None = None,
        length: int | None = None,
        seed: int = 0,
        batch: int = 1,
        rank: int = 0,
        world: int = 1,
        lengths: Sequence[float] | None = None,
        bucket: int = 1,
    ) -> None:
        if not len(stages):
            raise ValueError("a curriculum needs at least one item, got none")
        if domains is not None and len(domains) != len(stages):
            raise ValueError(f"{len(stages)} stages but {len(domains)} domains: one of each per item")
        if not 0 <= rank < world or batch < 1:
            raise ValueError(
                f"rank must lie in 0 .. world - 1 and batch be 1 or more, got rank {rank}, world {world}, batch {batch}"
            )
        if bucket != 1 if lengths is None else (len(lengths) != len(stages) or batch != 1 or bucket < 1):
            given = "no" if lengths is None else len(lengths)
            raise ValueError(
                f"bucketing takes one length per item, batch 1 and a bucket of 1 or more, got {given} lengths for "
                f"{len(stages)} items, batch {batch}, bucket {bucket}"
            )
        self.scheduler, self.seed, self.batch, self.rank, self.world = scheduler, seed, batch, rank, world
        self.lengths, self.bucket = lengths, bucket
        block = batch * bucket
        self.length = (len(stages) if length is None else length) // (block * world) * block * world
        if self.length < 1:
            raise ValueError(f"length {length} is too short for one block of {block} on each of {world} ranks")
        self._pools: dict[str, dict[str, list[int]]] = {}
        for item, stage in enumerate(stages):
            if stage not in scheduler.stages:
                raise ValueError(f"item {item} has stage {stage!r}; the scheduler has {', '.join(scheduler.stages)}")
            domain = "all" if domains is None else domains[item]
            self._pools.setdefault(domain, {}).setdefault(stage, []).append(item)
        self._pools = dict(sorted(self._pools.items()))
        for domain, pools in self._pools.items():
            scheduler.add_domain(domain, tuple(pools))
        self._drawn = {domain: dict.fromkeys(pools, 0) for domain, pools in self._pools.items()}
        self._position = 0
        self._order: list[int] | None = None
        self._order_epoch = 0
        self._before = self._copy_drawn()

    def _copy_drawn(self) -> dict[str, dict[str, int]]:
        return {domain: dict(drawn) for domain, drawn in self._drawn.items()}

    def __len__(self) -> int:
        """Draws per epoch of this rank."""
        return self.length // self.world

    def __iter__(self) -> Iterator[int]:
        """Indices of this rank; after `load_state_dict` those that are left of the interrupted epoch."""
        if self._order is None or self._order_epoch != self.scheduler.epoch:
            self._before = self._copy_drawn()
            self._order, self._position = self._epoch(), 0
            self._order_epoch = self.scheduler.epoch
        while self._position < len(self._order):
            self._position += 1
            yield self._order[self._position - 1]
        self._order, self._position = None, 0

    @property
    def left_out(self) -> tuple[str, ...]:
        """Domains that sit the running epoch out."""
        return tuple(domain for domain in self._pools if not any(self.scheduler.shares(domain).values()))

    def state_dict(self, consumed: int | None = None) -> dict[str, Any]:
        """Plain numbers and strings: where the running epoch stands.

        Args:
            consumed: draws of this rank that were trained on. Default those handed out, which are more where workers
                fetch ahead.
        """
        running = self._order is not None and self._order_epoch == self.scheduler.epoch
        return {
            "seed": self.seed,
            "length": self.length,
            "running": running,
            "position": (self._position if consumed is None else consumed) if running else 0,
            "drawn": {d: dict(v) for d, v in (self._before if running else self._drawn).items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on in the middle of the epoch; load the scheduler's state first.

        Raises:
            ValueError: the state is of another seed, length or data set.
        """
        if (state["seed"], state["length"]) != (self.seed, self.length):
            raise ValueError(
                f"the state has seed {state['seed']} and length {state['length']}, this sampler {self.seed} and {self.length}"
            )
        if {d: set(v) for d, v in state["drawn"].items()} != {d: set(v) for d, v in self._pools.items()}:
            raise ValueError("the state is of a data set with other domains or stages")
        self._drawn = {domain: dict(drawn) for domain, drawn in state["drawn"].items()}
        self._order, self._position = None, 0
        self._before = self._copy_drawn()
        if state["running"]:
            self._order = self._epoch()
            self._order_epoch = self.scheduler.epoch
            self._position = state["position"]

    def _generator(self, *what: object) -> torch.Generator:
        digest = hashlib.sha256(repr((self.seed, *what)).encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))

    def _epoch(self) -> list[int]:
        """The order of this rank, and count its draws (those of all ranks)."""
        epoch = self.scheduler.epoch
        generator = self._generator("epoch", epoch)
        shares = {domain: self.scheduler.shares(domain) for domain in self._pools}
        weights = [
            float(sum(map(len, pools.values()))) if any(shares[domain].values()) else 0.0
            for domain, pools in self._pools.items()
        ]
        if not any(weights):
            raise ValueError(f"epoch {epoch}: no domain has items in its open stages; shares are {shares}")
        blocks: list[list[int]] = []
        counts = systematic(self.length // self.batch, weights, generator)
        for (domain, pools), count in zip(self._pools.items(), counts, strict=True):
            if not count:
                continue
            stages = list(pools)
            numbers = systematic(count * self.batch, [shares[domain][stage] for stage in stages], generator)
            items = [
                item
                for stage, number in zip(stages, numbers, strict=True)
                for item in self._next(domain, stage, number)
            ]
            order = torch.randperm(len(items), generator=generator).tolist()
            blocks += [[items[i] for i in order[k : k + self.batch]] for k in range(0, len(items), self.batch)]
        mixed = torch.randperm(len(blocks), generator=generator).tolist()
        if self.lengths is not None:
            length = self.lengths
            blocks = [blocks[place] for place in mixed]  # sorted() keeps this order among items of one length
            every = sorted((item for block in blocks for item in block), key=lambda item: length[item])
            blocks = [every[start : start + self.bucket] for start in range(0, len(every), self.bucket)]
            mixed = torch.randperm(len(blocks), generator=generator).tolist()
        return [item for place in mixed[self.rank :: self.world] for item in blocks[place]]

    def _next(self, domain: str, stage: str, number: int) -> list[int]:
        pool, start = self._pools[domain][stage], self._drawn[domain][stage]
        self._drawn[domain][stage] = start + number
        found: list[int] = []
        for lap in range(start // len(pool), (start + number - 1) // len(pool) + 1) if number else ():
            order = torch.randperm(len(pool), generator=self._generator("pool", domain, stage, lap)).tolist()
            found += [
                pool[place] for place in order[max(start - lap * len(pool), 0) : start + number - lap * len(pool)]
            ]
        return found


def systematic(number: int, weights: Sequence[float], generator: torch.Generator) -> list[int]:
    """Counts that sum to `number`, each its weight's share rounded up or down, right on average over the generator.

    `count_i = floor(N c_i + u) - floor(N c_{i-1} + u)` with c the cumulative shares and u uniform in [0, 1).

    Example:
        >>> systematic(4, [2.0, 1.0, 1.0], torch.Generator().manual_seed(0))
        [2, 1, 1]
    """
    total = sum(weights)
    offset = float(torch.rand((), generator=generator, dtype=torch.float64))
    counts, before, reached = [], 0, 0.0
    last = max(place for place, weight in enumerate(weights) if weight > 0)
    for place, weight in enumerate(weights):
        reached += weight
        here = number if place >= last else min(number, int(number * reached / total + offset))
        counts.append(here - before)
        before = here
    return counts
