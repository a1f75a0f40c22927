"""The order that docs/order.md documents, end to end: what each lever sees, and what the step takes.

unscale -> accumulate -> reduce -> penalty -> transforms in order -> clip -> step. The expectation is worked out apart from
the levers: gradients of the whole batch by autograd, the terms of the levers by their formulas.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import trimtab
from tests.distributed import on_two_ranks
from tests.levers.test_attach import Recorder
from trimtab.parameters import Entry

INPUTS = torch.randn(8, 6, generator=torch.Generator().manual_seed(1))
LABELS = torch.arange(8) % 3
STRENGTH, MAX_NORM, RATE = 0.5, 0.15, 0.1
Tensors = list[Tensor]


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))


def gradients_at(weights: Sequence[Tensor]) -> Tensors:
    """Gradients of the mean loss over the whole batch, at these weights."""
    net = network()
    with torch.no_grad():
        for parameter, weight in zip(net.parameters(), weights, strict=True):
            parameter.copy_(weight)
    return list(torch.autograd.grad(nn.functional.cross_entropy(net(INPUTS), LABELS), list(net.parameters())))


def weights_of(net: nn.Module) -> Tensors:
    return [parameter.detach().clone() for parameter in net.parameters()]


def penalised(gradients: Tensors, weights: Tensors) -> Tensors:
    """L1's term on tensors of two dimensions or more."""
    return [g + STRENGTH * w.sign() if w.ndim > 1 else g for g, w in zip(gradients, weights, strict=True)]


def centred(gradients: Tensors) -> Tensors:
    return [g - g.mean(1, keepdim=True) if g.ndim > 1 else g for g in gradients]


def norm(gradients: Tensors) -> float:
    return math.sqrt(sum(float(g.double().square().sum()) for g in gradients))


def clipped(gradients: Tensors) -> Tensors:
    assert norm(gradients) > 1.5 * MAX_NORM, "the clip must have something to do"
    return [g * (MAX_NORM / (norm(gradients) + 1e-6)) for g in gradients]


class Places:
    """Recorders before, between and behind a penalty, a transform and a clip, in the documented order."""

    def __init__(self) -> None:
        self.raw, self.after_penalty, self.after_transform, self.after_clip = (Recorder() for _ in range(4))
        self.levers = (
            self.raw,
            trimtab.penalties.L1(STRENGTH),
            self.after_penalty,
            trimtab.gradients.Centralize(),
            self.after_transform,
            trimtab.gradients.ClipNorm(MAX_NORM),
            self.after_clip,
        )

    def seen(self) -> list[Tensors]:
        """What each recorder saw in the first step."""
        recorders = (self.raw, self.after_penalty, self.after_transform, self.after_clip)
        assert {len(recorder.seen) for recorder in recorders} == {1}, "once per step, not per micro-batch or pass"
        return [list(recorder.seen[0].values()) for recorder in recorders]


def expected(raw: Tensors, weights: Tensors) -> list[Tensors]:
    """What the four recorders must see when `raw` is the gradient without any lever."""
    with_penalty = penalised(raw, weights)
    return [raw, with_penalty, centred(with_penalty), clipped(centred(with_penalty))]


def check(places: Places, net: nn.Module, before: Tensors, raw: Tensors) -> None:
    wanted = expected(raw, before)
    torch.testing.assert_close(places.seen(), wanted)
    after = [weight - RATE * gradient for weight, gradient in zip(before, wanted[-1], strict=True)]
    torch.testing.assert_close(weights_of(net), after)


def accumulate(net: nn.Module, scale: Callable[[Tensor], Tensor], rows: range = range(8), pieces: int = 2) -> Tensor:
    """Backward over `pieces` micro-batches of these rows; the mean loss. DDP reduces with the last one."""
    total = torch.zeros(())
    for number in range(pieces):
        part = list(rows)[number::pieces]
        reduces = number == pieces - 1 or not isinstance(net, nn.parallel.DistributedDataParallel)
        with nullcontext() if reduces else net.no_sync():
            loss = nn.functional.cross_entropy(net(INPUTS[part]), LABELS[part]) / pieces
            scale(loss).backward()
        total += loss.detach()
    return total


@pytest.mark.parametrize("scaled", [True, False])
@pytest.mark.parametrize("fused", [True, False])
def test_unscaled_accumulated_then_penalty_transform_clip_step(fused, scaled):
    net, places = network(), Places()
    before = weights_of(net)
    optimizer = torch.optim.SGD(net.parameters(), lr=RATE, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, enabled=scaled)
    trimtab.attach(optimizer, *places.levers)
    accumulate(net, scaler.scale)
    scaler.step(optimizer)
    scaler.update()
    check(places, net, before, gradients_at(before))


def test_a_lever_before_the_penalty_does_not_act_on_it():
    net, last = network(), Recorder()
    before = weights_of(net)
    optimizer = torch.optim.SGD(net.parameters(), lr=RATE)
    trimtab.attach(optimizer, trimtab.gradients.Centralize(), trimtab.penalties.L1(STRENGTH), last)
    accumulate(net, lambda loss: loss)
    optimizer.step()
    raw = gradients_at(before)
    torch.testing.assert_close(list(last.seen[0].values()), penalised(centred(raw), before))
    with pytest.raises(AssertionError):
        torch.testing.assert_close(list(last.seen[0].values()), centred(penalised(raw, before)))


@pytest.mark.parametrize("fused", [True, False])
def test_skipped_step_reaches_no_lever(fused):
    net, places = network(), Places()
    before = weights_of(net)
    optimizer = torch.optim.SGD(net.parameters(), lr=RATE, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    trimtab.attach(optimizer, *places.levers)
    accumulate(net, lambda loss: scaler.scale(loss) * math.inf)
    scaler.step(optimizer)
    scaler.update()
    assert places.raw.seen == []
    torch.testing.assert_close(weights_of(net), before, rtol=0, atol=0)


def test_closure_step():
    net, places = network(), Places()
    before = weights_of(net)
    optimizer = torch.optim.SGD(net.parameters(), lr=RATE)
    trimtab.attach(optimizer, *places.levers)

    def closure() -> Tensor:
        optimizer.zero_grad()
        return accumulate(net, lambda loss: loss)

    penalty = STRENGTH * float(sum(w.abs().sum() for w in before if w.ndim > 1))
    loss = nn.functional.cross_entropy(network()(INPUTS), LABELS).item()
    assert float(optimizer.step(closure)) == pytest.approx(loss + penalty)
    check(places, net, before, gradients_at(before))


def test_decay_comes_behind_the_clip_and_after_step_sees_the_whole_update():
    class Update(Recorder):
        """Remembers the weights before the step, and what `after_step` finds."""

        def before_step(self, parameters: Sequence[Entry]) -> None:
            self.before = [entry.parameter.detach().clone() for entry in parameters]

        def after_step(self, parameters: Sequence[Entry]) -> None:
            self.update = [entry.parameter - old for entry, old in zip(parameters, self.before, strict=True)]

    net, update = network(), Update()
    before = weights_of(net)
    optimizer = torch.optim.SGD(net.parameters(), lr=RATE, weight_decay=2.0)
    trimtab.attach(optimizer, update, trimtab.gradients.ClipNorm(MAX_NORM))
    accumulate(net, lambda loss: loss)
    optimizer.step()
    wanted = [-RATE * (g + 2.0 * w) for g, w in zip(clipped(gradients_at(before)), before, strict=True)]
    torch.testing.assert_close(update.update, wanted)


def sharp_weights(weights: Tensors, rho: float) -> Tensors:
    """Where SAM takes its second gradient: `w + rho * g / ||g||`, without the penalty."""
    gradients = gradients_at(weights)
    return [w + rho / norm(gradients) * g for w, g in zip(weights, gradients, strict=True)]


@pytest.mark.parametrize("scaled", [True, False])
@pytest.mark.parametrize("fused", [True, False])
def test_sam_gives_levers_its_second_gradient_at_weights_put_back(fused, scaled):
    net, places = network(), Places()
    before = weights_of(net)
    base = torch.optim.SGD(net.parameters(), lr=RATE, fused=fused)
    optimizer = trimtab.optimizers.SAM(base, rho=0.5, model=net)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0) if scaled else None
    trimtab.attach(optimizer, *places.levers)

    def closure() -> Tensor:
        optimizer.zero_grad()
        return accumulate(net, scaler.scale if scaler else lambda loss: loss)

    optimizer.step(closure, grad_scaler=scaler)
    raw = gradients_at(sharp_weights(before, 0.5))
    assert norm([a - b for a, b in zip(raw, gradients_at(before), strict=True)]) > 0.05 * norm(raw)
    check(places, net, before, raw)


def test_cram_gives_levers_the_sum_of_both_gradients():
    net, places = network(), Places()
    before = weights_of(net)
    optimizer = trimtab.optimizers.CrAM(
        torch.optim.SGD(net.parameters(), lr=RATE), rho=0.5, sparsities=(0.6,), model=net
    )
    trimtab.attach(optimizer, *places.levers)

    def closure() -> Tensor:
        optimizer.zero_grad()
        return accumulate(net, lambda loss: loss)

    optimizer.step(closure)
    dense = gradients_at(before)
    moved = [w + 0.5 * g for w, g in zip(before, dense, strict=True)]
    magnitudes = torch.cat([w.abs().flatten() for w in moved if w.ndim > 1]).sort().values
    threshold = magnitudes[math.floor(0.6 * len(magnitudes) + 0.5) - 1]
    kept = [(w.abs() > threshold).float() if w.ndim > 1 else torch.ones_like(w) for w in moved]
    sparse = gradients_at([w * mask for w, mask in zip(moved, kept, strict=True)])
    raw = [g + s * mask for g, s, mask in zip(dense, sparse, kept, strict=True)]
    check(places, net, before, raw)


def test_clip_in_before_step_of_a_wrapper_comes_before_the_levers():
    net, places = network(), Places()
    before = weights_of(net)
    optimizer = trimtab.optimizers.SAM(torch.optim.SGD(net.parameters(), lr=RATE), rho=0.5, model=net)
    trimtab.attach(optimizer, *places.levers)

    def closure() -> Tensor:
        optimizer.zero_grad()
        return accumulate(net, lambda loss: loss)

    optimizer.step(closure, before_step=lambda: nn.utils.clip_grad_norm_(net.parameters(), 0.1))
    second = gradients_at(sharp_weights(before, 0.5))
    check(places, net, before, [g * (0.1 / (norm(second) + 1e-6)) for g in second])


def _step_of_a_rank(rank: int, world: int, fused: bool) -> dict[str, Any]:
    places = Places()
    net = nn.parallel.DistributedDataParallel(network())
    optimizer = torch.optim.SGD(net.parameters(), lr=RATE, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    trimtab.attach(optimizer, *places.levers, model=net)
    accumulate(net, scaler.scale, rows=range(rank, 8, world))
    scaler.step(optimizer)
    scaler.update()
    return {"seen": places.seen(), "weights": weights_of(net)}


def _on_a_rank(rank: int, world: int) -> list[dict[str, Any]]:
    return [_step_of_a_rank(rank, world, fused) for fused in (True, False)]


def test_reduced_over_two_ranks_before_any_lever():
    ranks = on_two_ranks(_on_a_rank)
    before = weights_of(network())
    wanted = expected(gradients_at(before), before)
    after = [weight - RATE * gradient for weight, gradient in zip(before, wanted[-1], strict=True)]
    for result in ranks[0] + ranks[1]:
        torch.testing.assert_close(result["seen"], wanted)
        torch.testing.assert_close(result["weights"], after)
    for first, second in zip(*ranks, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(first["weights"], second["weights"], strict=True))
