"""Fira: the sheet's numbers with a refresh, a peer, memory, the randomized projection."""

from __future__ import annotations

import copy
import io
import math
from typing import Any

import pytest
import pytorch_optimizer as peers
import torch
from torch import Tensor, nn

from trimtab.optimizers import Fira, fira_groups
from trimtab.tensors.low_rank import leading_vectors


def wave(shape: tuple[int, ...], seed: int) -> Tensor:
    k = torch.arange(math.prod(shape), dtype=torch.float64)
    return ((1.3 * k + 0.7 * seed).sin() + 0.5 * (0.37 * k * k + seed).cos()).reshape(shape)


UNLIMITED = [
    [0.9038189075, 1.016551325, -0.5314291606, -1.178943697], [0.008292412895, 0.438936919, 0.7328000388, 0.1429576319],
    [-0.5465746928, 0.2667547434, 1.383549855, 0.565221846], [-0.8673509161, -0.5657492572, -0.135286577, 0.5478785356],
    [0.5432935114, -0.4878288691, -0.8310384291, -0.1897255903], [0.8755163754, 0.6392175696, -1.114545111, -0.9162781933],
]  # fmt: skip
PACKAGE = [
    [0.9042920407, 1.015267248, -0.5329901871, -1.178318157],
    [0.009746966785, 0.4395349437, 0.7308061979, 0.1407174168],
    [-0.5462927892, 0.2682792265, 1.382845073, 0.5628049709],
    [-0.8675824698, -0.5652047694, -0.1327111451, 0.5479760946],
    [0.5414529111, -0.4885526953, -0.8300184013, -0.1881191994],
    [0.8764388706, 0.6365778775, -1.114381024, -0.9154627554],
]
TRUE = [
    [0.9118004545, 1.008142449, -0.5467789271, -1.178578267],
    [0.02445869884, 0.4516588769, 0.7160116059, 0.1238572213],
    [-0.54196633, 0.2842016499, 1.38322838, 0.5499236837],
    [-0.8793286329, -0.5602343777, -0.1121085198, 0.5525134597],
    [0.5301434321, -0.5026020852, -0.8219813319, -0.1732822731],
    [0.8818696108, 0.6255384367, -1.12359052, -0.9127723407],
]


def gradients(turned: bool = False) -> list[Tensor]:
    found = [wave((6, 4), seed) * (1 + 0.5 * seed) for seed in range(2, 6)]
    return [one.T.contiguous() for one in found] if turned else found


def after(weight: nn.Parameter, optimizer: Any, each: list[Tensor]) -> Tensor:
    for gradient in each:
        weight.grad = gradient.clone()
        optimizer.step()
    return weight.detach()


def test_without_the_limiter_four_steps_equal_the_sheets_numbers() -> None:
    """A growth that no step reaches limits nothing: what sets the limiter apart from the rest of the formula."""
    weight = nn.Parameter(wave((6, 4), 1))
    found = after(weight, Fira([weight], lr=0.01, rank=2, update_gap=2, max_growth=1e9), gradients())
    torch.testing.assert_close(found, torch.tensor(UNLIMITED, dtype=torch.float64), rtol=1e-8, atol=1e-9)
    assert float((found - torch.tensor(PACKAGE, dtype=torch.float64)).abs().max()) > 1e-3


@pytest.mark.parametrize("turned", [False, True], ids=["tall", "wide"])
@pytest.mark.parametrize("residual", ["package", "true"])
def test_four_steps_with_a_refresh_equal_the_sheets_numbers(residual: Any, turned: bool) -> None:
    start = wave((6, 4), 1)
    weight = nn.Parameter(start.T.contiguous() if turned else start)
    found = after(weight, Fira([weight], lr=0.01, rank=2, update_gap=2, residual=residual), gradients(turned))
    expected = torch.tensor(PACKAGE if residual == "package" else TRUE, dtype=torch.float64)
    torch.testing.assert_close(found.T if turned else found, expected, rtol=1e-8, atol=1e-8)


def test_without_a_refresh_it_is_a_peers() -> None:
    weights = [nn.Parameter(wave((6, 4), 1).float()) for _ in range(2)]
    own = after(weights[0], Fira([weights[0]], lr=0.01, rank=2), [one.float() for one in gradients()])
    group = {"params": [weights[1]], "rank": 2, "update_proj_gap": 200, "scale": 0.25, "projection_type": "std"}
    peer = peers.load_optimizer("fira")([group], lr=0.01, eps=1e-6, weight_decay=0.0)
    torch.testing.assert_close(own, after(weights[1], peer, [one.float() for one in gradients()]), rtol=1e-5, atol=1e-6)


def test_the_rest_of_the_gradient_is_used() -> None:
    """Without S the step has the rank of the projection."""
    weight = nn.Parameter(torch.zeros(6, 5, dtype=torch.float64))
    step = after(weight, Fira([weight], lr=0.01, rank=2), [wave((6, 5), 2)])
    assert int(torch.linalg.matrix_rank(step)) == 5


def test_what_is_not_projected_takes_adams_step() -> None:
    weights = [nn.Parameter(wave((6, 4), 1)) for _ in range(2)]
    own = after(weights[0], Fira([weights[0]], lr=0.01, rank=None, eps=1e-12), gradients())
    adam = after(weights[1], torch.optim.Adam([weights[1]], lr=0.01, eps=1e-12), gradients())
    torch.testing.assert_close(own, adam, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("right", [True, False])
def test_randomized_vectors_span_the_same_space(right: bool) -> None:
    left, _ = torch.linalg.qr(wave((40, 40), 1))
    rows, _ = torch.linalg.qr(wave((60, 60), 2))
    matrix = left @ torch.diag(0.7 ** torch.arange(40.0, dtype=torch.float64)) @ rows[:40]
    exact, random = (leading_vectors(matrix, 6, right=right, seed=seed) for seed in (None, 3))
    both = [one.mT @ one if right else one @ one.mT for one in (exact, random)]
    assert float((both[0] - both[1]).norm()) < 1e-3
    assert torch.equal(random, leading_vectors(matrix, 6, right=right, seed=3))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_resumes_bit_for_bit_with_its_limiter(dtype: torch.dtype) -> None:
    start, each = wave((6, 4), 1).to(dtype), [one.to(dtype) for one in gradients()]
    weight = nn.Parameter(start.clone())
    optimizer = Fira([weight], lr=0.01, rank=2, update_gap=3, projection="randomized")
    after(weight, optimizer, each[:2])
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    again = nn.Parameter(weight.detach().clone())
    resumed = Fira([again], lr=0.01, rank=2, update_gap=3, projection="randomized")
    file.seek(0)
    resumed.load_state_dict(copy.deepcopy(torch.load(file, weights_only=True)))
    assert torch.equal(after(weight, optimizer, each[2:]), after(again, resumed, each[2:]))


def test_its_memory_is_of_low_rank_and_said() -> None:
    weight = nn.Parameter(torch.zeros(100, 80))
    optimizer = Fira([weight], rank=8)
    after(weight, optimizer, [torch.randn(100, 80)])
    here, adam = optimizer.state_bytes()
    assert (here, adam) == (4 * (2 * 100 * 8 + 8 * 80 + 1), 8 * 100 * 80)
    assert f"states: {here:,} bytes, Adam's: {adam:,}" in repr(optimizer)


def test_groups_leave_heads_and_tables_to_adam() -> None:
    net = nn.ModuleDict({"table": nn.Embedding(50, 16), "up": nn.Linear(16, 24), "head": nn.Linear(24, 50)})
    groups = fira_groups(net, 4)
    assert [(group["rank"], len(group["params"])) for group in groups] == [(4, 1), (None, 4)]
    assert groups[0]["params"][0][0] == "up.weight"
    with pytest.raises(ValueError, match="both sides above rank=64"):
        fira_groups(net, 64)


def test_a_gradient_that_is_not_finite_gives_no_projection() -> None:
    weight = nn.Parameter(torch.zeros(6, 4))
    weight.grad = torch.full((6, 4), torch.nan)
    with pytest.raises(FloatingPointError, match=r"shape \(6, 4\) holds inf or NaN at step 1"):
        Fira([weight], rank=2).step()


def test_a_refused_step_has_moved_nothing() -> None:
    good, bad = nn.Parameter(torch.zeros(6, 4)), nn.Parameter(torch.zeros(6, 4))
    optimizer = Fira([{"params": [good]}, {"params": [bad]}], rank=2)
    good.grad, bad.grad = torch.randn(6, 4), torch.full((6, 4), torch.inf)
    with pytest.raises(FloatingPointError, match="at step 1"):
        optimizer.step()
    assert not good.any()
    bad.grad = torch.randn(6, 4)
    optimizer.step()
    assert [int(optimizer.state[one]["step"]) for one in (good, bad)] == [1, 1]
    assert bool(good.any())
