"""muP: the sheet's factors, what grows, and logits that do not move more for being wider."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from trimtab.optimizers import mup_groups, mup_scale_
from trimtab.optimizers.mup import Width


def network(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 3))


# (initial deviation, learning rate, multiplier) at four times the width
EXPECTED = {
    "input": (Width(1, 4), (1.0, 4.0, 1.0), (1.0, 1.0, 1.0)),
    "hidden": (Width(4, 4), (0.5, 1.0, 1.0), (0.5, 0.25, 1.0)),
    "output": (Width(4, 1), (1.0, 4.0, 0.25), (1.0, 1.0, 0.25)),
}


@pytest.mark.parametrize("role", EXPECTED)
def test_the_sheets_factors(role: str) -> None:
    width, sgd, adam = EXPECTED[role]
    multiplier = 1 / width.inputs if role == "output" else 1.0
    assert width.role == role
    assert (width.deviation, width.rate("sgd"), multiplier) == sgd
    assert (width.deviation, width.rate("adam"), multiplier) == adam


@pytest.mark.parametrize("kind", ["adam", "sgd"])
def test_groups_hold_every_parameter_once_at_its_rate(kind: str) -> None:
    groups = mup_groups(network(32), network(8), 0.1, kind)  # type: ignore[arg-type]
    found = {name: group["lr"] for group in groups for name, _ in group["params"]}
    wide = 0.4 if kind == "sgd" else 0.1
    hidden = 0.1 if kind == "sgd" else 0.025
    expected = {"0.weight": wide, "0.bias": wide, "2.weight": hidden, "2.bias": wide, "4.weight": wide, "4.bias": 0.1}
    assert found == pytest.approx(expected)
    torch.optim.AdamW(groups)


def test_deviations_are_the_bases_and_the_output_is_divided() -> None:
    torch.manual_seed(0)
    wide, base = network(256), network(16)
    before = wide(torch.ones(1, 6))
    roles = mup_scale_(wide, base)
    assert roles["2.weight"] == "hidden"
    narrow = dict(base.named_parameters())
    for name, factor in (("0.weight", 1.0), ("2.weight", 0.25), ("4.weight", 1.0), ("0.bias", 1.0)):
        expected = float(narrow[name].detach().std()) * factor
        assert float(wide.get_parameter(name).detach().std()) == pytest.approx(expected, rel=1e-5)
    assert not torch.equal(before, wide(torch.ones(1, 6)))
    hidden = torch.randn(2, 256)
    expected_out = nn.functional.linear(hidden / 16, wide[4].weight, wide[4].bias)
    torch.testing.assert_close(wide[4](hidden), expected_out)
    with pytest.raises(ValueError, match="scaled already"):
        mup_scale_(wide, base)


def moved(width: int, muP: bool) -> float:
    """How far three Adam steps move the outputs."""
    torch.manual_seed(1)
    net, base = network(width), network(32)
    if muP:
        mup_scale_(net, base)
    params = mup_groups(net, base, 0.01) if muP else net.parameters()
    optimizer = torch.optim.Adam(params, lr=0.01)
    inputs, targets = torch.randn(64, 6), torch.randn(64, 3)
    first = net(inputs).detach()
    for _ in range(3):
        optimizer.zero_grad()
        nn.functional.mse_loss(net(inputs), targets).backward()
        optimizer.step()
    change: Tensor = net(inputs).detach() - first
    return float(change.std())


def test_outputs_move_alike_at_every_width() -> None:
    """Coordinate check: in the standard parametrization they move the more the wider the network is."""
    ours, plain = ([moved(width, muP) for width in (32, 512)] for muP in (True, False))
    assert abs(math.log(ours[1] / ours[0])) < math.log(1.6)
    assert plain[1] > 3 * plain[0]


def test_tables_are_inputs_and_shared_ones_are_refused() -> None:
    def model(width: int) -> nn.ModuleDict:
        return nn.ModuleDict({"table": nn.Embedding(20, width), "out": nn.Linear(width, 20, bias=False)})

    assert mup_scale_(model(64), model(16)) == {"table.weight": "input", "out.weight": "output"}
    tied, base = model(64), model(16)
    for net in (tied, base):
        net["out"].weight = net["table"].weight
    with pytest.raises(ValueError, match="a table of embeddings and an output layer at once"):
        mup_scale_(tied, base)


def test_networks_that_differ_in_more_are_refused() -> None:
    deeper = nn.Sequential(*network(8), nn.Linear(3, 3))
    with pytest.raises(ValueError, match=r"5\.bias is a parameter of one of model and base only"):
        mup_groups(network(16), deeper, 0.1)
    with pytest.raises(ValueError, match="kind must be one of"):
        mup_groups(network(16), network(8), 0.1, "lion")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="its axis 2 grows"):
        mup_groups(nn.Conv2d(1, 2, 5), nn.Conv2d(1, 2, 3), 0.1)


def test_output_layers_that_share_a_weight_are_divided_alike() -> None:
    nets = []
    for width in (64, 16):
        net = nn.ModuleDict({"up": nn.Linear(4, width), "one": nn.Linear(width, 3), "two": nn.Linear(width, 3)})
        net["two"].weight, net["two"].bias = net["one"].weight, net["one"].bias
        nets.append(net)
    mup_scale_(*nets)
    inputs = torch.ones(1, 64)
    assert torch.equal(nets[0]["one"](inputs), nets[0]["two"](inputs))
