"""Float8, complex, lazy, meta and quantised tensors: one clear error, or left out with the reason."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

import trimtab
from trimtab.deploy import save_sparse, to_sparse_linear
from trimtab.observe import summary
from trimtab.observe.curvature import Objective
from trimtab.optimizers import ASAM, SAM, CrAM
from trimtab.parameters import select
from trimtab.pruning import one_shot, sweep


class Beside(nn.Module):
    """A Linear beside a weight of another kind."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.lin = nn.Linear(8, 8)
        trained = dtype.is_complex
        self.other = nn.Parameter(torch.randn(8, 8).to(dtype), requires_grad=trained)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.lin(x) * self.other.abs().square()
        return out.sum()


@pytest.mark.parametrize(
    ("dtype", "reason"),
    [
        (torch.float8_e4m3fn, "dtype torch.float8_e4m3fn is for storage: PyTorch does not compute with it"),
        (torch.float8_e5m2, "dtype torch.float8_e5m2 is for storage: PyTorch does not compute with it"),
        (torch.complex64, "dtype torch.complex64 is not a real floating-point type"),
        (torch.int8, "dtype torch.int8 is not a real floating-point type"),
    ],
)
def test_other_dtypes_are_left_out_by_name(dtype: torch.dtype, reason: str) -> None:
    net = Beside(dtype)
    before = net.other.detach().clone()
    pruned = one_shot(net, 0.5)
    assert {entry.name: why for entry, why in pruned.left_out}["other"] == reason
    assert (pruned.count, pruned.prunable) == (32, 64)
    assert torch.equal(net.other.detach().view(torch.uint8), before.view(torch.uint8))
    assert [pruned.prunable for pruned in sweep(net, (0.5,))] == [64]


@pytest.mark.parametrize("wrapper", [SAM, ASAM, CrAM])
def test_perturbing_optimizers_refuse_complex_weights_at_once(wrapper: Any) -> None:
    net = Beside(torch.complex64)
    options = {"rho": 0.1, "sparsities": (0.5,)} if wrapper is CrAM else {}
    base = torch.optim.SGD(net.parameters(), lr=0.1)
    with pytest.raises(
        TypeError, match=r"perturbs real .* parameter 0 of group 0, shape \(8, 8\): dtype torch.complex64"
    ):
        wrapper(base, model=net, **options)
    real = wrapper(torch.optim.SGD(net.lin.parameters(), lr=0.1), model=net, **options)
    with pytest.raises(TypeError, match="parameter 0 of group 1"):
        real.add_param_group({"params": [net.other]})


def test_lazy_weights_ask_for_a_forward_pass_and_work_after_it() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.LazyLinear(3))
    with pytest.raises(ValueError, match=r"1\.weight is lazy and has no shape yet: run the model once"):
        one_shot(net, 0.5)
    optimizer = torch.optim.SGD(net.parameters(), lr=1.0)
    trimtab.attach(optimizer, trimtab.penalties.L1(0.25), model=net)
    net(torch.zeros(2, 4)).mul(0.0).sum().backward()
    lazy = net[1].weight
    before = lazy.detach().clone()
    optimizer.step()
    torch.testing.assert_close(lazy.detach(), before - 0.25 * before.sign())
    assert one_shot(net, 0.5).prunable == 28


def test_axes_of_lazy_weights_are_known_after_the_forward_pass() -> None:
    net = nn.Sequential(nn.LazyLinear(3))
    optimizer = torch.optim.SGD(net.parameters(), lr=1.0)
    trimtab.attach(optimizer, trimtab.gradients.Centralize(), model=net)
    inputs, pull = torch.randn(5, 4), torch.randn(5, 3)
    (net(inputs) * pull).sum().backward()
    before, gradient = net[0].weight.detach().clone(), pull.T @ inputs
    optimizer.step()
    torch.testing.assert_close(before - net[0].weight.detach(), gradient - gradient.mean(1, keepdim=True))


def test_meta_weights_have_no_values() -> None:
    net = nn.Linear(8, 8, device="meta")
    with pytest.raises(ValueError, match="weight is on the meta device and has no values: load the weights"):
        one_shot(net, 0.5)
    with pytest.raises(ValueError, match="weight is on the meta device"):
        sweep(net, (0.5,))
    assert [entry.name for entry in select(net).chosen] == ["weight"], "names and shapes can be asked for"


def test_quantised_layers_are_named() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        net = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4))
        half = torch.ao.quantization.quantize_dynamic(net, {"0"}, dtype=torch.qint8)
        whole = torch.ao.quantization.quantize_dynamic(net, {nn.Linear}, dtype=torch.qint8)
    pruned = one_shot(half, 0.5)
    reason = "quantised: packed, no parameter; prune before quantising"
    assert (pruned.prunable, pruned.left_out[-1][0].name, pruned.left_out[-1][1]) == (64, "0.weight", reason)
    with pytest.raises(ValueError, match=r"nothing to prune \(0.weight: quantised: .*; 2.weight: quantised"):
        one_shot(whole, 0.5)


@pytest.fixture
def quantised() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        net = nn.Sequential(nn.Linear(16, 4), nn.Linear(4, 4))
        return cast("nn.Module", torch.ao.quantization.quantize_dynamic(net, {"1"}, dtype=torch.qint8))


def test_other_doors_name_quantised_layers(quantised: nn.Module, tmp_path: Path) -> None:
    found = summary(quantised, input_shape=(1, 16))
    assert (found.parameters, found.uncounted) == (68, ("1.weight (quantised, packed)",))
    _, report = to_sparse_linear(quantised, torch.ones(1, 16), budget=0.001)
    assert {row.name: row.verdict for row in report.rows}["1"].startswith("left: quantised: packed, no parameter")
    with pytest.raises(TypeError, match=r"1\.weight is of a quantised layer, which packs it; save the model before"):
        save_sparse(quantised, tmp_path / "f")
    assert not list(tmp_path.iterdir())


def test_other_doors_need_a_shape_and_values(tmp_path: Path) -> None:
    for call in (
        lambda net: summary(net, input_shape=(1, 8)),
        lambda net: to_sparse_linear(net, torch.ones(1, 8)),
        lambda net: save_sparse(net, tmp_path / "f"),
        lambda net: Objective(net, nn.functional.mse_loss, (torch.ones(1, 8), torch.ones(1, 3))),
    ):
        lazy = nn.Sequential(nn.LazyLinear(3))
        with pytest.raises(ValueError, match=r"0\.weight is lazy and has no shape yet"):
            call(lazy)
        assert type(lazy[0]) is nn.LazyLinear, "nothing was made in passing"
        with pytest.raises(ValueError, match=r"0\.weight is .*meta"):
            call(nn.Sequential(nn.Linear(8, 3, device="meta")))


def test_the_zeros_of_float8_are_counted() -> None:
    net = nn.Linear(4, 1, bias=False)
    net.weight = nn.Parameter(torch.tensor([[0.0, -0.0, 1.0, 2.0]]).to(torch.float8_e4m3fn), requires_grad=False)
    assert summary(net).nonzeros == 2


def test_what_was_left_out_prints_without_its_numbers() -> None:
    pruned = one_shot(Beside(torch.complex64), 0.5)
    assert repr(pruned.left_out[0][0]) == "Entry('other', complex64 (8, 8))"
    assert len(repr(pruned.left_out)) < 300
    assert len(repr(select(nn.Linear(1000, 1000)))) < 300
    assert "no shape yet" in repr(trimtab.parameters.entries(nn.LazyLinear(3))[0])
