"""SpikeGuard: what makes an alarm, what each policy leaves behind, exact resume, ranks, sinks, runs."""

from __future__ import annotations

import copy
import io
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import trimtab
from tests.distributed import on_two_ranks
from trimtab.cli import main
from trimtab.observe import GradientTracker
from trimtab.observe.sinks import JsonLines
from trimtab.optimizers import SpikeGuard
from trimtab.optimizers.growth import Growth
from trimtab.runs.run_folder import RunFolder

pytestmark = pytest.mark.filterwarnings(r"ignore:step \d+:UserWarning")
WARMUP = 8


class Net(nn.Sequential):
    """With BatchNorm, whose statistics a batch moves, and dropout, which draws random numbers."""

    def __init__(self) -> None:
        torch.manual_seed(3)
        super().__init__(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.1), nn.Linear(8, 3))


def batch(step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    inputs = torch.randn(32, 4, generator=generator)
    return inputs, (inputs[:, 0] > 0).long() + (inputs[:, 1] > 0.5).long()


class Loop:
    """A training loop in which something may go wrong."""

    def __init__(self, guard: SpikeGuard | None, *levers: Any, kind: Any = torch.optim.Adam, lr: float = 0.01) -> None:
        self.net, self.guard = Net(), guard
        self.optimizer = kind(self.net.parameters(), lr=lr)
        self.handle = trimtab.attach(self.optimizer, *([guard] if guard else []), *levers, model=self.net)
        self.losses: list[float] = []

    def step(self, step: int, *, inputs_by: float = 1.0, loss_by: float = 1.0, lr_by: float = 1.0) -> None:
        inputs, targets = batch(step)
        self.optimizer.zero_grad()
        loss = nn.functional.cross_entropy(self.net(inputs * inputs_by), targets)
        self.losses.append(loss.item())
        if self.guard is not None:
            self.guard.see(loss)
        (loss * loss_by).backward()
        for group in self.optimizer.param_groups:
            group["lr"] *= lr_by
        self.optimizer.step()
        for group in self.optimizer.param_groups:
            group["lr"] /= lr_by

    def run(self, steps: Any, **wrong: Any) -> Loop:
        for step in steps:
            self.step(step, **wrong)
        return self

    def state(self) -> dict[str, Any]:
        return copy.deepcopy(
            {"net": self.net.state_dict(), "optimizer": self.optimizer.state_dict(), "handle": self.handle.state_dict()}
        )

    def load(self, state: dict[str, Any]) -> Loop:
        self.net.load_state_dict(state["net"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.handle.load_state_dict(state["handle"])
        return self


def equal(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(equal, one, other))
    return bool(one == other) or (one != one and other != other)


def guard(policy: str = "warn", **more: Any) -> SpikeGuard:
    return SpikeGuard(policy, **{"warmup": WARMUP, **more})  # type: ignore[arg-type]


SPIKES = {
    "loss scale": {"loss_by": 1e3},
    "rate": {"lr_by": 1e3},
    "nan": {"loss_by": math.nan},
}
KINDS = {"loss scale": "gradient", "rate": "update", "nan": "gradient"}


@pytest.mark.filterwarnings("ignore:the gradients hold inf or NaN:UserWarning")  # by one of the spikes
@pytest.mark.parametrize("wrong", SPIKES)
@pytest.mark.parametrize("policy", ["warn", "skip", "lower_lr", "rollback"])
def test_an_alarm_comes_in_the_same_step_and_a_policy_that_acts_keeps_the_weights_in_place(
    policy: str, wrong: str
) -> None:
    loop = Loop(guard(policy, every=4), kind=torch.optim.SGD, lr=0.05).run(range(12))
    before = [p.detach().clone() for p in loop.net.parameters()]
    usual = max(float((a - b).abs().max()) for a, b in zip(before, Loop(None, kind=torch.optim.SGD, lr=0.05).run(range(11))
                                                            .net.parameters(), strict=True))  # fmt: skip
    assert not loop.guard.alarms  # type: ignore[union-attr]
    loop.step(12, **SPIKES[wrong])
    assert KINDS[wrong] in {alarm.kind for alarm in loop.guard.alarms}  # type: ignore[union-attr]
    assert {alarm.step for alarm in loop.guard.alarms} == {12}  # type: ignore[union-attr]
    moved = max(float((a - b).abs().max()) for a, b in zip(before, loop.net.parameters(), strict=True))
    if policy == "warn":
        assert not moved <= 2 * usual
    else:
        assert moved < 6 * usual
        loop.run(range(13, 40))
        assert loop.losses[-1] < 1.2


def test_a_skipped_batch_leaves_no_trace_but_in_the_guard() -> None:
    """Weights, moments, step counts, running statistics: as if the batch had never been."""
    loop = Loop(guard("skip")).run(range(12))
    before = loop.state()
    loop.step(12, inputs_by=1e4, loss_by=1e4)
    after = loop.state()
    assert equal(before["net"], after["net"])
    assert equal(before["optimizer"], after["optimizer"])
    assert loop.guard.describe() == {"alarms": len(loop.guard.alarms), "withheld": 1, "rollbacks": 0}  # type: ignore[union-attr]


def test_other_levers_never_see_a_skipped_gradient() -> None:
    clip = trimtab.gradients.ZClip(warmup=2)
    loop = Loop(guard("skip"), clip).run(range(12))
    before = clip.state_dict()
    loop.step(12, loss_by=1e4)
    assert clip.state_dict() == before


def test_a_step_undone_has_the_weights_of_before() -> None:
    loop = Loop(guard("skip", judge=("update",))).run(range(12))
    before = copy.deepcopy(loop.net.state_dict())
    loop.step(12, lr_by=1e3)
    (alarm,) = loop.guard.alarms  # type: ignore[union-attr]
    assert (alarm.kind, alarm.action) == ("update", "undo")
    for name, parameter in loop.net.named_parameters():
        assert torch.equal(parameter, before[name])


def test_a_lowered_rate_recovers_and_is_the_loops_own_between_steps() -> None:
    loop = Loop(guard("lower_lr", factor=0.5, recover=4), kind=torch.optim.SGD, lr=0.05).run(range(12))
    loop.step(12, loss_by=1e3)
    rates = []
    loop.optimizer.register_step_pre_hook(lambda optimizer, *_: rates.append(optimizer.param_groups[0]["lr"]))
    for step in range(13, 19):
        loop.step(step)
        assert loop.optimizer.param_groups[0]["lr"] == pytest.approx(0.05)
    expected = [0.05 * 0.5 ** (1 - k / 4) for k in range(1, 5)] + [0.05, 0.05]
    assert rates == pytest.approx(expected, rel=1e-6)


def test_a_rollback_restores_model_optimizer_levers_and_random_numbers() -> None:
    """To what they were before the step of the snapshot; corrupted weights are found by the first loss."""
    clip, own = trimtab.gradients.ZClip(warmup=2), guard("rollback", every=5)
    loop = Loop(own, clip)
    for step in range(13):
        if step == 10:
            kept, levers = loop.state(), clip.state_dict()
            inputs, _ = batch(10)
            torch.manual_seed(10)
            loop.net(inputs)  # so far the random numbers go before the snapshot is taken
            random = torch.get_rng_state()
            loop.load(copy.deepcopy(kept))
        torch.manual_seed(step)
        loop.step(step)
    with torch.no_grad():
        loop.net[4].weight.mul_(300)  # type: ignore[operator]
    loop.step(13)
    alarm = own.alarms[0]
    assert (alarm.step, alarm.kind, alarm.action) == (13, "loss" if alarm.kind == "loss" else "gradient", "rollback")
    assert "back to step 10" in str(alarm)
    for name, value in loop.net.named_parameters():
        assert torch.equal(value, kept["net"][name])
    assert equal(kept["optimizer"]["state"], loop.optimizer.state_dict()["state"])
    assert clip.state_dict() == levers
    assert torch.equal(torch.get_rng_state(), random)
    loop.run(range(14, 40))
    assert own.describe()["rollbacks"] == 1
    assert loop.losses[-1] < 1.0


@pytest.mark.parametrize("policy", ["skip", "lower_lr", "rollback"])
def test_saved_and_resumed_equals_uninterrupted_with_a_spike_on_either_side(policy: str) -> None:
    def go(loop: Loop, steps: range) -> Loop:
        for step in steps:
            torch.manual_seed(step)
            loop.step(step, loss_by=1e3 if step in (11, 16) else 1.0)
        return loop

    whole = go(Loop(guard(policy, every=3)), range(20))
    first = go(Loop(guard(policy, every=3)), range(15))
    file = io.BytesIO()
    torch.save(first.state(), file)
    file.seek(0)
    resumed = go(Loop(guard(policy, every=3)).load(torch.load(file, weights_only=True)), range(15, 20))
    assert equal(resumed.state(), whole.state())
    assert [alarm.step for alarm in resumed.guard.alarms if alarm.kind == "gradient"] == [11, 16]  # type: ignore[union-attr]


def test_a_level_that_changes_for_good_becomes_the_usual_one() -> None:
    loop = Loop(guard("skip", judge=("gradient",))).run(range(12))
    loop.run(range(12, 40), loss_by=30.0)
    steps = [alarm.step for alarm in loop.guard.alarms]  # type: ignore[union-attr]
    assert steps[0] == 12
    assert steps[-1] < 30


def test_it_gives_up_where_nothing_sound_comes_any_more() -> None:
    loop = Loop(guard("skip", patience=3)).run(range(12))
    with pytest.raises(
        FloatingPointError, match=r"the last 3 steps were withheld. step 14: norm of the gradients is nan"
    ):
        loop.run(range(12, 20), loss_by=math.nan)


def test_a_first_loss_that_is_not_finite_is_an_error_at_once() -> None:
    own = guard("skip")
    loop = Loop(own)
    own.see(math.inf)
    with pytest.raises(FloatingPointError, match="the loss is inf at the first step"):
        loop.optimizer.step()


def test_a_dead_tensor_is_told_once_and_not_one_that_never_had_a_gradient() -> None:
    own = guard(judge=("dead",), dead_after=3)
    loop = Loop(own)
    loop.run(range(4))
    with torch.no_grad():
        loop.net[0].weight.zero_(), loop.net[1].weight.zero_(), loop.net[1].bias.fill_(-1)  # type: ignore[operator]
    loop.run(range(4, 12))
    told = [(alarm.step, alarm.text.split(" of ")[1].split(" has")[0]) for alarm in own.alarms]
    assert (6, "0.weight") in told
    assert len({name for _, name in told}) == len(told)


def test_a_watched_signal_is_judged_and_never_acted_on() -> None:
    class Meter:
        value = 1.0

        def signals(self) -> dict[str, float]:
            return {"attention_logit": self.value}

    meter = Meter()
    loop = Loop(guard("skip").watch(meter)).run(range(12))
    meter.value = 100.0
    loop.step(12)
    (alarm,) = loop.guard.alarms  # type: ignore[union-attr]
    assert (alarm.kind, alarm.action, alarm.step) == ("attention_logit", "warn", 12)
    assert loop.guard.describe()["withheld"] == 0  # type: ignore[union-attr]


def test_healthy_training_makes_no_alarm() -> None:
    for kind, lr in ((torch.optim.SGD, 0.1), (torch.optim.AdamW, 0.003)):
        assert not Loop(SpikeGuard(), kind=kind, lr=lr).run(range(400)).guard.alarms  # type: ignore[union-attr]


def test_two_optimizers_and_closures_that_cannot_be_undone_are_refused() -> None:
    net = Net()
    with pytest.raises(ValueError, match="make one for each"):
        trimtab.attach(
            [torch.optim.SGD(net[0].parameters(), lr=0.1), torch.optim.SGD(net[4].parameters(), lr=0.1)], guard()
        )
    with pytest.raises(ValueError, match="cannot undo a step of LBFGS"):
        trimtab.attach(torch.optim.LBFGS(net.parameters()), guard("skip"))
    with pytest.raises(ValueError, match="policy must be one of 'warn', 'skip', 'lower_lr', 'rollback', got 'stop'"):
        guard("stop")
    with pytest.raises(ValueError, match="judge must be some of"):
        SpikeGuard(judge=("weights",))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="do not fit SpikeGuard"):
        guard("skip").load_state_dict(guard("warn").state_dict())


def test_a_closure_tells_its_loss() -> None:
    net, own = Net(), guard(judge=("loss",), warmup=2)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
    trimtab.attach(optimizer, own, model=net)
    for value in (1.0, 1.0, 1.0, 9.0):
        optimizer.step(lambda value=value: net(batch(0)[0]).sum() * 0 + value)  # type: ignore[misc]
    assert [alarm.kind for alarm in own.alarms] == ["loss"]


def test_a_wrapper_that_takes_two_gradients_is_guarded_too() -> None:
    net, own = Net(), guard("skip")
    base = torch.optim.SGD(net.parameters(), lr=0.05)
    sam = trimtab.optimizers.SAM(base, model=net)
    trimtab.attach(sam, own, model=net)

    def step(at: int, factor: float = 1.0) -> None:
        def closure() -> Tensor:
            sam.zero_grad()
            loss = factor * nn.functional.cross_entropy(net(batch(at)[0]), batch(at)[1])
            loss.backward()
            return loss

        sam.step(closure)

    for at in range(12):
        step(at)
    before = copy.deepcopy(net[0].weight)
    step(12, 1e4)
    assert torch.equal(net[0].weight, before)  # type: ignore[arg-type]
    assert own.alarms[0].step == 12


def test_a_rollback_takes_a_wrappers_draws_back() -> None:
    """CrAM draws its sparsity from a generator of its own."""
    net, own = Net(), guard("rollback", every=5)
    base = torch.optim.SGD(net.parameters(), lr=0.05)
    cram = trimtab.optimizers.CrAM(base, rho=0.01, sparsities=(0.2, 0.5, 0.7), model=net)
    trimtab.attach(cram, own, model=net)

    def step(at: int, factor: float = 1.0) -> None:
        def closure() -> Tensor:
            cram.zero_grad()
            loss = factor * nn.functional.cross_entropy(net(batch(at)[0]), batch(at)[1])
            loss.backward()
            return loss

        cram.step(closure)

    drawn = []
    for at in range(13):
        step(at)
        drawn.append(cram.own_state()["generator"])
    assert not torch.equal(drawn[10], drawn[12])
    cram.skipped = 3
    step(13, 1e4)
    assert own.alarms[0].action == "rollback"
    assert torch.equal(cram.own_state()["generator"], drawn[10])  # as when the snapshot was taken, in step 10
    assert cram.skipped == 3


# What goes wrong slowly


def slowly(**more: Any) -> SpikeGuard:
    """A guard that judges growth from step 16 on."""
    return SpikeGuard(**{"warmup": 4, **more})


def told(own: SpikeGuard, kind: str) -> list[tuple[int, str]]:
    return [(alarm.step, alarm.text) for alarm in own.alarms if alarm.kind == kind]


def test_a_number_that_grows_slowly_is_said_after_as_many_steps_as_the_formula_has() -> None:
    """The formula by itself, in plain steps: mean of the logarithm, reference that follows by a thousandth a step."""
    values = [math.exp(0.3 * math.sin(step) + 0.01 * max(0, step - 60)) for step in range(400)]
    growth = Growth(1.8, 40)
    found = [step for step, value in enumerate(values) if growth.learn(value, step)]
    level = reference = 0.0
    expected = []
    for step, value in enumerate(values):
        level += max(1 / (step + 1), 0.1) * (math.log(value) - level)
        if step < 40:
            reference = level
            continue
        reference += min(max(level - reference, -0.005), 0.001)
        if level - reference > math.log(1.8):
            expected.append(step)
            reference = level
    assert found == expected
    assert found
    assert 60 < found[0] < 140


def test_growth_by_less_than_the_reference_follows_is_never_said_nor_is_a_fall_or_a_single_value() -> None:
    for rate, wanted in ((0.0009, False), (0.003, True)):
        growth = Growth(1.8, 20)
        assert any(growth.learn(math.exp(rate * step), step) for step in range(2000)) == wanted
    growth = Growth(1.8, 20)
    assert not any(growth.learn(100.0 if step == 300 else math.exp(-0.002 * step), step) for step in range(600))
    growth = Growth(1.8, 20)
    assert not any(growth.learn(value, step) for step, value in enumerate([1.0, 0.0, math.nan, math.inf, -1.0] * 20))


def test_an_update_that_grows_is_said_and_not_one_that_grows_with_the_learning_rate() -> None:
    def run(**more: Any) -> SpikeGuard:
        own = slowly(judge=("growth",))
        loop = Loop(own, kind=torch.optim.SGD, lr=0.01)
        for step in range(80):
            by = 1.03 ** max(0, step - 30)
            loop.step(step, **dict.fromkeys(more, by))
        return own

    assert told(run(loss_by=1.0), "growth")
    assert not run(lr_by=1.0).alarms
    assert not run().alarms
    text = told(run(loss_by=1.0), "growth")[0][1]
    assert "the weights' change, as a share of them and of the learning rate, has grown to" in text


def test_a_watched_signal_that_grows_is_said_long_before_it_is_a_spike() -> None:
    class Meter:
        value = 1.0

        def signals(self) -> dict[str, float]:
            return {"attention_logit": self.value}

    meter, own = Meter(), slowly(judge=("growth",))
    loop = Loop(own.watch(meter), kind=torch.optim.SGD, lr=0.01)
    for step in range(120):
        meter.value = 1.03 ** max(0, step - 40)
        loop.step(step)
    growth = told(own, "growth")
    assert 40 + math.log(1.8**2) / 0.03 < growth[0][0] < 100
    assert "attention_logit has grown to 3." in growth[0][1]
    assert not told(own, "attention_logit")


def test_units_that_fall_silent_are_counted_exactly() -> None:
    """Biases far below zero: a ReLU's units pass nothing, and their rows of the gradient are zero."""
    own = slowly(judge=("dead",), silent=0.25)
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    trimtab.attach(optimizer, own, model=net)
    for step in range(80):
        if step in (10, 40):
            with torch.no_grad():
                net[0].bias[: 1 if step == 10 else 3] = -1e3
        inputs, targets = batch(step)
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(inputs), targets).backward()
        optimizer.step()
    ((at, text),) = told(own, "dead")  # one unit of eight is no news, the third makes three
    assert at == 55  # silent at the looks 40, 45, 50 and 55
    assert text == "step 55: the gradient of 38% of the units of 0.weight has been zero for 20 steps"


def test_running_statistics_that_jump_or_stand_still_are_said() -> None:
    def run(momentum: float, lr: float = 0.01) -> list[tuple[int, str]]:
        own = slowly(judge=("running",))
        loop = Loop(own, kind=torch.optim.SGD, lr=lr).run(range(60))
        loop.net[1].momentum = momentum
        loop.run(range(60, 100))
        return told(own, "running")

    assert not run(0.1)
    step, text = run(1.0)[0]
    assert 60 <= step < 66
    assert "the change of the running statistics has grown to" in text
    assert run(0.0) == [(79, "step 79: the running statistics have not changed for 20 steps of training")]


def test_what_goes_wrong_slowly_resumes_exactly() -> None:
    def go(loop: Loop, steps: range) -> Loop:
        for step in steps:
            torch.manual_seed(step)
            loop.step(step, loss_by=1.05 ** max(0, step - 25))
        return loop

    whole = go(Loop(slowly(), kind=torch.optim.SGD), range(60))
    file = io.BytesIO()
    torch.save(go(Loop(slowly(), kind=torch.optim.SGD), range(33)).state(), file)
    file.seek(0)
    resumed = go(Loop(slowly(), kind=torch.optim.SGD).load(torch.load(file, weights_only=True)), range(33, 60))
    assert told(whole.guard, "growth")  # type: ignore[arg-type]
    assert equal(resumed.state(), whole.state())


# Ranks


def _on_ranks(rank: int, world: int) -> list[Any]:
    torch.manual_seed(0)
    net = nn.parallel.DistributedDataParallel(nn.Linear(4, 3))
    own = SpikeGuard("skip", warmup=4)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    trimtab.attach(optimizer, own, model=net)
    for step in range(17):
        inputs, targets = batch(2 * step + rank)
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(net(inputs), targets)
        own.see(loss * (1e3 if step == 8 and rank == 1 else 1.0))  # one rank alone sees it
        loss.backward()
        if step == 11 and rank == 0:
            with torch.no_grad():
                weight = net.module.weight[0, 0]
                weight.copy_(torch.nextafter(weight, weight + 1))  # the last bit
        optimizer.step()
    return [[alarm.kind, alarm.step, alarm.action, alarm.text.partition("weights ")[2]] for alarm in own.alarms]


def test_all_ranks_decide_alike_and_notice_when_their_weights_go_apart() -> None:
    one, other = on_two_ranks(_on_ranks)
    assert one == other
    assert one[0][:3] == ["loss", 8, "skip"]
    (apart,) = [alarm for alarm in one if alarm[0] == "ranks"]
    assert apart == ["ranks", 15, "warn", "differ in 1 of 2 tensors, first weight: the ranks have gone apart"]


# Where alarms go


def test_alarms_reach_sinks_and_the_tracker_records_the_deviations(tmp_path: Path) -> None:
    own, tracker, sink = guard("skip"), GradientTracker(), JsonLines(tmp_path / "sink.jsonl")
    own.subscribe(sink.alarm)
    loop = Loop(own)
    trimtab.attach(loop.optimizer, tracker.watch(own), model=loop.net)
    loop.run(range(12)).step(12, loss_by=1e3)
    lines = [json.loads(line) for line in (tmp_path / "sink.jsonl").read_text().splitlines()]
    assert {"step": 12, "alarms/gradient": 1.0} in lines
    assert any("the step is not taken" in line.get("note", "") for line in lines)
    rows = [row for row in tracker.signals_table().to_pylist() if row["name"] == "gradient_z"]
    assert max(rows, key=lambda row: row["value"])["step"] == 12


def test_a_guarded_run_writes_its_alarms_and_goes_on_after_a_stop(tmp_path: Path) -> None:
    words = ["train", "digits", "--levers", "spike_guard", "--spike-guard.policy", "rollback", "--spike-guard.warmup", "3",
             "--spike-guard.threshold", "0.5", "--data.limit-train", "640", "--sink", "jsonl", "--track", "gradients",
             "update_ratio", "nlm_cosine", "softmax_collapse", "activations", "--track-every", "2", "--quiet"]  # fmt: skip
    assert main([*words, "--epochs", "1", "--out", str(tmp_path / "run")]) == 0
    folder = RunFolder(tmp_path / "run")
    alarms = folder.alarms()
    assert alarms
    assert all("deviations above the usual" in alarm["text"] for alarm in alarms if alarm["kind"] == "update")
    assert folder.info()["levers"]["spike_guard"]["alarms"] == len(alarms)
    lines = [json.loads(line) for line in (tmp_path / "run" / "sink.jsonl").read_text().splitlines()]
    assert [line["note"] for line in lines if "note" in line] == [alarm["text"] for alarm in alarms]
    assert any("signals/softmax_collapse" in line for line in lines)
    assert any("signals/activation_max" in line for line in lines)
    assert any("signals/activation_max_z" in line for line in lines)  # the guard watches what is tracked of activations
