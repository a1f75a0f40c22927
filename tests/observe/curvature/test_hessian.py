"""Hessian and Gauss-Newton operators against closed forms and dense matrices."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tests.observe.curvature.networks import (
    CROSS_ENTROPY,
    KINDS,
    dense,
    dense_gauss_newton,
    dense_hessian,
    labels,
    network,
)
from trimtab.observe.curvature import GaussNewton, Hessian, Objective, on_nonzero, relative
from trimtab.parameters import Rule

CLOSE = {"rtol": 0.0, "atol": 1e-10}


class WrittenOut(nn.Module):
    """Batch normalization by the batch's own statistics, in elementary operations."""

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        super().__init__()
        self.weight, self.bias, self.eps = norm.weight, norm.bias, norm.eps

    def forward(self, inputs: Tensor) -> Tensor:
        centred = inputs - inputs.mean((0, 2, 3), keepdim=True)
        unit = centred / (centred.square().mean((0, 2, 3), keepdim=True) + self.eps).sqrt()
        return unit * self.weight[:, None, None] + self.bias[:, None, None]


def linear(features: int, classes: int) -> nn.Module:
    torch.manual_seed(0)
    return nn.Linear(features, classes, bias=False).double()


@pytest.mark.parametrize("matrix", [Hessian, GaussNewton])
def test_linear_regression(matrix: type[Hessian]) -> None:
    x, y = torch.randn(20, 4, dtype=torch.float64), torch.randn(20, 1, dtype=torch.float64)
    found = dense(matrix(Objective(linear(4, 1), nn.MSELoss(), (x, y))))
    torch.testing.assert_close(found, 2 * x.T @ x / 20, **CLOSE)


@pytest.mark.parametrize("matrix", [Hessian, GaussNewton])
def test_logistic_regression(matrix: type[Hessian]) -> None:
    net, x = linear(4, 1), torch.randn(20, 4, dtype=torch.float64)
    y = (torch.arange(20) % 2).double()[:, None]
    p = torch.sigmoid(x @ net.weight.detach().T)
    found = dense(matrix(Objective(net, nn.functional.binary_cross_entropy_with_logits, (x, y))))
    torch.testing.assert_close(found, x.T @ (p * (1 - p) * x) / 20, **CLOSE)


@pytest.mark.parametrize("matrix", [Hessian, GaussNewton])
def test_softmax_regression(matrix: type[Hessian]) -> None:
    net, x = linear(4, 3), torch.randn(20, 4, dtype=torch.float64)
    p = torch.softmax(x @ net.weight.detach().T, 1)
    middle = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    closed = torch.einsum("nab,ni,nj->aibj", middle, x, x).reshape(12, 12) / 20
    found = dense(matrix(Objective(net, CROSS_ENTROPY, (x, labels(20)))))
    torch.testing.assert_close(found, closed, **CLOSE)


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_against_the_dense_hessian(kind: str, keep: bool) -> None:
    net, inputs = network(kind)
    hessian = Hessian(Objective(net, CROSS_ENTROPY, (inputs, labels())), keep_graph=keep)
    found = dense(hessian)
    torch.testing.assert_close(found, dense_hessian(net.eval(), inputs, labels()), **CLOSE)
    assert hessian.products == hessian.size
    assert hessian.setting is not None
    assert hessian.setting.attention == ("math" if kind == "attention" else "none")


@pytest.mark.parametrize("kind", ["relu", "tanh", "batch norm", "tied"])
def test_against_the_dense_gauss_newton(kind: str) -> None:
    net, inputs = network(kind)
    found = dense(GaussNewton(Objective(net, CROSS_ENTROPY, (inputs, labels()))))
    expected = dense_gauss_newton(net.eval(), inputs, labels())
    torch.testing.assert_close(found, expected, **CLOSE)
    assert torch.linalg.eigvalsh(found)[0] > -1e-12
    if kind != "relu":
        assert (found - dense_hessian(net, inputs, labels())).abs().max() > 1e-3


def test_batch_statistics_are_another_function() -> None:
    net, inputs = network("batch norm")
    objective = Objective(net, CROSS_ENTROPY, (inputs, labels()), batch_norm="batch")
    before = [buffer.clone() for buffer in net.buffers()]
    found = dense(Hessian(objective))
    assert all(map(torch.equal, net.buffers(), before))
    net.eval()
    frozen = dense_hessian(net, inputs, labels())
    net[1] = WrittenOut(net[1])  # torch.func's own batch-statistics derivative by a bias before it is not symmetric
    torch.testing.assert_close(found, dense_hessian(net, inputs, labels()), **CLOSE)
    assert (found - frozen).abs().max() > 1e-3
    assert objective.setting().batch_norm == "batch"


@pytest.mark.parametrize("matrix", [Hessian, GaussNewton])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("keep", [True, False])
def test_unequal_batches_add_up_exactly(matrix: type[Hessian], reduction: str, keep: bool) -> None:
    net, inputs = network("tanh")
    loss = nn.CrossEntropyLoss(reduction=reduction)
    cuts = [(inputs[:5], labels()[:5]), (inputs[5:6], labels()[5:6]), (inputs[6:], labels()[6:])]
    whole = dense(matrix(Objective(net, loss, (inputs, labels()))))
    split = matrix(Objective(net, loss, cuts), keep_graph=keep)
    torch.testing.assert_close(dense(split), whole, **CLOSE)
    assert (split.setting.samples, split.setting.batches) == (12, 3)
    assert abs(whole).max() > 1e-3


def test_cross_entropy_counts_what_it_divides_by() -> None:
    net, inputs = network("tanh")
    target = labels().clone()
    target[[1, 7, 8]] = -100
    loss = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 5.0, 0.5], dtype=torch.float64))
    cuts = [(inputs[:4], target[:4]), (inputs[4:], target[4:])]
    whole = Hessian(Objective(net, loss, (inputs, target)))
    torch.testing.assert_close(dense(Hessian(Objective(net, loss, cuts))), dense(whole), **CLOSE)
    plain = Hessian(Objective(net, CROSS_ENTROPY, cuts))
    torch.testing.assert_close(dense(plain), dense(Hessian(Objective(net, CROSS_ENTROPY, (inputs, target)))), **CLOSE)
    assert plain.setting.samples == 9
    counted = Objective(net, lambda o, t: CROSS_ENTROPY(o, t), cuts, count=lambda t: (t != -100).sum())
    torch.testing.assert_close(dense(Hessian(counted)), dense(plain), **CLOSE)


def test_bfloat16_networks_are_computed_in_float32() -> None:
    net, inputs = network("tanh")
    rounded = net.to(torch.bfloat16)
    hessian = Hessian(Objective(rounded, CROSS_ENTROPY, (inputs.bfloat16(), labels())))
    found = dense(hessian)
    assert found.dtype == torch.float32
    assert hessian.setting.dtype == "float32"
    expected = dense_hessian(rounded.double(), inputs.bfloat16().double(), labels())
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-5)


def test_in_autocast_no_grad_and_inference_mode() -> None:
    net, inputs = network("tanh")
    net, inputs = net.float(), inputs.float()
    vector = torch.ones(sum(p.numel() for p in net.parameters()))
    plain = Hessian(Objective(net, CROSS_ENTROPY, (inputs, labels()))) @ vector
    for context in (torch.no_grad(), torch.inference_mode(), torch.autocast("cpu", torch.bfloat16)):
        with context:
            assert torch.equal(Hessian(Objective(net, CROSS_ENTROPY, (inputs, labels()))) @ vector, plain)


def test_rule_chooses_coordinates() -> None:
    net, inputs = network("tanh")
    net[0].weight.requires_grad_(False)
    hessian = Hessian(Objective(net, CROSS_ENTROPY, (inputs, labels()), rule=Rule(min_ndim=2)))
    expected = dense_hessian(net.eval(), inputs, labels())[36:54, 36:54]  # the second layer's weight
    torch.testing.assert_close(dense(hessian), expected, **CLOSE)


def test_the_operator_stays_while_training_goes_on() -> None:
    net, inputs = network("batch norm")
    hessian = Hessian(Objective(net, CROSS_ENTROPY, [(inputs, labels())]))
    vector = torch.ones(hessian.size, dtype=torch.float64)
    before = hessian @ vector
    with torch.no_grad():
        for tensor in (*net.parameters(), *net.buffers()):
            tensor.mul_(2)
    assert torch.equal(hessian @ vector, before)
    assert (Hessian(Objective(net, CROSS_ENTROPY, (inputs, labels()))) @ vector - before).abs().max() > 1e-3


def test_released_graphs_are_built_again() -> None:
    net, inputs = network("tanh")
    hessian = Hessian(Objective(net, CROSS_ENTROPY, (inputs, labels())))
    vector = torch.ones(hessian.size, dtype=torch.float64)
    before = hessian @ vector
    hessian.release()
    assert torch.equal(hessian @ vector, before)


def test_linear_loss_has_no_curvature() -> None:
    net = linear(3, 2)
    objective = Objective(net, lambda o, t: o.sum() + 0 * t.sum(), (torch.ones(4, 3), torch.zeros(4)))
    assert not dense(Hessian(objective)).any()
    assert not dense(GaussNewton(objective)).any()


def test_inputs_as_tuple_and_mapping() -> None:
    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 3).double()

        def forward(self, left: Tensor, right: Tensor) -> Tensor:
            return self.layer(left + right)

    net, x = Sum(), torch.randn(6, 3, dtype=torch.float64)
    plain = dense(Hessian(Objective(net.layer, CROSS_ENTROPY, (2 * x, labels(6)))))
    for inputs in ((x, x), {"left": x, "right": x}):
        torch.testing.assert_close(dense(Hessian(Objective(net, CROSS_ENTROPY, (inputs, labels(6))))), plain, **CLOSE)


def test_data_loader_and_parallel_wrapper() -> None:
    net, inputs = network("relu")
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(inputs, labels()), batch_size=5, shuffle=True)
    whole = dense(Hessian(Objective(net, CROSS_ENTROPY, (inputs, labels()))))
    for model in (net, nn.DataParallel(net)):
        torch.testing.assert_close(dense(Hessian(Objective(model, CROSS_ENTROPY, loader))), whole, **CLOSE)


def test_relative_coordinates_and_nonzero_weights() -> None:
    net, inputs = network("tanh")
    with torch.no_grad():
        net[0].weight[:3] = 0
    hessian = Hessian(Objective(net, CROSS_ENTROPY, (inputs, labels())))
    full, w = dense(hessian), hessian.weights
    torch.testing.assert_close(dense(relative(hessian)), w.abs()[:, None] * full * w.abs(), **CLOSE)
    mask = (w != 0).double()
    torch.testing.assert_close(dense(on_nonzero(hessian)), mask[:, None] * full * mask, **CLOSE)
    assert relative(hessian).setting.curvature == "hessian in relative coordinates"


def test_bad_inputs() -> None:
    net, inputs = network("tanh")
    good = (inputs, labels())
    with pytest.raises(ValueError, match=r"batch_norm must be one of .* got 'train'"):
        Objective(net, CROSS_ENTROPY, good, batch_norm="train")
    with pytest.raises(ValueError, match="no parameter of the model was chosen"):
        Objective(net, CROSS_ENTROPY, good, rule=Rule(include=("nothing",)))
    with pytest.raises(TypeError, match=r"can be read again and again .* got generator"):
        Objective(net, CROSS_ENTROPY, (pair for pair in [good]))
    with pytest.raises(ValueError, match=r"reduction must be one of 'mean', 'sum', got 'none'"):
        Objective(net, nn.CrossEntropyLoss(reduction="none"), good)
    with pytest.raises(ValueError, match="dtype must be"):
        Objective(net, CROSS_ENTROPY, good, dtype=torch.bfloat16)
    with pytest.raises(ValueError, match="batches is empty"):
        Objective(net, CROSS_ENTROPY, []).loss()
    with pytest.raises(TypeError, match="batch 0 must be a pair"):
        Objective(net, CROSS_ENTROPY, [inputs]).loss()
    with pytest.raises(TypeError, match=r"loss must return a scalar tensor, got \(12, 3\)"):
        Objective(net, lambda o, t: o, good).loss()
    with pytest.raises(ValueError, match="the loss is nan on batch 1"):
        Objective(net, CROSS_ENTROPY, [good, (inputs * float("nan"), labels())]).loss()
    with pytest.raises(ValueError, match="vector of shape"):
        Hessian(Objective(net, CROSS_ENTROPY, good)) @ torch.ones(3)
    with pytest.raises(ValueError, match="SyncBatchNorm"):
        Objective(nn.Sequential(net, nn.SyncBatchNorm(3)), CROSS_ENTROPY, good, batch_norm="batch")
    tuples = nn.Identity()
    tuples.layer, tuples.forward = nn.Linear(5, 3).double(), lambda x: (tuples.layer(x), 0)
    with pytest.raises(TypeError, match="returns one tensor, got tuple"):
        GaussNewton(Objective(tuples, lambda o, t: o[0].sum(), good)) @ torch.ones(18)
