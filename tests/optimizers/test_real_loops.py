"""What a real training loop does to an optimizer: resume, mixed precision, clipping, schedules, interruption."""

from __future__ import annotations

import copy
import gc
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import trimtab
from tests.optimizers.nets import METHODS, batch, closure_for, mlp, normed, same, train, weights, wrap
from trimtab.optimizers import ASAM, SAM, CrAM, TwoPassOptimizer


def adam(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), lr=0.01)


def sgd(model: nn.Module, rate: float = 0.1) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9)


@pytest.mark.parametrize("method", METHODS)
def test_step_returns_the_loss_at_the_unperturbed_weights(method: str) -> None:
    model = mlp()
    optimizer = wrap(method, sgd(model))
    data = batch()
    expected = nn.functional.cross_entropy(model(data[0]), data[1])
    assert torch.equal(optimizer.step(closure_for(model, optimizer, data)), expected)


@pytest.mark.parametrize("method", METHODS)
def test_resumed_run_equals_uninterrupted_one(method: str, tmp_path: Path) -> None:
    model = normed()
    optimizer = wrap(method, adam(model), model)
    torch.manual_seed(7)
    train(model, optimizer, 6)
    torch.save([model.state_dict(), optimizer.state_dict(), torch.get_rng_state()], tmp_path / "half.pt")
    losses = train(model, optimizer, 6, start=6)

    again = normed(seed=5)
    resumed = wrap(method, adam(again), again, seed=99)
    model_state, optimizer_state, random_state = torch.load(tmp_path / "half.pt", weights_only=True)
    again.load_state_dict(model_state)
    resumed.load_state_dict(optimizer_state)
    torch.set_rng_state(random_state)
    assert train(again, resumed, 6, start=6) == losses
    assert same(list(model.state_dict().values()), list(again.state_dict().values()))
    assert resumed.steps == 12


def test_state_of_another_kind_is_refused() -> None:
    model = mlp()
    optimizer = SAM(sgd(model))
    with pytest.raises(ValueError, match=r"state is of ASAM.*SAM"):
        optimizer.load_state_dict(ASAM(sgd(model)).state_dict())
    with pytest.raises(ValueError, match="bare optimizer"):
        optimizer.load_state_dict(sgd(model).state_dict())


def state_bytes(state: Any) -> int:
    if isinstance(state, Tensor):
        return state.numel() * state.element_size()
    if isinstance(state, dict):
        return sum(map(state_bytes, state.values()))
    return sum(map(state_bytes, state)) if isinstance(state, list | tuple) else 0


@pytest.mark.parametrize("method", METHODS)
def test_state_is_the_base_optimizers(method: str) -> None:
    model = mlp()
    optimizer = wrap(method, adam(model))
    train(model, optimizer, 2)
    own = optimizer.state_dict().pop("two_pass")
    assert set(own) <= {"method", "steps", "skipped", "generator"}
    assert state_bytes(optimizer.state_dict()) - state_bytes(own) == state_bytes(optimizer.base_optimizer.state_dict())

    def living() -> int:
        gc.collect()
        tensors = {id(item): item for item in gc.get_objects() if type(item) in (Tensor, nn.Parameter)}
        return sum(item.numel() for item in tensors.values())

    before = living()
    train(model, optimizer, 3)
    assert living() <= before  # nothing of a step outlives it


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("method", METHODS)
def test_weights_come_back_bit_for_bit_and_in_place(method: str, dtype: torch.dtype) -> None:
    model = mlp(dtype)
    with torch.no_grad():
        model[0].weight[0, 0] = -0.0
    optimizer = wrap(method, sgd(model, rate=0.0))
    view, before = model[0].weight.detach().view(-1), weights(model)
    pointers = [parameter.data_ptr() for parameter in model.parameters()]
    seen: list[list[Tensor]] = []

    def watch(*_: Any) -> None:
        seen.append(weights(model))

    handle = model.register_forward_pre_hook(watch)
    train(model, optimizer, 3, dtype=dtype)
    handle.remove()
    assert not same(seen[0], seen[1])  # perturbed in between
    assert same(weights(model), before)
    assert [parameter.data_ptr() for parameter in model.parameters()] == pointers
    assert torch.equal(view, model[0].weight.detach().view(-1))


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("method", METHODS)
def test_an_error_in_the_second_pass_leaves_the_weights(method: str, error: type[BaseException]) -> None:
    model = normed()
    optimizer = wrap(method, adam(model))
    train(model, optimizer, 1)
    before, statistics = weights(model), copy.deepcopy(model[1].state_dict())
    closure, calls = closure_for(model, optimizer, batch()), []

    def failing() -> Tensor:
        calls.append(1)
        loss = closure()
        if len(calls) == 2:
            raise error("stop")
        statistics.update(copy.deepcopy(model[1].state_dict()))
        return loss

    with pytest.raises(error):
        optimizer.step(failing)
    assert same(weights(model), before)
    assert same(list(statistics.values()), list(model[1].state_dict().values()))
    assert optimizer.steps == 1
    assert torch.nn.modules.module._global_forward_pre_hooks == {}


@pytest.mark.parametrize("bad_pass", [1, 2])
@pytest.mark.parametrize("method", METHODS)
def test_nan_does_not_reach_the_weights(method: str, bad_pass: int) -> None:
    model = mlp()
    optimizer = wrap(method, adam(model))
    before, calls = weights(model), []

    def closure() -> Tensor:
        optimizer.zero_grad()
        calls.append(1)
        loss = model(batch()[0]).square().mean() * (torch.nan if len(calls) == bad_pass else 1)
        loss.backward()
        return loss

    with pytest.raises(FloatingPointError, match="inf or NaN"):
        optimizer.step(closure)
    assert len(calls) == bad_pass
    assert same(weights(model), before)
    assert not optimizer.state


@pytest.mark.parametrize("method", METHODS)
def test_grad_scaler_gives_the_unscaled_run(method: str) -> None:
    model, plain = mlp(), mlp()
    optimizer, unscaled = wrap(method, sgd(model)), wrap(method, sgd(plain))
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=3)
    for step in range(6):
        data = batch(step)
        loss = optimizer.step(closure_for(model, optimizer, data, scaler), grad_scaler=scaler)
        scaler.update()
        assert torch.equal(loss, unscaled.step(closure_for(plain, unscaled, data)))  # powers of two are exact
    assert same(weights(model), weights(plain))
    assert scaler.get_scale() == 2.0**12  # grew twice: the protocol was followed


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("bad_pass", [1, 2])
@pytest.mark.parametrize("method", METHODS)
def test_grad_scaler_skips_on_inf_in_either_pass(method: str, bad_pass: int, fused: bool) -> None:
    model = mlp()
    optimizer = wrap(method, torch.optim.Adam(model.parameters(), lr=0.01, fused=fused))
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    optimizer.step(closure_for(model, optimizer, batch(), scaler), grad_scaler=scaler)
    scaler.update()
    before, calls, closure = weights(model), [], closure_for(model, optimizer, batch(), scaler)

    def overflowing() -> Tensor:
        calls.append(1)
        loss = closure()
        if len(calls) == bad_pass:
            assert model[0].weight.grad is not None
            model[0].weight.grad[0, 0] = torch.inf
        return loss

    acted: list[int] = []
    optimizer.step(overflowing, grad_scaler=scaler, before_step=lambda: acted.append(1))
    scaler.update()
    assert scaler.get_scale() == 512.0
    assert same(weights(model), before)
    assert not acted
    assert optimizer.steps == 1
    optimizer.step(closure, grad_scaler=scaler, before_step=lambda: acted.append(1))
    scaler.update()
    assert not same(weights(model), before)
    assert acted == [1]


def test_fused_base_under_grad_scaler_equals_the_plain_one() -> None:
    model, plain = mlp(), mlp()
    optimizer = SAM(torch.optim.SGD(model.parameters(), lr=0.1, fused=True))
    other = SAM(torch.optim.SGD(plain.parameters(), lr=0.1))
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for step in range(3):
        optimizer.step(closure_for(model, optimizer, batch(step), scaler), grad_scaler=scaler)
        scaler.update()
        other.step(closure_for(plain, other, batch(step)))
    for left, right in zip(weights(model), weights(plain), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-6, atol=1e-7)


def test_disabled_grad_scaler_is_none() -> None:
    model, plain = mlp(), mlp()
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    optimizer, other = SAM(sgd(model)), SAM(sgd(plain))
    optimizer.step(closure_for(model, optimizer, batch(), scaler), grad_scaler=scaler)
    scaler.update()
    other.step(closure_for(plain, other, batch()))
    assert same(weights(model), weights(plain))


@pytest.mark.parametrize("scaled", [False, True])
def test_clipping_meets_the_final_gradient_once(scaled: bool) -> None:
    model = mlp()
    optimizer = CrAM(torch.optim.SGD(model.parameters(), lr=1.0), 0.2, (0.5,))
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0) if scaled else None
    before, norms = weights(model), []

    def clip() -> None:
        norms.append(float(nn.utils.clip_grad_norm_(model.parameters(), 0.01)))

    optimizer.step(closure_for(model, optimizer, batch(), scaler), grad_scaler=scaler, before_step=clip)
    moved = torch.cat([(a - b).flatten() for a, b in zip(weights(model), before, strict=True)])
    assert len(norms) == 1
    assert 0.01 < norms[0] < 100
    assert float(moved.norm()) == pytest.approx(0.01, rel=1e-3)


class Recorder:
    """A lever that remembers what it saw."""

    def __init__(self) -> None:
        self.weights: list[list[Tensor]] = []
        self.gradients: list[list[Tensor]] = []

    def before_step(self, parameters: Any) -> None:
        self.weights.append([entry.parameter.detach().clone() for entry in parameters])
        self.gradients.append([entry.parameter.grad.clone() for entry in parameters])

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


@pytest.mark.parametrize("method", METHODS)
def test_levers_see_unperturbed_weights_and_the_final_gradient(method: str) -> None:
    model = mlp()
    optimizer = wrap(method, torch.optim.SGD(model.parameters(), lr=0.5))
    recorder = Recorder()
    trimtab.attach(optimizer, recorder, model=model)
    before = weights(model)
    optimizer.step(closure_for(model, optimizer, batch()))
    assert len(recorder.weights) == 1
    assert same(recorder.weights[0], before)
    for after, start, gradient in zip(weights(model), before, recorder.gradients[0], strict=True):
        torch.testing.assert_close(after, start - 0.5 * gradient)


@pytest.mark.parametrize("method", METHODS)
def test_accumulation_equals_one_large_batch(method: str) -> None:
    model, whole = mlp(torch.float64), mlp(torch.float64)
    optimizer, other = wrap(method, sgd(model)), wrap(method, sgd(whole))
    images, labels = batch(size=32, dtype=torch.float64)

    def in_parts() -> Tensor:
        optimizer.zero_grad()
        total = torch.zeros(())
        for start in range(0, 32, 8):
            part = slice(start, start + 8)
            loss = nn.functional.cross_entropy(model(images[part]), labels[part]) / 4
            loss.backward()
            total = total + loss.detach()
        return total

    for _ in range(3):
        optimizer.step(in_parts)
        other.step(closure_for(whole, other, (images, labels)))
    for left, right in zip(weights(model), weights(whole), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("set_to_none", [False, True])
def test_both_ways_of_clearing_gradients_agree(set_to_none: bool) -> None:
    model, other = mlp(), mlp()
    for net, flag in ((model, set_to_none), (other, True)):
        optimizer = CrAM(sgd(net), 0.2, (0.5,))
        for step in range(3):

            def closure(net: nn.Module = net, flag: bool = flag, step: int = step) -> Tensor:
                net.zero_grad(set_to_none=flag)
                loss = nn.functional.cross_entropy(net(batch(step)[0]), batch(step)[1])
                loss.backward()
                return loss

            optimizer.step(closure)
    assert same(weights(model), weights(other))


@pytest.mark.parametrize("on_wrapper", [True, False])
def test_schedulers_on_wrapper_or_base_reach_the_rate(on_wrapper: bool) -> None:
    model = mlp()
    optimizer = SAM(torch.optim.SGD(model.parameters(), lr=1.0))
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer if on_wrapper else optimizer.base_optimizer, 1, gamma=0.0)
    train(model, optimizer, 1)
    scheduler.step()
    assert optimizer.param_groups[0]["lr"] == optimizer.base_optimizer.param_groups[0]["lr"] == 0.0
    before = weights(model)
    train(model, optimizer, 1)
    assert same(weights(model), before)
    optimizer.base_optimizer.load_state_dict(optimizer.base_optimizer.state_dict())  # replaces its lists
    optimizer.param_groups[0]["lr"] = 1.0
    train(model, optimizer, 1)
    assert not same(weights(model), before)


@pytest.mark.parametrize("method", METHODS)
def test_added_groups_frozen_and_unused_parameters(method: str) -> None:
    model = mlp()
    model[0].bias.requires_grad_(False)
    unused = nn.Parameter(torch.ones(4, 8))
    optimizer = wrap(method, torch.optim.AdamW(model[0].parameters(), lr=0.1, weight_decay=0.5))
    optimizer.add_param_group({"params": [*model[2].parameters(), unused], "lr": 0.2})
    assert optimizer.base_optimizer.param_groups[1]["lr"] == 0.2
    before = weights(model)
    train(model, optimizer, 2)
    assert [torch.equal(a, b) for a, b in zip(weights(model), before, strict=True)] == [False, True, False, False]
    assert torch.equal(unused, torch.ones(4, 8))
    assert set(optimizer.state) == {model[0].weight, model[2].weight, model[2].bias}


def test_closure_is_required() -> None:
    model = mlp()
    with pytest.raises(TypeError, match="needs a closure"):
        SAM(sgd(model)).step()


def test_bad_input() -> None:
    model = mlp()
    with pytest.raises(TypeError, match=r"optimizer instance.*got SGD"):
        SAM(torch.optim.SGD)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="already takes two gradients"):
        SAM(SAM(sgd(model)))
    with pytest.raises(TypeError, match=r"cannot wrap LBFGS.*closure"):
        SAM(torch.optim.LBFGS(model.parameters()))
    with pytest.raises(TypeError, match="model must be"):
        SAM(sgd(model), 0.05, model="resnet")  # type: ignore[arg-type]
    for rho in (-0.1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="rho must be"):
            SAM(sgd(model), rho=rho)
    with pytest.raises(ValueError, match="eta must be"):
        ASAM(sgd(model), eta=-1.0)


def test_sparse_gradients_are_refused() -> None:
    embedding = nn.Embedding(10, 4, sparse=True)
    optimizer = SAM(torch.optim.SGD(embedding.parameters(), lr=0.1))

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = embedding(torch.tensor([1, 2])).sum()
        loss.backward()
        return loss

    before = weights(embedding)
    with pytest.raises(ValueError, match=r"dense gradients, that of parameter 0, of shape \(10, 4\)"):
        optimizer.step(closure)
    assert same(weights(embedding), before)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
def test_copies_train_on_alike(method: str, how: str) -> None:
    model = mlp()
    optimizer = wrap(method, adam(model), model)
    torch.optim.lr_scheduler.StepLR(optimizer, 5)  # replaces `step` on the instance
    train(model, optimizer, 2)
    pair: tuple[nn.Module, TwoPassOptimizer] = (model, optimizer)
    twin, copied = copy.deepcopy(pair) if how == "deepcopy" else pickle.loads(pickle.dumps(pair))
    assert copied.base_optimizer is not optimizer.base_optimizer
    assert train(model, optimizer, 2, start=2) == train(twin, copied, 2, start=2)
    assert same(weights(model), weights(twin))


def test_step_hooks_on_the_wrapper_run_once() -> None:
    model = mlp()
    optimizer = SAM(sgd(model))
    calls: list[str] = []
    optimizer.register_step_pre_hook(lambda *_: calls.append("before"))
    optimizer.register_step_post_hook(lambda *_: calls.append("after"))
    train(model, optimizer, 1)
    assert calls == ["before", "after"]


def test_repr_names_the_settings() -> None:
    model = mlp()
    assert repr(SAM(sgd(model))) == "SAM(SGD with 1 group, rho=0.05)"
    assert "pattern=('2:4', '4:8')" in repr(wrap("2:4", adam(model)))


@pytest.mark.parametrize("bad", [None, (0, 1), (1, 1), (1, 3)])
@pytest.mark.parametrize("method", METHODS)
def test_accumulation_under_grad_scaler(method: str, bad: tuple[int, int] | None) -> None:
    """Micro-batches scaled one by one equal the whole batch unscaled; inf in any of them, in either pass, skips the step."""
    model, whole = mlp(torch.float64), mlp(torch.float64)
    optimizer, other = wrap(method, sgd(model)), wrap(method, sgd(whole))
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    images, labels = batch(size=32, dtype=torch.float64)
    overflow = False
    passes: list[int] = []

    def in_parts() -> Tensor:
        optimizer.zero_grad()
        total = torch.zeros(())
        for place in range(4):
            part = slice(8 * place, 8 * place + 8)
            loss = nn.functional.cross_entropy(model(images[part]), labels[part]) / 4
            if overflow and (len(passes), place) == bad:
                loss = loss * torch.inf
            scaler.scale(loss).backward()
            total = total + loss.detach()
        passes.append(1)
        return total

    for _ in range(2):
        optimizer.step(in_parts, grad_scaler=scaler)
        scaler.update()
        other.step(closure_for(whole, other, (images, labels)))
    for left, right in zip(weights(model), weights(whole), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-9, atol=1e-12)
    assert scaler.get_scale() == 2.0**10
    if bad is None:
        return
    before, overflow = weights(model), True
    passes.clear()
    optimizer.step(in_parts, grad_scaler=scaler)
    scaler.update()
    assert same(weights(model), before)
    assert len(passes) == bad[0] + 1
    assert scaler.get_scale() == 2.0**9
    assert optimizer.steps == 2
    overflow = False
    optimizer.step(in_parts, grad_scaler=scaler)  # goes on as if nothing had been
    assert all(bool(one.isfinite().all()) for one in weights(model))
    assert not same(weights(model), before)
