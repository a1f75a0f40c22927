"""ascend() and descend(): the step in two calls, for loops that give no closure or accumulate."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import trimtab
from tests.distributed import on_two_ranks
from tests.optimizers.nets import METHODS, batch, closure_for, mlp, normed, same, weights, wrap
from tests.warned import TOY_IS_CUT
from trimtab.optimizers import SAM, CrAM, TwoPassOptimizer
from trimtab.pruning import KeepMasks, keep_masks, one_shot

pytestmark = TOY_IS_CUT


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def micro_batches(step: int, parts: int) -> list[tuple[Tensor, Tensor]]:
    images, targets = batch(100 + step)
    return list(zip(images.chunk(parts), targets.chunk(parts), strict=True))


def backward(model: nn.Module, parts: list[tuple[Tensor, Tensor]], scaler: Any = None) -> None:
    for images, targets in parts:
        loss = nn.functional.cross_entropy(model(images), targets) / len(parts)
        (loss if scaler is None else scaler.scale(loss)).backward()


def two_calls(model: nn.Module, optimizer: TwoPassOptimizer, step: int, parts: int, scaler: Any = None) -> bool:
    optimizer.zero_grad()
    optimizer.begin()
    backward(model, micro_batches(step, parts), scaler)
    if optimizer.ascend(scaler):
        backward(model, micro_batches(step, parts), scaler)
    taken = optimizer.descend(scaler)
    if scaler is not None:
        scaler.update()
    return taken


@pytest.mark.parametrize("parts", [1, 4])
@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_equals_the_closure_form_bit_for_bit(method: str, scaled: bool, parts: int) -> None:
    """Dropout, batch norm, accumulation and GradScaler included."""
    runs = []
    for calls in (True, False):
        model = normed()
        optimizer = wrap(method, sgd(model), model)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0) if scaled else None
        torch.manual_seed(5)
        for step in range(4):
            if calls:
                assert two_calls(model, optimizer, step, parts, scaler)
                continue

            def closure(step: int = step, model: Any = model, optimizer: Any = optimizer, scaler: Any = scaler) -> None:
                optimizer.zero_grad()
                backward(model, micro_batches(step, parts), scaler)

            optimizer.step(closure, grad_scaler=scaler)
            if scaler is not None:
                scaler.update()
        runs.append([*weights(model), *(buffer.float() for buffer in model.buffers()), torch.get_rng_state()])
        assert optimizer.steps == 4
    assert same(*runs)


def test_sam_under_accumulation_is_the_formula() -> None:
    model = mlp(torch.float64)
    parts = [(images.double(), targets) for images, targets in micro_batches(0, 4)]
    images, targets = torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])

    def gradient(moved: list[Tensor]) -> list[Tensor]:
        other = copy.deepcopy(model)
        with torch.no_grad():
            for parameter, value in zip(other.parameters(), moved, strict=True):
                parameter.copy_(value)
        return list(torch.autograd.grad(nn.functional.cross_entropy(other(images), targets), [*other.parameters()]))

    before = weights(model)
    first = gradient(before)
    norm = torch.cat([item.flatten() for item in first]).norm()
    second = gradient([w + 0.05 * g / norm for w, g in zip(before, first, strict=True)])
    optimizer = SAM(torch.optim.SGD(model.parameters(), lr=0.1), rho=0.05)
    backward(model, parts)
    assert optimizer.ascend()
    assert all(parameter.grad is None for parameter in model.parameters())
    backward(model, parts)
    assert optimizer.descend()
    wanted = [w - 0.1 * g for w, g in zip(before, second, strict=True)]
    torch.testing.assert_close(weights(model), wanted, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("bad_pass", [1, 2])
def test_the_scaler_skips_and_backs_off(bad_pass: int, fused: bool) -> None:
    model = mlp()
    base = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, fused=fused)
    optimizer, scaler = SAM(base), torch.amp.GradScaler("cpu", init_scale=1024.0)
    before = weights(model)
    backward(model, micro_batches(0, 1), scaler)
    if bad_pass == 1:
        model[0].weight.grad[0, 0] = float("inf")
    assert optimizer.ascend(scaler) == (bad_pass == 2)
    if bad_pass == 2:
        backward(model, micro_batches(0, 1), scaler)
        model[0].weight.grad[0, 0] = float("nan")
    optimizer.descend(scaler)
    scaler.update()
    assert same(weights(model), before)
    assert scaler.get_scale() == 512.0
    assert optimizer.steps == 0
    assert two_calls(model, optimizer, 0, 1, scaler)


@pytest.mark.parametrize("bad_pass", [1, 2])
def test_skipping_without_a_scaler(bad_pass: int) -> None:
    model = mlp()
    optimizer = SAM(sgd(model))
    optimizer.on_nonfinite = "skip"
    before = weights(model)
    calls = []

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(batch()[0]), batch()[1])
        loss.backward()
        calls.append(1)
        if len(calls) == bad_pass:
            model[0].weight.grad[0, 0] = float("nan")
        return loss

    with pytest.warns(UserWarning, match=r"SAM: the gradient.* holds inf or NaN after 0 steps; the step is skipped"):
        assert optimizer.step(closure).isfinite()
    assert same(weights(model), before)
    assert (optimizer.skipped, optimizer.skipped_in_a_row, optimizer.steps) == (1, 1, 0)
    optimizer.step(closure)
    assert (optimizer.skipped, optimizer.skipped_in_a_row, optimizer.steps) == (1, 0, 1)


def test_retreat_and_wrong_orders() -> None:
    model = normed()
    optimizer = SAM(sgd(model), model=model)
    before = [*weights(model), *(buffer.clone() for buffer in model.buffers())]
    with pytest.raises(RuntimeError, match=r"descend needs an SAM\.ascend before it"):
        optimizer.descend()
    model.eval()
    backward(model, micro_batches(0, 1))
    optimizer.ascend()
    assert not same(weights(model), before[: len(weights(model))])
    with pytest.raises(RuntimeError, match=r"ascend was called before; descend\(\) takes the step"):
        optimizer.ascend()
    with pytest.raises(RuntimeError, match="between ascend and descend"):
        copy.deepcopy(optimizer)
    model.train()
    backward(model, micro_batches(0, 1))
    optimizer.retreat()
    optimizer.retreat()
    assert same([*weights(model), *model.buffers()], before)
    backward(model, micro_batches(0, 1))
    optimizer.ascend()
    with pytest.raises(ValueError, match="grad_scaler to both"):
        optimizer.descend(torch.amp.GradScaler("cpu"))
    assert same(weights(model), before[: len(weights(model))])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("set_to_none", [True, False])
def test_a_closure_that_adds_to_earlier_gradients_is_refused(method: str, set_to_none: bool) -> None:
    model = mlp()
    optimizer = wrap(method, sgd(model), model)
    before = weights(model)
    first, second = micro_batches(0, 2)
    backward(model, [first])
    earlier = [parameter.grad.clone() for parameter in model.parameters()]
    with pytest.raises(RuntimeError, match="adds to gradients that were there before"):
        optimizer.step(lambda: backward(model, [second]))
    assert same(weights(model), before)
    backward(model, [second])  # what is there is not poisoned: twice the second, once the first
    assert all(float((p.grad - g).abs().max()) < 10 for p, g in zip(model.parameters(), earlier, strict=True))

    def clears() -> None:
        optimizer.zero_grad(set_to_none=set_to_none)
        backward(model, [second])

    optimizer.step(clears)
    model.zero_grad(set_to_none=False)
    optimizer.step(lambda: backward(model, [second]))  # nothing was there: the second pass starts anew


class ScheduleFree(torch.optim.SGD):
    """Has the switches of schedule-free optimizers."""

    mode = "train"

    def train(self) -> None:
        self.mode = "train"

    def eval(self) -> None:
        self.mode = "eval"


def test_switches_are_handed_on() -> None:
    base = ScheduleFree(mlp().parameters(), lr=0.1)
    optimizer = SAM(base)
    optimizer.eval()
    assert base.mode == "eval"
    optimizer.train()
    assert base.mode == "train"
    SAM(sgd(mlp())).eval()  # nothing to switch


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("form", ["keep_masks", "lever"])
def test_only_kept_weights_are_perturbed(method: str, form: str) -> None:
    model = mlp()
    pruned = one_shot(model, 0.8)
    optimizer = wrap(method, sgd(model), model)
    if form == "lever":
        handle = trimtab.attach(optimizer, KeepMasks(pruned.masks), model=model)
    else:
        handle = keep_masks(optimizer, pruned.masks, model)
    revived: list[int] = []

    def closure() -> Tensor:
        revived.append(sum(int((model.get_parameter(name)[~mask] != 0).sum()) for name, mask in pruned.masks.items()))
        return closure_for(model, optimizer, batch())()

    for _ in range(2):
        optimizer.step(closure)
    assert revived == [0] * 4
    handle.remove()
    optimizer.step(closure)
    assert revived[-1] > 0 or isinstance(optimizer, CrAM)


def test_the_whole_radius_is_for_kept_weights() -> None:
    model = mlp(torch.float64)
    pruned = one_shot(model, 0.8)
    optimizer = SAM(sgd(model), rho=0.05, model=model)
    keep_masks(optimizer, pruned.masks, model)
    before = weights(model)
    images, targets = batch(dtype=torch.float64)
    nn.functional.cross_entropy(model(images), targets).backward()
    gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    for name, mask in pruned.masks.items():
        gradients[name][~mask] = 0
    norm = torch.cat([gradient.flatten() for gradient in gradients.values()]).norm()
    optimizer.ascend()
    moved = [after - old for after, old in zip(weights(model), before, strict=True)]
    torch.testing.assert_close(moved, [0.05 * g / norm for g in gradients.values()], rtol=1e-9, atol=1e-15)
    optimizer.retreat()


def test_sparse_gradients_are_named() -> None:
    net = nn.Sequential(nn.Embedding(10, 4, sparse=True), nn.Linear(4, 2))
    for method in METHODS:
        optimizer = wrap(method, torch.optim.SGD(net.parameters(), lr=0.1), net)
        net(torch.tensor([1])).sum().backward()
        with pytest.raises(ValueError, match=r"that of 0\.weight, of shape \(10, 4\), .*sparse=False"):
            optimizer.ascend()
        net.zero_grad()


def parallel(rank: int, world: int) -> list[Tensor]:
    """Two steps of accumulated micro-batches under DDP, in two calls."""
    model = mlp(torch.float64)
    reduced = nn.parallel.DistributedDataParallel(model)
    optimizer = SAM(sgd(model), rho=0.05, model=model)
    for step in range(2):
        optimizer.zero_grad()
        parts = [(images.double(), targets) for images, targets in micro_batches(step, 4)][rank::world]
        for ascend in (True, False):
            with reduced.no_sync():
                backward(reduced, parts[:1])
            backward(reduced, parts[1:])
            if ascend:
                optimizer.ascend()
            else:
                optimizer.descend()
    return weights(model)


def test_two_processes_equal_one() -> None:
    model = mlp(torch.float64)
    optimizer = SAM(sgd(model), rho=0.05, model=model)
    for step in range(2):
        optimizer.zero_grad()
        parts = [(images.double(), targets) for images, targets in micro_batches(step, 4)]
        # each rank's two micro-batches are divided by one, and the ranks' mean is taken
        for ascend in (True, False):
            for part in parts:
                for parameter, gradient in zip(
                    model.parameters(),
                    torch.autograd.grad(nn.functional.cross_entropy(model(part[0]), part[1]), [*model.parameters()]),
                    strict=True,
                ):
                    parameter.grad = gradient / 2 if parameter.grad is None else parameter.grad + gradient / 2
            if ascend:
                optimizer.ascend()
            else:
                optimizer.descend()
    for found in on_two_ranks(parallel):
        torch.testing.assert_close(found, weights(model), rtol=1e-10, atol=1e-12)
