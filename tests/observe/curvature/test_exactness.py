"""Operators are symmetric or refused; a rounded backward pass is named with its way out; one function, one attention."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

import trimtab
from tests.observe.curvature.networks import CROSS_ENTROPY, dense, labels, network
from trimtab.observe.curvature import GaussNewton, Hessian, Objective, SymmetricOperator, sharpness, trace
from trimtab.precision import LowPrecision, StraightThrough, full_precision

ROUNDED = "the backward pass is rounded"


def rounded(net: nn.Module, *, backward: str | None = "e5m2") -> LowPrecision:
    lever = LowPrecision(activations=("e4m3", backward))
    trimtab.attach(torch.optim.SGD(net.parameters(), lr=0.1), lever, model=net)
    return lever


@pytest.mark.parametrize("matrix", [Hessian, GaussNewton])
def test_a_rounded_backward_pass_is_refused_and_exact_in_full_precision(matrix: type[Hessian]) -> None:
    net, inputs = network("tanh")
    true = dense(matrix(Objective(net, CROSS_ENTROPY, (inputs, labels()))))
    lever = rounded(net)
    operator = matrix(Objective(net, CROSS_ENTROPY, (inputs, labels())))
    with pytest.raises(ValueError, match=rf"{ROUNDED} \(LowPrecision, at 2\).*with lever\.full_precision\(\)"):
        trace(operator, 9)
    with lever.full_precision():
        first = operator @ torch.ones(operator.size, dtype=torch.float64)
    assert torch.equal(
        first, operator @ torch.ones(operator.size, dtype=torch.float64)
    )  # the graph built inside stays exact
    torch.testing.assert_close(dense(operator), true, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("as_weight", [False, True])
def test_straight_through_modules_are_named_and_turned_off(as_weight: bool) -> None:
    net, inputs = network("tanh")
    true = dense(Hessian(Objective(net, CROSS_ENTROPY, (inputs, labels()))))
    if as_weight:
        parametrize.register_parametrization(net[2], "weight", StraightThrough("e4m3", "e5m2"))
        net.train()
    else:
        net.insert(3, StraightThrough("e4m3", "e5m2"))
    objective = Objective(net, CROSS_ENTROPY, (inputs, labels()))
    with pytest.raises(
        ValueError, match=rf"{ROUNDED} \(StraightThrough, to e5m2\).*precision\.full_precision\(model\)"
    ):
        _ = Hessian(objective) @ torch.ones(objective.size)
    with full_precision(net), full_precision(net):
        found = dense(Hessian(objective))  # with a parametrisation the coordinates come in another order
    assert float(found.trace()) == pytest.approx(float(true.trace()), rel=1e-12)
    assert not any(module.full for module in net.modules() if isinstance(module, StraightThrough))


def test_rounding_the_forward_pass_alone_is_symmetric() -> None:
    net, inputs = network("tanh")
    rounded(net, backward=None)
    matrix = dense(Hessian(Objective(net, CROSS_ENTROPY, (inputs, labels()))))
    torch.testing.assert_close(matrix, matrix.T, rtol=1e-10, atol=1e-12)


class Plain(SymmetricOperator):
    """Any matrix, in the belief that it is symmetric."""

    def __init__(self, matrix: Tensor) -> None:
        super().__init__(len(matrix), matrix.dtype, matrix.device)
        self.matrix = matrix
        self.taken = 0

    def _product(self, vector: Tensor) -> Tensor:
        self.taken += 1
        return self.matrix @ vector


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [2, 30, 400])
def test_every_operator_is_checked_for_symmetry(size: int, dtype: torch.dtype) -> None:
    torch.manual_seed(size)
    drawn = torch.randn(size, size, dtype=dtype)
    symmetric, turning = drawn + drawn.T, drawn - drawn.T
    good = Plain(symmetric)
    assert torch.equal(torch.stack([good @ v for v in torch.eye(size, dtype=dtype)]), symmetric)
    assert (good.products, good.taken) == (size, size + 1)
    share = 0.2 * torch.linalg.matrix_norm(symmetric) / torch.linalg.matrix_norm(turning)
    for wrong in (drawn, symmetric + share * turning):
        with pytest.raises(ValueError, match=r"not symmetric.*no random augmentation.*backward pass exact"):
            trace(Plain(wrong), 3, "hutchinson")


def test_low_rank_and_zero_operators_pass() -> None:
    torch.manual_seed(0)
    one = torch.randn(500)
    for matrix in (torch.zeros(500, 500), torch.outer(one, one) / 500):
        assert trace(Plain(matrix), 12).value == pytest.approx(float(matrix.trace()), rel=1e-5)
        found = trimtab.observe.curvature.top_eigenvalues(Plain(matrix), 1, max_products=20)
        assert found.values[0] == pytest.approx(float(matrix.trace()), rel=1e-5)


def test_a_hidden_rounding_is_found_by_the_check() -> None:
    class Halved(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, *gradients: Tensor) -> Tensor:
            return gradients[0] + (gradients[0].bfloat16().to(gradients[0]) * 8).sin() / 50

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(5, 6), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.second(Halved.apply(torch.tanh(self.first(x))))  # type: ignore[no-untyped-call]
            return out

    torch.manual_seed(0)
    objective = Objective(Net(), CROSS_ENTROPY, (torch.randn(12, 5), labels()))
    with pytest.raises(ValueError, match="not symmetric"):
        trace(Hessian(objective), 9)


class Padded(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.body, self.head = nn.TransformerEncoder(layer, 2), nn.Linear(8, 2)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        out: Tensor = self.head(self.body(x, src_key_padding_mask=mask).mean(1))
        return out


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_the_encoders_fast_path_is_off_inside_alone() -> None:
    torch.manual_seed(0)
    net, mask = Padded(), torch.zeros(6, 5, dtype=torch.bool)
    mask[1:, 3:] = True
    objective = Objective(net, CROSS_ENTROPY, ((torch.randn(6, 5, 8), mask), torch.randint(0, 2, (6,))))
    value, gradient = objective.gradient()
    assert objective.loss() == pytest.approx(value, rel=1e-6)
    assert sharpness(objective, rho=1e-2).value == pytest.approx(1e-2 * gradient.norm().item(), rel=0.02)
    assert torch.backends.mha.get_fastpath_enabled()
