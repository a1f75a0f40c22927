"""What CrAM compresses, how it draws, and its N:M form."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.optimizers.nets import batch, closure_for, mlp, same, train, weights
from trimtab.optimizers import CrAM


def seen_in_second_pass(model: nn.Module, optimizer: CrAM, steps: int = 1) -> list[list[Tensor]]:
    """The weights that the second forward pass of each step ran on."""
    seen: list[list[Tensor]] = []

    def watch(*_: Any) -> None:
        seen.append(weights(model))

    handle = model.register_forward_pre_hook(watch)
    train(model, optimizer, steps)
    handle.remove()
    return seen[1::2]


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1)


@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.95])
def test_exactly_k_weights_go_over_all_layers_together(sparsity: float) -> None:
    model = mlp()
    (compressed,) = seen_in_second_pass(model, CrAM(sgd(model), 0.2, (sparsity,)))
    zeros = [int((one == 0).sum()) for one in compressed]
    assert zeros[0] + zeros[2] == int(sparsity * (128 + 64) + 0.5)
    assert zeros[1] == zeros[3] == 0  # biases stay
    if sparsity == 0.3:
        kept = torch.cat([one[one != 0].abs().flatten() for one in (compressed[0], compressed[2])])
        assert zeros[0] / 128 != zeros[2] / 64
        assert len(kept) == 192 - 58


def test_all_equal_weights_lose_exactly_half() -> None:
    model = mlp()
    nn.init.ones_(model[0].weight)
    nn.init.ones_(model[2].weight)
    (compressed,) = seen_in_second_pass(model, CrAM(sgd(model), 0.0, (0.5,)))
    assert sum(int((one == 0).sum()) for one in (compressed[0], compressed[2])) == 96
    assert int((compressed[0] == 0).sum()) == 96  # ties by position


def test_each_sparsity_is_drawn_and_the_seed_decides() -> None:
    def drawn(seed: int | torch.Generator) -> list[int]:
        model = mlp()
        optimizer = CrAM(sgd(model), 0.2, (0.25, 0.5, 0.75), seed=seed)
        return [sum(int((one == 0).sum()) for one in step) for step in seen_in_second_pass(model, optimizer, 30)]

    first = drawn(0)
    assert set(first) == {48, 96, 144}
    assert drawn(0) == first
    assert drawn(torch.Generator().manual_seed(0)) == first
    assert drawn(1) != first


def test_trained_weights_without_gradient_take_part_and_come_back() -> None:
    model = mlp()
    unused = nn.Parameter(torch.full((4, 48), 1e-6))
    optimizer = CrAM(torch.optim.SGD([*model.parameters(), unused], lr=0.1), 0.2, (0.5,))
    states: list[Tensor] = []
    model.register_forward_pre_hook(lambda *_: states.append(unused.detach().clone()))
    optimizer.step(closure_for(model, optimizer, batch()))
    assert int((states[1] == 0).sum()) == 192  # half of 384: the tiny ones
    assert torch.equal(unused, torch.full((4, 48), 1e-6))


@pytest.mark.parametrize(("pattern", "allowed"), [("2:4", {(2, 4)}), (("2:4", "4:8"), {(2, 4), (4, 8)})])
def test_patterns_along_the_input_axis(pattern: Any, allowed: set[tuple[int, int]]) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Unflatten(1, (8, 1, 1)),
        nn.Conv2d(8, 16, 1),
        nn.ConvTranspose2d(16, 6, 1),  # input axis 0
        nn.Flatten(),
        nn.Linear(6, 4),  # 6 is no multiple of 4: stays dense
    )
    optimizer = CrAM(sgd(model), 0.2, (0.5,), pattern=pattern, model=model)
    found = set()
    for convolution, _, transposed, _, linear, _ in seen_in_second_pass(model, optimizer, 12):
        assert int((linear == 0).sum()) == 0
        for rows in (convolution.flatten(1), transposed.flatten(1).T):
            assert int((rows == 0).sum()) * 2 == rows.numel()
            assert bool(((rows.reshape(-1, 8) == 0).sum(1) == 4).all())
        in_fours = bool(((convolution.reshape(-1, 4) == 0).sum(1) == 2).all())
        found.add((2, 4) if in_fours else (4, 8))
    assert found == allowed


def test_numbers_of_numpy() -> None:
    model, other = mlp(), mlp()
    one = CrAM(sgd(model), np.float32(0.25), np.array([0.5, 0.75], dtype=np.float32))
    assert one.sparsities == (0.5, 0.75)
    assert all(type(value) is float for value in (*one.sparsities, one.rho))
    train(model, one, 3)
    train(other, CrAM(sgd(other), 0.25, (0.5, 0.75)), 3)
    assert same(weights(model), weights(other))


def test_bad_input() -> None:
    model = mlp()
    for sparsities in ((1.0,), (-0.1,), (0.5, float("nan")), (np.float32(1),)):
        with pytest.raises(ValueError, match=rf"sparsities\[{len(sparsities) - 1}\] must lie in \[0, 1\)"):
            CrAM(sgd(model), 0.2, sparsities)
    for sparsities in ((False,), (0.5, True), ("0.5",)):
        with pytest.raises(TypeError, match=rf"sparsities\[{len(sparsities) - 1}\] must be a number"):
            CrAM(sgd(model), 0.2, sparsities)
    for rho in (float("inf"), np.float32(-1)):
        with pytest.raises(ValueError, match="rho must be finite and 0 or more"):
            CrAM(sgd(model), rho, (0.5,))
    for rho in (True, "0.2"):
        with pytest.raises(TypeError, match="rho must be a number"):
            CrAM(sgd(model), rho, (0.5,))
    with pytest.raises(ValueError, match="at least one"):
        CrAM(sgd(model), 0.2, ())
    for pattern in ("4:2", "2-4", ("2:4", "half"), "0:4"):
        with pytest.raises(ValueError, match="N:M"):
            CrAM(sgd(model), 0.2, (0.5,), pattern=pattern)
    with pytest.raises(ValueError, match="empty"):
        CrAM(sgd(model), 0.2, (0.5,), pattern=())
    optimizer = CrAM(sgd(model), 0.2, (0.5,), pattern="3:7")
    with pytest.raises(ValueError, match="fits no weight"):
        train(model, optimizer, 1)
    scale = nn.Parameter(torch.ones(3))
    optimizer = CrAM(torch.optim.SGD([scale], lr=0.1), 0.2, (0.5,))

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = scale.sum()
        loss.backward()
        return loss

    with pytest.raises(ValueError, match="nothing to compress"):
        optimizer.step(closure)
    assert torch.equal(scale, torch.ones(3))
