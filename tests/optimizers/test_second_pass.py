"""Running statistics, dropout masks and compiled networks: the second pass leaves no trace."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.optimizers.nets import METHODS, batch, closure_for, normed, same, train, weights, wrap
from trimtab.optimizers import SAM, CrAM
from trimtab.optimizers.second_pass import RandomState, statistics_kept


class Stack(nn.Module):
    """Every normalisation with running statistics, cumulative averages included."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(
            nn.Unflatten(1, (2, 4)),
            nn.Conv1d(2, 4, 1),
            nn.BatchNorm1d(4, momentum=None),
            nn.Conv1d(4, 4, 1),
            nn.InstanceNorm1d(4, affine=True, track_running_stats=True),
            nn.Flatten(),
            nn.Linear(16, 16),
            nn.BatchNorm1d(16, momentum=1.0),
            nn.Linear(16, 4),
        )

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images)


@pytest.mark.parametrize("with_model", [True, False])
@pytest.mark.parametrize("method", METHODS)
def test_running_statistics_come_from_the_first_pass_alone(method: str, with_model: bool) -> None:
    model = Stack()
    optimizer = wrap(method, torch.optim.SGD(model.parameters(), lr=0.1), model if with_model else None)
    train(model, optimizer, 1)
    plain = copy.deepcopy(model)
    optimizer.step(closure_for(model, optimizer, batch()))
    plain(batch()[0])
    assert same(list(model.buffers()), list(plain.buffers()))
    assert int(model.layers[2].num_batches_tracked) == 2


@pytest.mark.parametrize("with_model", [True, False])
def test_batch_statistics_are_used_in_the_second_pass(with_model: bool) -> None:
    # Were the layers put in eval mode instead, the outputs of the second pass would be of other statistics.
    model = normed()
    model[3].p = 0.0
    optimizer = SAM(torch.optim.SGD(model.parameters(), lr=0.1), rho=0.0, model=model if with_model else None)
    outputs: list[Tensor] = []

    def keep(module: nn.Module, arguments: Any, output: Tensor) -> None:
        outputs.append(output.detach().clone())

    model.register_forward_hook(keep)
    train(model, optimizer, 1)
    assert torch.equal(outputs[0], outputs[1])


def test_frozen_statistics_stay_as_they_are() -> None:
    model = normed()
    model[1].eval()
    before = copy.deepcopy(list(model.buffers()))
    train(model, SAM(torch.optim.SGD(model.parameters(), lr=0.1)), 2)
    assert same(before, list(model.buffers()))


def test_statistics_that_the_forward_breaks_come_back() -> None:
    model = nn.BatchNorm1d(3)
    before = copy.deepcopy(list(model.buffers()))
    with statistics_kept(None):
        model(torch.full((4, 3), torch.nan))
    assert same(before, list(model.buffers()))
    model(torch.randn(4, 3))
    assert not same(before, list(model.buffers()))


@pytest.mark.parametrize("method", METHODS)
def test_both_passes_see_one_dropout_mask(method: str) -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5), nn.Linear(8, 4))
    masks: list[Tensor] = []

    def keep(module: nn.Module, arguments: Any, output: Tensor) -> None:
        masks.append(output == 0)

    model[1].register_forward_hook(keep)
    optimizer = wrap(method, torch.optim.SGD(model.parameters(), lr=0.1))
    train(model, optimizer, 2)
    assert torch.equal(masks[0], masks[1])
    assert torch.equal(masks[2], masks[3])
    assert not torch.equal(masks[0], masks[2])


@pytest.mark.parametrize("method", METHODS)
def test_a_step_draws_as_many_random_numbers_as_the_base_step(method: str) -> None:
    model, plain = normed(), normed()
    optimizer = wrap(method, torch.optim.SGD(model.parameters(), lr=0.1))
    torch.manual_seed(11)
    train(model, optimizer, 2)
    after = torch.rand(3)
    torch.manual_seed(11)
    for _ in range(2):
        plain(batch()[0])
    assert torch.equal(after, torch.rand(3))


def test_random_state_goes_on_after_an_error() -> None:
    state = RandomState([torch.device("cpu")])
    torch.rand(2)
    expected = torch.get_rng_state()
    with pytest.raises(RuntimeError), state.replayed():
        raise RuntimeError
    assert torch.equal(torch.get_rng_state(), expected)


@pytest.mark.slow
def test_compiled_network_equals_the_plain_one() -> None:
    for make in (lambda base, net: SAM(base, 0.05, model=net), lambda base, net: CrAM(base, 0.2, (0.5,), model=net)):
        model, plain = normed(), normed()
        model[3].p = plain[3].p = 0.0
        compiled = torch.compile(model)
        optimizer = make(torch.optim.SGD(model.parameters(), lr=0.1), compiled)
        other = make(torch.optim.SGD(plain.parameters(), lr=0.1), plain)
        for step in range(3):
            optimizer.step(closure_for(compiled, optimizer, batch(step)))
            other.step(closure_for(plain, other, batch(step)))
        for left, right in zip(weights(model), weights(plain), strict=True):
            torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-5)
        assert int(model[1].num_batches_tracked) == 3
        torch.testing.assert_close(model[1].running_var, plain[1].running_var, rtol=1e-4, atol=1e-5)
