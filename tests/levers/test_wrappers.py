"""innermost: through wrappers to the optimizer that takes the step."""

from __future__ import annotations

from collections import defaultdict
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from torch import nn

import trimtab
from tests.distributed import on_two_ranks
from tests.levers.test_attach import Recorder
from trimtab.levers import innermost
from trimtab.optimizers import SAM


class WithoutHooks(torch.optim.Optimizer):
    """The shape of timm's Lookahead: its constructor does not call Optimizer's."""

    def __init__(self, base: torch.optim.Optimizer, where: str) -> None:
        setattr(self, where, base)
        self.where = where
        self.param_groups, self.defaults, self.state = base.param_groups, base.defaults, defaultdict(dict)

    def step(self, closure: Any = None) -> Any:
        return getattr(self, self.where).step(closure)


class NoOptimizer:
    """The shape of schedule-free's wrapper: not an Optimizer at all."""

    def __init__(self, base: torch.optim.Optimizer) -> None:
        self.base = base

    @property
    def param_groups(self) -> Any:
        return self.base.param_groups

    def step(self) -> None:
        self.base.step()


@pytest.mark.parametrize("where", ["base", "optimizer", "_optimizer", "base_optimizer", "fast"])
def test_levers_and_masks_act_through_wrappers(where: str) -> None:
    net = nn.Linear(3, 2)
    base = torch.optim.SGD(net.parameters(), lr=0.1)
    wrapper, recorder = WithoutHooks(base, where), Recorder()
    assert innermost(wrapper) is base
    trimtab.attach(wrapper, recorder, model=net)
    trimtab.pruning.keep_masks(wrapper, trimtab.pruning.one_shot(net, 0.5).masks, net)
    net(torch.ones(1, 3)).sum().backward()
    wrapper.step()
    assert len(recorder.seen) == 1
    assert int((net.weight == 0).sum()) == 3


def test_nested_wrappers_and_wrappers_that_are_no_optimizers() -> None:
    base = torch.optim.SGD(nn.Linear(3, 2).parameters(), lr=0.1)
    assert innermost(WithoutHooks(SAM(base), "optimizer")) is base
    assert innermost(NoOptimizer(base)) is base
    recorder = Recorder()
    trimtab.attach(NoOptimizer(base), recorder)
    NoOptimizer(base).step()
    assert len(recorder.seen) == 1


def test_an_optimizer_of_other_parameters_inside_is_not_the_one_that_steps() -> None:
    class Both(torch.optim.SGD):
        """Steps matrices itself and leaves the rest to another."""

        def __init__(self, net: nn.Linear) -> None:
            super().__init__([net.weight], lr=0.1)
            self.optimizer = torch.optim.Adam([net.bias])

    both = Both(nn.Linear(3, 2))
    assert innermost(both) is both


def test_a_wrapper_that_shows_nothing_is_named_with_the_way_out() -> None:
    net = nn.Linear(3, 2)
    hidden = WithoutHooks(torch.optim.SGD(net.parameters()), "base")
    hidden.base = [hidden.base]
    for act in (lambda: trimtab.attach(hidden), lambda: trimtab.pruning.keep_masks(hidden, {}, net)):
        with pytest.raises(
            TypeError, match=r"WithoutHooks has no step hooks.*attach to the optimizer that takes the step"
        ):
            act()


@pytest.mark.skipif(find_spec("accelerate") is None, reason="needs accelerate")
def test_accelerate() -> None:
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=4)
    net = nn.Linear(4, 2, bias=False)
    data = torch.utils.data.DataLoader(torch.randn(32, 4), batch_size=4)
    prepared, optimizer, loader = accelerator.prepare(net, torch.optim.SGD(net.parameters(), lr=0.1), data)
    tracker = trimtab.observe.GradientTracker()
    trimtab.attach(optimizer, tracker, trimtab.gradients.ClipNorm(1e-3), model=prepared)
    before = net.weight.detach().clone()
    for inputs in loader:
        with accelerator.accumulate(prepared):
            accelerator.backward(prepared(inputs).square().mean())
            optimizer.step()
            optimizer.zero_grad()
    assert tracker.step == 2
    assert float((net.weight.detach() - before).norm()) <= 2e-4


def test_a_wrapper_around_one_that_takes_two_gradients_is_named() -> None:
    for inner, outer in ((NoOptimizer, "NoOptimizer"), (lambda base: WithoutHooks(base, "inner"), "WithoutHooks")):
        net = nn.Linear(2, 1)
        wrapped = inner(SAM(torch.optim.SGD(net.parameters(), lr=0.1)))
        if outer == "NoOptimizer":
            with pytest.raises(TypeError, match=r"SAM wraps an optimizer instance .* got NoOptimizer"):
                SAM(wrapped)
            continue
        with pytest.raises(
            TypeError, match="SAM cannot wrap WithoutHooks around SAM, which already takes two gradients"
        ):
            SAM(wrapped)
        with pytest.raises(TypeError, match="SAM cannot wrap WithoutHooks around LBFGS, whose step needs a closure"):
            SAM(inner(torch.optim.LBFGS(net.parameters())))


OF_STATE = (
    "SpikeGuard",
    "MomentumReset",
    "EightBitState",
    "LowPrecision",
    "GradualPruning",
    "DynamicSparse",
    "ACDC",
)


def _sharded_state(rank: int, world: int) -> dict[str, Any]:
    from torch.distributed.optim import ZeroRedundancyOptimizer

    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    optimizer = ZeroRedundancyOptimizer(net.parameters(), torch.optim.Adam, lr=0.1)
    found: dict[str, Any] = {}
    for lever in (
        trimtab.optimizers.SpikeGuard("rollback"),
        trimtab.optimizers.MomentumReset(),
        trimtab.precision.EightBitState(),
        trimtab.precision.LowPrecision(momentum="bf16"),
        trimtab.pruning.GradualPruning(0.5, total_steps=10),
        trimtab.pruning.DynamicSparse(0.5, total_steps=10),
        trimtab.pruning.ACDC(0.5, total_steps=40),
    ):
        try:
            trimtab.attach(optimizer, lever, model=net)
        except ValueError as error:
            found[type(lever).__name__] = str(error)
    # levers on the gradient need no state: they act on every rank's whole gradient; nor do masks that leave the state alone
    masks = trimtab.pruning.GradualPruning(0.5, reset_state=False, total_steps=10)
    trimtab.attach(optimizer, trimtab.gradients.ClipNorm(0.1), trimtab.optimizers.SpikeGuard("skip"), masks, model=net)
    net(torch.ones(2, 3)).square().sum().backward()
    optimizer.step()
    norms = [parameter.grad.norm() for parameter in net.parameters() if parameter.grad is not None]
    return found | {"norm": float(torch.stack(norms).norm()), "weight": net[0].weight.detach()}


def test_levers_of_the_state_refuse_an_optimizer_that_shards_it_itself() -> None:
    first, second = on_two_ranks(_sharded_state)
    for found in (first, second):
        assert found["norm"] == pytest.approx(0.1, rel=1e-5)
        for lever in OF_STATE:
            assert (
                "optimizer's whole state, and each rank's ZeroRedundancyOptimizer keeps that of a part" in found[lever]
            )
            assert "(2 of 4 tensors here); use Adam itself, or FSDP2" in found[lever]
    torch.testing.assert_close(first["weight"], second["weight"], rtol=0, atol=0)
