import itertools
import json
import math
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab import curricula
from trimtab.curricula import Adaptive, EasyOnly, Linear, Mixed, Released

SETTINGS = {"linear": {"epochs": 10}, "reverse": {"epochs": 10}}


def run(scheduler, losses, epochs, domain="d"):
    """Shares of every epoch when the stages' losses are `losses(stage, epoch)`, probes answered."""
    scheduler.add_domain(domain)
    shares = []
    for epoch in range(epochs):
        now = scheduler.shares(domain)
        shares.append(now)
        for stage, share in now.items():
            if share > 1e-4:
                scheduler.observe(domain, stage, losses(stage, epoch), n=10)
        for stage in scheduler.stale(domain):
            scheduler.observe(domain, stage, losses(stage, epoch))
        scheduler.end_epoch()
    return shares


def alike(medium, hard=1.5):
    """Losses that fall over time, Medium's a constant multiple of Easy's."""
    factor = {"easy": 1.0, "medium": medium, "hard": hard}
    return lambda stage, epoch: factor[stage] * (0.3 + math.exp(-epoch / 20))


def mean_share(shares, stage):
    return sum(one[stage] for one in shares) / len(shares)


def test_released_is_the_formula():
    scheduler = Released()
    scheduler.add_domain("d")
    easy, medium = 1e-3, 1e-3
    for epoch in range(12):
        ramp = 0 if epoch <= 4 else min(1, (epoch - 4) / 10)
        gap = (easy - medium) / (easy + 1e-8)
        expected = ramp / (1 + math.exp(-(gap - 0.5) / 0.1))
        assert scheduler.shares("d")["medium"] == pytest.approx(expected, rel=1e-12)
        scheduler.observe("d", "easy", 1.0)
        scheduler.observe("d", "medium", 0.4)
        scheduler.end_epoch()
        easy, medium = 0.1 * easy + 0.9 * 1.0, 0.1 * medium + 0.9 * 0.4
    assert scheduler.shares("d")["medium"] > 0.5  # 0.4 < half of Easy's: only then it opens


def test_released_locks_in_and_adaptive_does_not():
    for medium in (1.0, 1.2, 1.5):
        released = run(Released(), alike(medium), 100)
        assert mean_share(released, "easy") > 0.98
        assert mean_share(released[20:], "easy") > 0.99
        assert all(one["hard"] == 0 for one in released)
        adaptive = run(Adaptive(), alike(medium), 100)
        assert mean_share(adaptive, "hard") > 0.5
    assert mean_share(run(Released(), alike(1.2), 100)[20:], "easy") > 0.999
    assert mean_share(run(Released(), alike(0.45), 100)[20:], "medium") > 0.5  # unless Medium's loss is half of Easy's


def test_released_opens_hard_when_settled_and_closes_it_when_the_loss_rises():
    scheduler = Released()
    shares = run(
        scheduler, lambda stage, epoch: {"easy": 1.0, "medium": 0.3, "hard": 0.5}[stage] * (1 if epoch < 40 else 3), 45
    )
    assert all(one["hard"] == 0 for one in shares[:19])
    hard = [one["hard"] for one in shares[19:41]]
    assert hard[0] > 0
    assert max(hard) == pytest.approx(0.3)
    assert all(b - a <= 0.05 + 1e-12 for a, b in itertools.pairwise(hard))
    assert shares[41]["hard"] == pytest.approx(0.27)


def test_released_refuses_an_infinite_start():
    """Trap: from infinity a smoothed loss never comes down, and Easy is never left."""
    m = math.inf
    for _ in range(100):
        m = 0.1 * m + 0.9 * 1.0
    assert m == math.inf
    with pytest.raises(ValueError, match="start must be finite"):
        Released(start=math.inf)


def test_adaptive_promotes_when_the_harder_stage_is_near_and_not_the_other_way():
    """Sign of the rule: a harder stage with a far greater loss stays closed, one with a loss near the easier one's opens."""
    near, far = Adaptive(patience=50, least=1), Adaptive(patience=50, trial=0)
    assert run(near, lambda stage, _: {"easy": 1.0, "medium": 1.4, "hard": 9.0}[stage], 3)[1]["medium"] == 0.85
    falling = lambda stage, epoch: {"easy": 1.0, "medium": 1.6, "hard": 9.0}[stage] * 0.9**epoch  # noqa: E731
    assert all(one["easy"] == 1 for one in run(far, falling, 40))
    assert "to medium at 1.5 times" in far.decisions[-1].reason


def test_adaptive_never_rests_a_promotion_on_an_unmeasured_stage():
    scheduler = Adaptive(patience=100, trial=0)
    scheduler.add_domain("d")
    for _ in range(20):
        assert scheduler.shares("d")["easy"] == 1
        scheduler.observe("d", "easy", 1.0)
        assert scheduler.stale("d") == ("medium",)  # asked for, never answered
        decision, *_ = scheduler.end_epoch()
        assert decision.losses["medium"] is None
    assert "medium was not measured yet" in decision.reason


def test_adaptive_leaves_a_level_that_teaches_no_more():
    scheduler = Adaptive(patience=3, trial=0)
    shares = run(scheduler, lambda stage, _: {"easy": 1.0, "medium": 9.0, "hard": 99.0}[stage], 12)
    assert [one["easy"] for one in shares[:4]] == [1.0] * 4
    assert shares[4]["medium"] == 0.85
    assert any("did not fall for 3 epochs" in one.reason for one in scheduler.decisions)


def test_adaptive_stays_at_least_three_epochs_where_an_untrained_model_answers_all_alike():
    shares = run(Adaptive(), lambda stage, _: 6.0, 7)
    assert [one["easy"] for one in shares] == [1, 1, 1, 0.15, 0.15, 0.15, 0.15]
    assert [one["hard"] for one in shares] == [0, 0, 0, 0, 0, 0, 0.7]


def test_adaptive_tries_the_next_stage_so_that_what_only_showing_teaches_can_come():
    """A stage whose loss rises unless it is shown: without a trial share its stage stays closed as long as the level falls."""

    def hards(trial):
        scheduler, loss = Adaptive(trial=trial), {"easy": 3.0, "medium": 3.0, "hard": 6.0}
        scheduler.add_domain("d")
        found = []
        for _ in range(30):
            shares = scheduler.shares("d")
            found.append(shares["hard"])
            for stage, fall in (("easy", 0.9), ("medium", 0.9), ("hard", 0.8)):
                loss[stage] *= fall if shares[stage] >= 0.1 else 1.02
            for stage in {*scheduler.stale("d"), *(stage for stage, share in shares.items() if share)}:
                scheduler.observe("d", stage, loss[stage])
            scheduler.end_epoch()
        return found

    assert not any(hards(0))
    tried = hards(0.1)
    assert 0.1 in tried
    assert tried[-1] == 0.7


def test_adaptive_keeps_a_floor_for_every_open_stage_and_each_domain_climbs_alone():
    scheduler = Adaptive(floor=0.1, least=1, trial=0.05)
    scheduler.add_domain("quick")
    scheduler.add_domain("slow")
    for epoch in range(3):
        for domain, factor in (("quick", 1.1), ("slow", 5.0)):
            for stage in scheduler.stale(domain):
                scheduler.observe(domain, stage, factor ** scheduler.stages.index(stage) * 0.8**epoch)
        scheduler.end_epoch()
    assert scheduler.shares("quick") == {"easy": 0.1, "medium": 0.1, "hard": 0.8}
    assert scheduler.shares("slow") == {"easy": 0.95, "medium": 0.05, "hard": 0.0}


def test_linear_climbs_and_stays():
    shares = run(Linear(epochs=5), alike(1.0), 7)
    assert [tuple(one.values()) for one in shares] == [
        (1, 0, 0), (0.5, 0.5, 0), (0, 1, 0), (0, 0.5, 0.5), (0, 0, 1), (0, 0, 1), (0, 0, 1),
    ]  # fmt: skip


def test_stages_may_have_any_names():
    scheduler = Adaptive(stages=("short", "long"), least=1)
    assert run(scheduler, lambda stage, _: 1.0, 3)[2] == {"short": 0.15, "long": 0.85}


@pytest.mark.parametrize("name", curricula.names())
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), epochs=st.integers(1, 30))
def test_shares_sum_to_one_and_state_survives(name, seed, epochs):
    """Whatever the losses: shares are shares, and a scheduler restored from JSON goes on alike."""
    make = lambda: curricula.create(name, **SETTINGS.get(name, {}))  # noqa: E731
    chance, scheduler = random.Random(seed), make()
    scheduler.add_domain("a")
    scheduler.add_domain("b", ("medium", "hard"))
    restored_at = chance.randrange(epochs)
    for epoch in range(epochs):
        if epoch == restored_at:
            state = json.loads(json.dumps(scheduler.state_dict()))
            before, scheduler = scheduler, make()
            scheduler.load_state_dict(state)
            assert scheduler.state_dict() == before.state_dict()
        for domain in ("a", "b"):
            shares = scheduler.shares(domain)
            assert all(0 <= share <= 1 for share in shares.values())
            assert math.isclose(sum(shares.values()), 1) or not any(shares.values())
            for stage in shares if domain == "a" else ("medium", "hard"):
                if chance.random() < 0.5:
                    scheduler.observe(domain, stage, chance.choice((0.0, 1e-9, 100.0, chance.expovariate(1))), n=3)
        scheduler.end_epoch()
    assert scheduler.shares("b")["easy"] == 0
    assert len(scheduler.decisions) == 2 * (epochs + 1)
    assert all(decision.reason for decision in scheduler.decisions)


@pytest.mark.parametrize("name", curricula.names())
def test_a_resumed_scheduler_decides_as_one_that_was_not_stopped(name, tmp_path):
    losses = alike(1.3)
    whole, first = (curricula.create(name, **SETTINGS.get(name, {})) for _ in range(2))
    expected = run(whole, losses, 30)
    run(first, losses, 13)
    torch.save(first.state_dict(), tmp_path / "s.pt")
    second = curricula.create(name, **SETTINGS.get(name, {}))
    second.load_state_dict(torch.load(tmp_path / "s.pt", weights_only=True))
    got = run(second, lambda stage, epoch: losses(stage, epoch + 13), 17)
    assert got == expected[13:]
    assert second.decisions == whole.decisions


def test_a_domain_without_the_open_stage_sits_out_or_starts_later():
    only, adaptive = EasyOnly(), Adaptive()
    for scheduler in (only, adaptive):
        scheduler.add_domain("negatives", ("medium", "hard"))
    assert not any(only.shares("negatives").values())
    assert "sits this epoch out" in only.decisions[0].reason
    assert adaptive.shares("negatives") == {"easy": 0.0, "medium": 1.0, "hard": 0.0}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: curricula.create("best"), "unknown stage scheduler 'best'"),
        (lambda: Adaptive(floor=0.4), "must stay below 1"),
        (lambda: Adaptive(ratio=0), "ratio must be"),
        (lambda: Adaptive(patience=0), "patience must be a whole number of 1 or more"),
        (lambda: Linear(epochs=1), "2 or more"),
        (lambda: Mixed(weights=(1, 1)), "one per stage"),
        (lambda: Mixed(weights=(0, 0, 0)), "not all 0"),
        (lambda: Mixed(stages=("a", "a")), "different names"),
        (lambda: Mixed().shares("x"), "was not added; known are none"),
        (lambda: Mixed().add_domain("x", ("harder",)), "unknown stages"),
        (lambda: Mixed().add_domain("x", ()), "no items in any"),
        (lambda: Mixed().load_state_dict(EasyOnly().state_dict()), "the state is of 'easy_only'"),
    ],
)
def test_wrong_settings_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_wrong_observations_are_refused():
    scheduler = Mixed()
    scheduler.add_domain("d", ("easy",))
    for arguments, message in (
        (("d", "easy", math.nan), "must be finite"),
        (("d", "easy", 1.0, 0), "n must be a whole number of 1 or more"),
        (("d", "hard", 1.0), "has no stage 'hard'"),
    ):
        with pytest.raises(ValueError, match=message):
            scheduler.observe(*arguments)
