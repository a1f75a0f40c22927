"""attach: when levers act, on which gradients, in which order, and how they leave."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import trimtab
from trimtab.levers import innermost
from trimtab.parameters import Entry, Rule


class Recorder:
    """Remembers the gradients it sees, then adds to them."""

    def __init__(self, add: float = 0.0, log: list[str] | None = None, label: str = "") -> None:
        self.seen: list[dict[str, Tensor]] = []
        self.add, self.log, self.label = add, log, label

    def before_step(self, parameters: Sequence[Entry]) -> None:
        gradients = {entry.name: entry.parameter.grad for entry in parameters if entry.parameter.grad is not None}
        self.seen.append({name: gradient.clone() for name, gradient in gradients.items()})
        if self.log is not None:
            self.log.append(self.label)
        for gradient in gradients.values():
            gradient.add_(self.add)

    def state_dict(self) -> dict[str, Any]:
        return {"steps": len(self.seen), "last": dict(self.seen[-1]) if self.seen else {}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.seen = [{}] * (state["steps"] - 1) + [state["last"]]


class Wrapper(torch.optim.Optimizer):
    """The shape of a sharpness-aware wrapper: steps at moved weights' gradients, through `base_optimizer`."""

    def __init__(self, base: torch.optim.Optimizer) -> None:
        self.base_optimizer = base
        super().__init__([parameter for group in base.param_groups for parameter in group["params"]], {})
        self.param_groups = base.param_groups

    def step(self, closure: Callable[[], Tensor]) -> Tensor:  # type: ignore[override]
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        before = [parameter.detach().clone() for parameter in parameters]
        with torch.enable_grad():
            loss = closure()
        with torch.no_grad():
            for parameter in parameters:
                parameter.add_(1.0)
            with torch.enable_grad():
                closure()
            for parameter, old in zip(parameters, before, strict=True):
                parameter.copy_(old)
        self.base_optimizer.step()
        return loss


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Linear(3, 2)


def backward(net: nn.Module, factor: float = 1.0) -> Tensor:
    loss = factor * net(torch.arange(6.0).view(2, 3)).square().sum()
    loss.backward()
    return loss


def test_levers_act_in_the_order_given_on_what_the_one_before_left():
    net, log = network(), []
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    first, second = Recorder(1.0, log, "first"), Recorder(10.0, log, "second")
    trimtab.attach(optimizer, first, second)
    backward(net)
    raw, before = net.weight.grad.clone(), net.weight.detach().clone()
    optimizer.step()
    assert log == ["first", "second"]
    assert torch.equal(first.seen[0]["group0.0"], raw)
    assert torch.equal(second.seen[0]["group0.0"], raw + 1)
    torch.testing.assert_close(net.weight.detach(), before - 0.1 * (raw + 11))


def test_two_handles_act_in_the_order_attached_also_inside_a_closure():
    net, log = network(), []
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    handles = [trimtab.attach(optimizer, Recorder(0.0, log, label)) for label in "ab"]

    def closure() -> Tensor:
        log.append("closure")
        optimizer.zero_grad()
        return backward(net)

    loss = optimizer.step(closure)
    assert loss is not None
    assert loss.item() > 0
    optimizer.step(closure=closure)
    assert log == ["closure", "a", "b"] * 2
    handles[0].remove()
    handles[0].remove()
    optimizer.step(closure)
    assert log[6:] == ["closure", "b"]


def test_closure_called_several_times_by_the_optimizer():
    net = network()
    optimizer = torch.optim.LBFGS(net.parameters(), lr=0.1, max_iter=3)
    recorder = Recorder()
    trimtab.attach(optimizer, recorder)
    calls = []

    def closure() -> Tensor:
        calls.append(1)
        optimizer.zero_grad()
        return backward(net)

    optimizer.step(closure)
    assert len(recorder.seen) == len(calls) > 1


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("unscale_first", [True, False])
@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW])
def test_levers_see_true_gradients_under_a_grad_scaler(kind, fused, unscale_first):
    net, plain = network(), network()
    backward(plain)
    optimizer, recorder = kind(net.parameters(), lr=0.1, fused=fused), Recorder()
    trimtab.attach(optimizer, recorder)
    scaler = torch.amp.GradScaler("cpu", init_scale=4096.0)
    backward(net, factor=scaler.scale(torch.ones(())).item())
    if unscale_first:
        scaler.unscale_(optimizer)
    scaler.step(optimizer)
    scaler.update()
    torch.testing.assert_close(recorder.seen[0]["group0.0"], plain.weight.grad)
    kind(plain.parameters(), lr=0.1).step()
    torch.testing.assert_close(net.weight, plain.weight)


@pytest.mark.parametrize("fused", [True, False])
def test_levers_are_not_called_when_the_scaler_skips_the_step(fused):
    net = network()
    optimizer, recorder = torch.optim.SGD(net.parameters(), lr=0.1, fused=fused), Recorder()
    trimtab.attach(optimizer, recorder)
    scaler = torch.amp.GradScaler("cpu", init_scale=4096.0)
    scaler.scale(torch.ones(()))
    backward(net, factor=float("inf"))
    before = net.weight.detach().clone()
    scaler.step(optimizer)
    scaler.update()
    assert recorder.seen == []
    assert torch.equal(net.weight, before)


def test_wrapper_passes_its_levers_to_the_base_optimizer():
    net = network()
    base = torch.optim.SGD(net.parameters(), lr=0.0)
    wrapper, recorder = Wrapper(base), Recorder()
    assert innermost(wrapper) is base
    seen_weights = []
    recorder.before_step = lambda entries: seen_weights.append(entries[0].parameter.detach().clone())  # type: ignore[method-assign]
    trimtab.attach(wrapper, recorder)
    original = net.weight.detach().clone()

    def closure() -> Tensor:
        wrapper.zero_grad()
        return backward(net)

    wrapper.step(closure)
    # once per step, at the weights that were put back
    assert len(seen_weights) == 1
    assert torch.equal(seen_weights[0], original)


class Around(Recorder):
    """Also notes when the step is done, and the weight it left."""

    def before_step(self, parameters: Sequence[Entry]) -> None:
        super().before_step(parameters)
        self.before = parameters[0].parameter.detach().clone()

    def after_step(self, parameters: Sequence[Entry]) -> None:
        assert self.log is not None
        self.log.append(f"after {self.label}")
        self.change = parameters[0].parameter.detach() - self.before


@pytest.mark.parametrize("closure", [False, True])
def test_after_step_follows_the_step_once(closure):
    net, log = network(), []
    optimizer, lever = torch.optim.SGD(net.parameters(), lr=0.5), Around(0.0, log, "a")
    handle = trimtab.attach(optimizer, Recorder(0.0, log, "b"), lever)

    def evaluate() -> Tensor:
        optimizer.zero_grad()
        return backward(net)

    if closure:
        optimizer.step(evaluate)
    else:
        evaluate()
        optimizer.step()
    assert log == ["b", "a", "after a"]
    torch.testing.assert_close(lever.change, -0.5 * net.weight.grad)
    handle.remove()
    evaluate()
    optimizer.step()
    assert len(log) == 3
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks


def test_after_step_follows_once_where_the_closure_is_called_several_times():
    net, log = network(), []
    optimizer = torch.optim.LBFGS(net.parameters(), lr=0.1, max_iter=3)
    trimtab.attach(optimizer, Around(0.0, log, "a"))

    def closure() -> Tensor:
        optimizer.zero_grad()
        return backward(net)

    optimizer.step(closure)
    assert log.count("a") > 1
    assert log.count("after a") == 1
    assert log[-1] == "after a"


@pytest.mark.parametrize("fused", [True, False])
def test_no_after_step_where_the_scaler_skips(fused):
    net, log = network(), []
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, fused=fused)
    trimtab.attach(optimizer, Around(0.0, log, "a"))
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    scaler.scale(torch.ones(()))
    for factor in (1.0, float("inf"), 1.0):
        optimizer.zero_grad()
        backward(net, factor)
        scaler.step(optimizer)
        scaler.update()
    assert log == ["a", "after a"] * 2


def test_context_manager_removes():
    net, recorder = network(), Recorder()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with trimtab.attach(optimizer, recorder) as handle:
        backward(net)
        optimizer.step()
    optimizer.step()
    assert len(recorder.seen) == 1
    assert handle.levers == (recorder,)


def test_state_survives_a_weights_only_load():
    net, recorder = network(), Recorder()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    penalty = trimtab.penalties.VarianceAmplifier(3e-4)
    handle = trimtab.attach(optimizer, recorder, penalty)
    backward(net)
    optimizer.step()
    file = io.BytesIO()
    torch.save(handle.state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    other_recorder, other_penalty = Recorder(), trimtab.penalties.VarianceAmplifier()
    other = trimtab.attach(torch.optim.SGD(net.parameters(), lr=0.1), other_recorder, other_penalty)
    other.load_state_dict(state)
    assert torch.equal(other_recorder.seen[-1]["group0.0"], recorder.seen[-1]["group0.0"])
    assert other_penalty.strength == 3e-4
    other.remove()
    reordered = trimtab.attach(torch.optim.SGD(net.parameters()), other_penalty, other_recorder)
    with pytest.raises(ValueError, match=r"saved levers are \['Recorder', 'VarianceAmplifier'\]"):
        reordered.load_state_dict(state)


def test_group_added_later_is_seen():
    net, late = network(), nn.Linear(2, 2)
    optimizer, recorder = torch.optim.SGD(net.parameters(), lr=0.1), Recorder()
    trimtab.attach(optimizer, recorder)
    backward(net)
    optimizer.step()
    optimizer.add_param_group({"params": list(late.parameters())})
    late(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    assert set(recorder.seen[0]) == {"group0.0", "group0.1"}
    assert set(recorder.seen[1]) == {"group0.0", "group0.1", "group1.0", "group1.1"}


def test_model_gives_names_so_that_rules_can_choose():
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))
    penalty = trimtab.penalties.L1(1.0, rule=Rule(exclude=("1.*",)))
    optimizer = torch.optim.SGD(net.parameters(), lr=1.0)
    handle = trimtab.attach(optimizer, penalty, model=net)
    before = [item.detach().clone() for item in net.parameters()]
    for item in net.parameters():
        item.grad = torch.zeros_like(item)
    optimizer.step()
    changed = [not torch.equal(item, old) for item, old in zip(net.parameters(), before, strict=True)]
    assert changed == [True, False, False, False]
    handle.remove()
    unnamed = torch.optim.SGD(net.parameters(), lr=1.0)
    trimtab.attach(unnamed, penalty)
    with pytest.raises(ValueError, match="has no name"):
        unnamed.step()


def test_wrong_arguments():
    net = network()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with pytest.raises(TypeError, match=r"needs a torch.optim.Optimizer first, got Linear"):
        trimtab.attach(net)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"lever 1 .*has no before_step"):
        trimtab.attach(optimizer, Recorder(), object())  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="lever 0"):
        trimtab.attach(optimizer, trimtab.penalties.L1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="holds none of"):
        trimtab.attach(optimizer, Recorder(), model=nn.Linear(3, 2))
    # nothing was hooked by the failed calls
    assert not optimizer._optimizer_step_pre_hooks


class Bound(Recorder):
    """Has the methods that a lever need not have, and logs their calls."""

    def __init__(self, log: list[str], label: str, fails: bool = False) -> None:
        super().__init__(0.0, log, f"before {label}")
        self.name, self.fails = label, fails

    def bind(self, optimizer: torch.optim.Optimizer, model: nn.Module | None, parameters: Sequence[Entry]) -> None:
        if self.fails:
            raise ValueError("cannot be bound")
        self.log.append(f"bind {self.name} to {type(optimizer).__name__}, {len(parameters)}, {model is not None}")

    def after_step(self, parameters: Sequence[Entry]) -> None:
        assert not torch.is_grad_enabled()
        self.log.append(f"after {self.name}")

    def unbind(self) -> None:
        self.log.append(f"unbind {self.name}")


@pytest.mark.parametrize("closure", [False, True])
def test_a_lever_is_told_of_binding_steps_and_removal(closure):
    net, log = network(), []
    base = torch.optim.SGD(net.parameters(), lr=0.1)
    handle = trimtab.attach(Wrapper(base) if closure else base, Bound(log, "a"), Recorder(), Bound(log, "b"), model=net)
    backward(net)
    handle.optimizers[0].step((lambda: backward(net)) if closure else None)
    handle.remove()
    handle.remove()
    base.step()
    bound = ["bind a to SGD, 2, True", "bind b to SGD, 2, True"]
    assert log == [*bound, "before a", "before b", "after a", "after b", "unbind b", "unbind a"]


@pytest.mark.parametrize("fused", [True, False])
def test_after_step_is_not_called_when_the_scaler_skips_the_step(fused):
    net, log = network(), []
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, fused=fused)
    trimtab.attach(optimizer, Bound(log, "a"))
    scaler = torch.amp.GradScaler("cpu", init_scale=4096.0)
    for factor in (1.0, float("inf")):
        optimizer.zero_grad()
        backward(net, factor=scaler.scale(torch.ones(())).item() * factor)
        scaler.step(optimizer)
        scaler.update()
    assert log[1:] == ["before a", "after a"]


def test_a_lever_that_cannot_be_bound_leaves_nothing_behind():
    log: list[str] = []
    optimizer = torch.optim.SGD(network().parameters(), lr=0.1)
    with pytest.raises(ValueError, match="cannot be bound"):
        trimtab.attach(optimizer, Bound(log, "a"), Bound(log, "b", fails=True))
    assert log[1:] == ["unbind a"]
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks


def test_repr_names_the_chain():
    optimizer = torch.optim.SGD(network().parameters(), lr=0.1)
    handle = trimtab.attach(optimizer, trimtab.penalties.L1(1e-3), trimtab.penalties.HoyerSquare(1.0))
    assert repr(handle) == "Handle(SGD: L1(strength=0.001, min_ndim=2) -> HoyerSquare(strength=1, min_ndim=2))"
    assert repr(trimtab.attach(optimizer)) == "Handle(SGD: no lever)"
