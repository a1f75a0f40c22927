"""A sweep visits pruned states and leaves the model as it was, however the loop ends."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from tests.pruning.nets import Small, Tied, bits
from tests.warned import TOY_IS_CUT
from trimtab.pruning import one_shot, recalibrate, sweep

pytestmark = TOY_IS_CUT

SPARSITIES = (0.9, 0.0, 0.5, 0.99, 0.5)


@pytest.mark.parametrize("scope", ["global", "layer", "erk"])
@pytest.mark.parametrize("score", ["magnitude", "layer_magnitude", "random"])
def test_each_state_equals_one_shot(scope: str, score: str) -> None:
    net = Small()
    dense = copy.deepcopy(net)
    before = bits(net)
    seen = 0
    for sparsity, pruned in zip(SPARSITIES, sweep(net, SPARSITIES, score=score, scope=scope, seed=4), strict=True):
        alone = copy.deepcopy(dense)
        expected = one_shot(alone, sparsity, score=score, scope=scope, seed=4)
        assert bits(net) == bits(alone)
        assert all(torch.equal(mask, expected.masks[name]) for name, mask in pruned.masks.items())
        assert (pruned.sparsity, pruned.thresholds) == (expected.sparsity, expected.thresholds)
        seen += 1
    assert seen == len(SPARSITIES)
    assert bits(net) == before


def test_pattern_needs_no_sparsity() -> None:
    net = Small()
    before = bits(net)
    assert [pruned.sparsity for pruned in sweep(net, (None,), pattern="2:4", indivisible="leave_out")] == [0.5]
    assert bits(net) == before


def _break(net: nn.Module) -> None:
    for _ in sweep(net, SPARSITIES):
        break


def _raise(net: nn.Module) -> None:
    def consume() -> None:
        for _ in sweep(net, SPARSITIES):
            raise KeyError

    with pytest.raises(KeyError):
        consume()


def _return(net: nn.Module) -> None:
    def first() -> float:
        for pruned in sweep(net, SPARSITIES):
            return pruned.sparsity
        return 0.0

    assert first() > 0.8


def _close(net: nn.Module) -> None:
    states = sweep(net, SPARSITIES)
    before = bits(net)
    next(states)
    assert bits(net) != before
    states.close()


def _throw(net: nn.Module) -> None:
    states = sweep(net, SPARSITIES)
    next(states)
    with pytest.raises(KeyboardInterrupt):
        states.throw(KeyboardInterrupt)


def _list(net: nn.Module) -> None:
    assert len(list(sweep(net, SPARSITIES))) == len(SPARSITIES)


def _never_started(net: nn.Module) -> None:
    sweep(net, SPARSITIES)


def _train_and_recalibrate(net: nn.Module) -> None:
    for _ in sweep(net, SPARSITIES):
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        net(torch.randn(3, 4, 6, 6)).sum().backward()
        optimizer.step()
        recalibrate(net, [torch.randn(3, 4, 6, 6)])


def _undo(net: nn.Module) -> None:
    before = bits(net)
    for pruned in sweep(net, SPARSITIES):
        pruned.undo()
        assert bits(net) == before


@pytest.mark.parametrize(
    "use", [_break, _raise, _return, _close, _throw, _list, _never_started, _train_and_recalibrate, _undo]
)
def test_the_model_is_bit_equal_afterwards(use: Callable[[nn.Module], None]) -> None:
    net = Small()
    with torch.no_grad():
        net.conv.weight.view(-1)[:2] = torch.tensor([-0.0, 1e-42])
    places = [tensor.data_ptr() for tensor in (*net.parameters(), *net.buffers())]
    before = bits(net)
    use(net)
    assert bits(net) == before
    assert places == [tensor.data_ptr() for tensor in (*net.parameters(), *net.buffers())]


def test_a_state_that_has_passed_cannot_be_undone() -> None:
    net = Small()
    first, *_ = sweep(net, SPARSITIES)
    with torch.no_grad():
        net.conv.weight.add_(1)
    trained = bits(net)
    with pytest.raises(RuntimeError, match="sweep went on"):
        first.undo()
    assert bits(net) == trained


def test_masks_of_a_passed_state_stay() -> None:
    states = list(sweep(Small(), (0.5, 0.9)))
    zeros = [sum(int((~mask).sum()) for mask in pruned.masks.values()) for pruned in states]
    assert zeros == [pruned.count for pruned in states]


def test_gradients_may_be_on_inside_the_loop() -> None:
    net = Small()
    for _ in sweep(net, (0.5,)):
        assert torch.is_grad_enabled()
        assert net(torch.ones(1, 4, 6, 6)).requires_grad


def test_tied_weights() -> None:
    net = Tied()
    before = bits(net)
    for _ in sweep(net, (0.5,)):
        assert net.head.weight is net.embedding.weight
        assert int((net.head.weight == 0).sum()) == 16
    assert bits(net) == before


def test_an_array_of_sparsities() -> None:
    net = Small()
    wanted = [0.5, 0.75]
    for dtype in (np.float32, np.float64):
        counts = [pruned.count for pruned in sweep(net, np.array(wanted, dtype=dtype))]
        assert counts == [pruned.count for pruned in sweep(net, wanted)]
    with pytest.raises(ValueError, match="sparsities is empty"):
        sweep(net, np.array([]))


@pytest.mark.parametrize("sparsities", [(), (0.5, 1.0), (0.5, -1), (0.5, False), np.array([0.5, 1.0])])
def test_bad_sparsities_are_refused_before_the_loop(sparsities: tuple[float, ...]) -> None:
    with pytest.raises((ValueError, TypeError), match="sparsit"):
        sweep(Small(), sparsities)
