from collections import Counter
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from trimtab.curricula import Adaptive, CurriculumSampler, EasyOnly, Linear, Mixed
from trimtab.curricula.sampler import systematic

STAGES = ["easy"] * 40 + ["medium"] * 40 + ["hard"] * 40
DOMAINS = (["a"] * 30 + ["b"] * 10) * 3


def sampler(scheduler=None, **settings):
    return CurriculumSampler(STAGES, scheduler or Mixed(), domains=DOMAINS, **settings)


def test_stage_shares_follow_the_scheduler_in_every_domain():
    scheduler = Linear(epochs=5)
    found = sampler(scheduler, length=400)
    for _ in range(5):
        counts = Counter((DOMAINS[i], STAGES[i]) for i in found)
        for domain, weight in (("a", 0.75), ("b", 0.25)):
            for stage, share in scheduler.shares(domain).items():
                assert abs(counts[domain, stage] - 400 * weight * share) <= 1
        scheduler.end_epoch()


def test_small_shares_are_right_on_average():
    generator = torch.Generator().manual_seed(1)
    drawn = [systematic(20, [0.99, 0.01], generator)[1] for _ in range(2000)]
    assert set(drawn) == {0, 1}
    assert sum(drawn) / 2000 == pytest.approx(0.2, abs=0.03)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 50), st.lists(st.floats(0, 1), min_size=1, max_size=6).filter(any), st.integers(0, 100))
def test_systematic_counts_sum_and_are_within_one(number, weights, seed):
    counts = systematic(number, weights, torch.Generator().manual_seed(seed))
    assert sum(counts) == number
    for count, weight in zip(counts, weights, strict=True):
        assert abs(count - number * weight / sum(weights)) < 1 + 1e-9
        assert weight or not count


def test_no_item_comes_again_before_its_pool_is_used_up():
    scheduler = EasyOnly()
    found = CurriculumSampler(["easy"] * 7, scheduler, length=5, seed=3)
    drawn = []
    for _ in range(7):
        drawn += list(found)
        scheduler.end_epoch()
        counts = Counter(drawn)
        assert max(counts.values()) - min(counts[item] for item in range(7)) <= 1
    assert len(set(drawn[:5])) == 5
    assert drawn[:5] != drawn[5:10]


def test_seed_decides_the_order():
    assert list(sampler(seed=1)) == list(sampler(seed=1))
    assert list(sampler(seed=1)) != list(sampler(seed=2))


@pytest.mark.parametrize("stop", [0, 1, 37, 119, 120])
def test_state_survives_resume_in_the_middle_of_an_epoch(stop, tmp_path):
    def pieces(count):
        scheduler = Adaptive()
        return scheduler, sampler(scheduler, seed=5)

    def close(scheduler):
        for domain in ("a", "b"):
            for stage in scheduler.stages[:2]:
                scheduler.observe(domain, stage, 1.0)
        scheduler.end_epoch()

    scheduler, whole = pieces(0)
    expected = list(whole)
    close(scheduler)
    expected += [*whole]

    scheduler, first = pieces(0)
    iterator = iter(first)
    head = [next(iterator) for _ in range(stop)]
    torch.save({"scheduler": scheduler.state_dict(), "sampler": first.state_dict()}, tmp_path / "s.pt")
    state = torch.load(tmp_path / "s.pt", weights_only=True)
    scheduler, second = pieces(0)
    scheduler.load_state_dict(state["scheduler"])
    second.load_state_dict(state["sampler"])
    tail = list(second)
    if stop == 0:  # nothing begun: the epoch is whole
        assert len(tail) == 120
    close(scheduler)
    assert head + tail + list(second) == expected


def test_consumed_draws_count_not_those_fetched_ahead():
    found = sampler(seed=2)
    expected = list(sampler(seed=2))
    loader = iter(DataLoader(range(120), batch_size=4, sampler=found, num_workers=1, prefetch_factor=4))
    seen = [value for _ in range(3) for value in next(loader).tolist()]
    assert seen == expected[:12]
    assert found.state_dict()["position"] > 12
    again = sampler(seed=2)
    again.load_state_dict(found.state_dict(consumed=12))
    assert list(again) == expected[12:]


def test_ranks_get_disjoint_parts_of_one_order():
    whole = list(sampler(seed=4))
    parts = [list(sampler(seed=4, rank=rank, world=3)) for rank in range(3)]
    assert [len(part) for part in parts] == [40, 40, 40]
    assert [item for triple in zip(*parts, strict=True) for item in triple] == whole
    assert sum(map(len, [set(part) for part in parts])) == len(set(whole))


def test_batches_of_one_domain():
    found = sampler(batch=8, length=1000)
    order = list(found)
    assert len(order) == 1000
    for start in range(0, 1000, 8):
        assert len({DOMAINS[i] for i in order[start : start + 8]}) == 1
    assert {DOMAINS[i] for i in order} == {"a", "b"}
    assert Counter(STAGES[i] for i in order)["easy"] == pytest.approx(333, abs=2)


def test_a_domain_without_open_stages_is_left_out_and_named():
    scheduler = EasyOnly()
    found = CurriculumSampler(["easy", "easy", "hard"], scheduler, domains=["a", "a", "b"], length=10)
    assert found.left_out == ("b",)
    assert set(found) == {0, 1}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: CurriculumSampler([], Mixed()), "at least one item"),
        (lambda: CurriculumSampler(["easy"], Mixed(), domains=[]), "1 stages but 0 domains"),
        (lambda: CurriculumSampler(["harder"], Mixed()), "item 0 has stage 'harder'"),
        (lambda: CurriculumSampler(["easy"], Mixed(), batch=4), "too short"),
        (lambda: CurriculumSampler(["easy"], Mixed(), rank=1), "rank must lie"),
        (lambda: list(CurriculumSampler(["hard"], EasyOnly())), "no domain has items in its open stages"),
        (lambda: sampler(seed=1).load_state_dict(sampler(seed=2).state_dict()), "seed 2"),
        (lambda: CurriculumSampler(["easy"] * 120, Mixed()).load_state_dict(sampler().state_dict()), "other domains"),
    ],
)
def test_wrong_calls_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_bucketing_keeps_what_is_drawn_and_sorts_batches_by_length():
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, 100, (120,), generator=generator).tolist()
    plain, bucketed = sampler(length=96, seed=3), sampler(length=96, seed=3, lengths=lengths, bucket=8)
    for _ in range(3):
        drawn, order = list(plain), list(bucketed)
        assert sorted(drawn) == sorted(order)
        batches = [[lengths[item] for item in order[start : start + 8]] for start in range(0, 96, 8)]
        spans = sorted((min(batch), max(batch)) for batch in batches)
        assert all(first[1] <= second[0] for first, second in pairwise(spans))
        assert [min(batch) for batch in batches] != sorted(min(batch) for batch in batches)  # batches are shuffled
        padded = sum(8 * max(batch) for batch in batches)
        mixed = sum(8 * max(lengths[item] for item in drawn[start : start + 8]) for start in range(0, 96, 8))
        assert padded < 0.75 * mixed
        plain.scheduler.end_epoch(), bucketed.scheduler.end_epoch()


def test_bucketed_ranks_share_the_epoch_and_resume():
    lengths = [float(place % 17) for place in range(120)]
    ranks = [sampler(length=70, lengths=lengths, bucket=8, rank=rank, world=2) for rank in (0, 1)]
    orders = [list(one) for one in ranks]
    assert [len(order) for order in orders] == [32, 32]
    whole = sampler(length=64, lengths=lengths, bucket=8)
    assert sorted(orders[0] + orders[1]) == sorted(whole)
    again = sampler(length=64, lengths=lengths, bucket=8)
    handed = iter(again)
    first = [next(handed) for _ in range(10)]
    fresh = sampler(length=64, lengths=lengths, bucket=8)
    fresh.load_state_dict(again.state_dict())
    assert first + list(fresh) == list(sampler(length=64, lengths=lengths, bucket=8))


@pytest.mark.parametrize(
    "settings",
    [{"bucket": 4}, {"lengths": []}, {"lengths": [1.0]}, {"lengths": [1.0] * 120, "batch": 2}, {"bucket": 0}],
)
def test_bucketing_needs_lengths(settings):
    with pytest.raises(ValueError, match="one length per item"):
        sampler(**settings)
