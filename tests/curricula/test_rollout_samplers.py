"""VAS and VADE: the sheet's numbers, shares of the draws, what drift does, resuming, ranks; diversity; bad input."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch

from tests.distributed import on_two_ranks
from trimtab.curricula import BetaDifficultySampler, VarianceSampler, distinct, edit_diversity, self_bleu_diversity


def measured(**given: Any) -> VarianceSampler:
    sampler = VarianceSampler(4, **given)
    sampler.update([0, 1, 2, 3], [0, 0.5, 1, 0.25], [0.1, 0.2, 0.3, 0.4])
    return sampler


def test_vas_equals_the_sheets_numbers() -> None:
    expected = [0.1431818182, 0.3431818182, 0.1795454545, 0.3340909091]
    assert measured().probabilities().tolist() == pytest.approx(expected, rel=1e-8)


@pytest.mark.parametrize("mix", [0.0, 0.5, 1.0])
def test_vas_draws_by_its_probabilities(mix: float) -> None:
    sampler = measured(mix=mix)
    counts = Counter(sampler.draw(40_000).tolist())
    found = torch.tensor([counts[item] / 40_000 for item in range(4)], dtype=torch.float64)
    torch.testing.assert_close(found, sampler.probabilities(), atol=0.01, rtol=0)


def test_vas_takes_what_was_not_measured_as_the_mean() -> None:
    sampler = VarianceSampler(3, mix=1.0)
    assert sampler.probabilities().tolist() == pytest.approx([1 / 3] * 3)
    sampler.update(torch.tensor([0, 1]), torch.tensor([0.5, 1.0]))
    assert sampler.probabilities().tolist() == pytest.approx([2 / 3, 0, 1 / 3])
    sampler.update([0, 2], [1.0, 1.0])  # all alike: nothing to prefer
    assert sampler.probabilities().tolist() == pytest.approx([1 / 3] * 3)
    assert set(sampler.draw(50).tolist()) == {0, 1, 2}
    assert [step for step in range(80) if sampler.due(step)] == [0, 35, 70]


def test_vade_equals_the_sheets_numbers() -> None:
    sampler = BetaDifficultySampler(2)
    sampler.a[0], sampler.b[0] = 5, 3
    sampler.update([0], [2], [6])
    assert (sampler.a.tolist(), sampler.b.tolist()) == ([6.6, 1.0], [8.8, 1.0])
    sampler.update([1], [1], [0])  # now the first fades by 0.99
    assert sampler.a.tolist() == pytest.approx([1 + 0.99 * 5.6, 2])


@pytest.mark.parametrize("gain", ["p(1-p)", "mixed"])
def test_vade_prefers_what_comes_out_now_right_now_wrong(gain: Any) -> None:
    sampler = BetaDifficultySampler(3, gain)
    sampler.update([0, 1, 2], right=[200, 100, 0], wrong=[0, 100, 200])
    assert Counter(sampler.draw(200).tolist())[1] > 190
    assert sampler.rates().tolist() == pytest.approx([201 / 202, 0.5, 1 / 202])


def test_vade_draws_different_questions_of_one_draw() -> None:
    sampler = BetaDifficultySampler(6, batch=6, length=12)
    epoch = list(sampler)
    assert sorted(epoch[:6]) == sorted(epoch[6:]) == list(range(6))


def mixed_share(name: str) -> float:
    """Share of groups of 8 tries that hold both outcomes, while 300 questions grow easier with training."""
    generator = np.random.default_rng(0)
    start = generator.normal(-3, 2, 300)
    sampler: Any = {
        "vade": lambda: BetaDifficultySampler(300, "mixed", batch=32),
        "vas": lambda: VarianceSampler(300),
        "uniform": lambda: VarianceSampler(300, mix=0.0),
    }[name]()
    mixed = total = 0
    for step in range(120):
        rates = 1 / (1 + np.exp(-(start + 0.05 * step)))
        drawn = np.unique(sampler.draw(32).numpy())
        right = generator.binomial(8, rates[drawn])
        if step >= 40:
            mixed, total = mixed + int(((right > 0) & (right < 8)).sum()), total + len(drawn)
        if name == "vade":
            sampler.update(torch.from_numpy(drawn), right, 8 - right)
        else:
            sampler.update(torch.from_numpy(drawn), right / 8)
    return mixed / total


def test_after_drift_both_find_more_mixed_groups_than_uniform_draws() -> None:
    shares = {name: mixed_share(name) for name in ("vade", "vas", "uniform")}
    assert shares["vade"] > shares["uniform"] + 0.1
    assert shares["vas"] > shares["uniform"]


@pytest.mark.parametrize("make", [lambda **given: measured(**given), lambda **given: BetaDifficultySampler(4, **given)])
def test_saved_and_loaded_it_draws_on_as_before(make: Any) -> None:
    whole, begun, resumed = make(seed=3), make(seed=3), make(seed=3)
    expected = [whole.draw(20).tolist() for _ in range(4)]
    assert [begun.draw(20).tolist() for _ in range(2)] == expected[:2]
    resumed.load_state_dict(begun.state_dict())
    assert [resumed.draw(20).tolist() for _ in range(2)] == expected[2:]
    with pytest.raises(ValueError, match="the state is of seed 3 and 4 items, this sampler of 0 and 4"):
        make().load_state_dict(begun.state_dict())


def test_ranks_share_one_epoch() -> None:
    alone = list(BetaDifficultySampler(6, length=13, seed=1, world=1))
    parts = [list(BetaDifficultySampler(6, length=13, seed=1, rank=rank, world=2)) for rank in range(2)]
    assert len(alone) == 13
    assert [one for pair in zip(*parts, strict=True) for one in pair] == alone[:12]
    assert len(BetaDifficultySampler(6, length=13, world=2)) == 6


def on_rank(rank: int, world: int) -> list[int]:
    sampler = VarianceSampler(8, mix=1.0, seed=rank)  # each knows something else and draws otherwise
    sampler.update([rank], [0.5])
    return sampler.draw(10).tolist()


def test_the_first_rank_draws_for_all() -> None:
    first, second = on_two_ranks(on_rank)
    sampler = VarianceSampler(8, mix=1.0, seed=0)
    sampler.update([0], [0.5])
    assert first == second == sampler.draw(10).tolist()


def test_diversity_in_closed_form() -> None:
    assert edit_diversity(["abcd", "abcd"]) == 0
    assert edit_diversity(["ab", "cd"]) == 1
    assert edit_diversity(["kitten", "sitting"]) == pytest.approx(3 / 7)
    assert edit_diversity(["a", "", "ab"]) == pytest.approx((1 + 0.5 + 1) / 3)
    assert distinct([[1, 2, 3], [1, 2, 4]], 2) == pytest.approx(3 / 4)
    assert distinct(["a"], 2) == 0
    assert self_bleu_diversity([["a", "b", "c", "d"]] * 3) == pytest.approx(0)
    assert self_bleu_diversity([["a", "b", "c", "d"], ["e", "f", "g", "h"]]) == 1
    middle = self_bleu_diversity([["a", "b", "c", "d", "e"], ["a", "b", "c", "d", "f"]])
    runs = (4 / 5) * (4 / 5) * (3 / 4) * (2 / 3)
    assert middle == pytest.approx(1 - runs**0.25)


BAD: list[tuple[Any, type[Exception], str]] = [
    (lambda: VarianceSampler(0), ValueError, "items must be a whole number of 1 or more, got 0"),
    (lambda: VarianceSampler(2, alpha=0, beta=0), ValueError, "alpha, beta must be 0 or more and not all 0"),
    (lambda: VarianceSampler(2).update([0, 0], [0.1, 0.2]), ValueError, "item 0 stands twice in one update"),
    (lambda: VarianceSampler(2).update([2], [0.1]), ValueError, r"ids must lie in 0\.\.1, found 2\.\.2"),
    (lambda: VarianceSampler(2).update([0], [1.5]), ValueError, r"rates must lie in \[0, 1\]"),
    (lambda: VarianceSampler(2).update([0], [0.1, 0.2]), ValueError, "one value of each kind for each of 1 ids"),
    (lambda: VarianceSampler(2).update(torch.tensor([0.0]), [0.1]), TypeError, "ids must be whole numbers"),
    (lambda: BetaDifficultySampler(2, "entropy"), ValueError, "gain must be one of"),  # type: ignore[arg-type]
    (lambda: BetaDifficultySampler(2, seen=1.1), ValueError, r"seen must lie in \[0, 1\], got 1\.1"),
    (lambda: BetaDifficultySampler(2).update([0], [-1], [0]), ValueError, "right must be numbers of tries"),
    (lambda: BetaDifficultySampler(2, batch=3), ValueError, r"batch must be a whole number in 1\.\.2, got 3"),
    (lambda: edit_diversity("ab"), ValueError, "diversity is of 2 answers or more"),
    (lambda: distinct(["a"], 0), ValueError, "n must be a whole number of 1 or more, got 0"),
]  # fmt: skip


@pytest.mark.parametrize(("act", "kind", "words"), BAD)
def test_bad_input_is_one_error(act: Any, kind: type[Exception], words: str) -> None:
    with pytest.raises(kind, match=words):
        act()
