"""Which way a weight lies, for scales by channel and for the layers whose outputs are rounded."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import trimtab
from tests.parameters.test_layouts import MixedExperts, OfTransformers, Unknown
from trimtab.parameters import Rule
from trimtab.precision import LowPrecision, PerChannel, quantize


def by_hand(weight: Tensor, over: tuple[int, ...]) -> Tensor:
    """e2m1 with one scale for each index of the dimensions not in `over`."""
    scale = weight.abs().amax(over, keepdim=True) / 6
    return quantize(weight / scale, "e2m1") * scale


@pytest.mark.parametrize("kind", ["weights", "gradients", "momentum"])
def test_a_scale_for_each_output_channel_of_the_owner(kind: str) -> None:
    torch.manual_seed(0)
    net = nn.ModuleList(
        [OfTransformers(8, 6), nn.ConvTranspose1d(4, 6, 3), nn.Linear(5, 4), MixedExperts(True), Unknown()]
    )
    over = {
        "0.weight": (0,), "1.weight": (0, 2), "2.weight": (1,), "3.gate_up_proj": (1,), "3.down_proj": (1,),
        "4.linear.weight": (1,),
    }  # fmt: skip
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if name in over:
                parameter.mul_(torch.logspace(-2, 2, parameter.shape[-1]))
    dense = {name: parameter.detach().clone() for name, parameter in net.named_parameters()}
    optimizer = torch.optim.SGD(net.parameters(), lr=0.0, momentum=0.9)
    for parameter in net.parameters():
        parameter.grad = parameter.detach().clone()
    lever = LowPrecision(**{kind: "e2m1"}, scaling=PerChannel(), master=False)  # type: ignore[arg-type]
    trimtab.attach(optimizer, lever, model=net)
    optimizer.step()
    for name, parameter in net.named_parameters():
        held = {
            "weights": parameter,
            "gradients": parameter.grad,
            "momentum": optimizer.state[parameter]["momentum_buffer"],
        }[kind]
        assert held is not None
        if name in over:
            torch.testing.assert_close(held.detach(), by_hand(dense[name], over[name]), msg=name)
        elif name.endswith("A_log"):
            assert torch.equal(held, dense[name])
    assert "outputs is not known" in {entry.name: reason for entry, reason in lever.left_out}["4.A_log"]


def test_dimensions_of_a_tensor_by_itself() -> None:
    x = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0))
    assert torch.equal(quantize(x, "e2m1", scaling=PerChannel()), quantize(x, "e2m1", scaling=PerChannel(dim=0)))
    for dims, over in (((0, 2), (1,)), ((2, 0), (1,)), ((1,), (0, 2)), ((), (0, 1, 2))):
        torch.testing.assert_close(quantize(x, "e2m1", scaling=PerChannel(dim=dims)), by_hand(x, over))
        moved = x.movedim(0, -1).contiguous().movedim(-1, 0)
        torch.testing.assert_close(quantize(moved, "e2m1", scaling=PerChannel(dim=dims)), by_hand(x, over))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.head = OfTransformers(8, 6), OfTransformers(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.two(self.one(x)))


def test_activations_of_conv1d_are_rounded() -> None:
    torch.manual_seed(0)
    net, x = Block(), torch.randn(4, 8)
    expected = quantize(net.one(x), "e2m1")
    expected = quantize(net.two(expected), "e2m1")
    expected = quantize(net.head(expected), "e2m1")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trimtab.attach(torch.optim.SGD(net.parameters()), LowPrecision(activations="e2m1"), model=net)
    assert torch.equal(net(x), expected)


def test_activations_behind_a_parametrization_are_rounded() -> None:
    net = parametrizations.weight_norm(nn.Linear(8, 3))
    x = torch.randn(4, 8)
    expected = quantize(net(x), "e2m1")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trimtab.attach(torch.optim.SGD(net.parameters()), LowPrecision(activations="e2m1"), model=net)
    assert torch.equal(net(x), expected)


def test_products_that_are_not_known_are_named_once() -> None:
    net = nn.ModuleDict(
        {
            "attention": nn.MultiheadAttention(4, 2),
            "cell": nn.GRUCell(4, 4),
            "experts": MixedExperts(False),
            "own": Unknown(),
            "embedding": nn.Embedding(4, 4),
            "norm": nn.LayerNorm((3, 4)),
        }
    )
    with pytest.warns(UserWarning, match="products with weights elsewhere are not") as caught:
        trimtab.attach(torch.optim.SGD(net.parameters()), LowPrecision(activations="e4m3"), model=net)
    (warning,) = caught
    text = str(warning.message)
    for named in (
        "attention (MultiheadAttention: in_proj_weight)",
        "attention.out_proj (NonDynamicallyQuantizableLinear: weight)",
        "cell (GRUCell: weight_ih, weight_hh)",
        "experts (MixedExperts: gate_up_proj, down_proj)",
        "own (Unknown: A_log)",
    ):
        assert named in text
    assert "embedding" not in text
    assert "norm" not in text
    assert "logit_scale" not in text
    rule = Rule(include=("attention.*",))
    with pytest.raises(ValueError, match="picks the weight of none"):
        trimtab.attach(torch.optim.SGD(net.parameters()), LowPrecision(activations="e4m3", rule=rule), model=net)
