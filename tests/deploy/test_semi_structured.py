"""2:4 for sparse tensor cores: the layout is checked anywhere; without such a GPU there is one clear reason."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from trimtab.deploy import check_semi_structured, to_semi_structured
from trimtab.deploy.semi_structured import layout_reason
from trimtab.pruning import one_shot


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))


def test_what_fits_and_why_not() -> None:
    net = network()
    one_shot(net[0], pattern="2:4")
    one_shot(net[4], pattern="2:4")
    reasons = {row.name: row.reason for row in check_semi_structured(net).rows}
    assert reasons["0"] == "dtype torch.float32: the kernels take float16 and bfloat16"
    assert reasons["2"] == "512 of 512 groups of four inputs hold more than two non-zeros"
    report = check_semi_structured(net.half())
    assert {row.name: row.fits for row in report.rows} == {"0": True, "2": False, "4": False}
    assert report.rows[2].reason == "shape (10, 32): the kernels take multiples of (32, 64)"
    assert report.converted == 1
    net[2].weight = net[0].weight
    assert check_semi_structured(net).rows[0].reason == "its weight is shared with another module"


def test_the_layout_counts_groups_of_four_inputs() -> None:
    weight = torch.zeros(3, 8)
    weight[0, :2] = 1
    weight[1, 2:6] = 1  # two in each of two groups
    assert layout_reason(weight) == ""
    weight[1, 1] = 1
    assert layout_reason(weight) == "1 of 6 groups of four inputs hold more than two non-zeros"
    assert "multiple of four" in layout_reason(torch.zeros(3, 6))
    assert layout_reason(torch.zeros(4, 4).T.contiguous()) == ""
    wrong_axis = torch.zeros(4, 4)
    wrong_axis[:2] = 1  # 2:4 along the outputs
    assert layout_reason(wrong_axis) == "2 of 4 groups of four inputs hold more than two non-zeros"


def test_on_a_processor_there_is_one_reason_and_nothing_changes() -> None:
    net = network().bfloat16()
    with pytest.raises(ValueError, match=r"no layer for the 2:4 kernels \(0: 1,024 of 1,024 groups .*pattern='2:4'"):
        to_semi_structured(net)
    one_shot(net[0], pattern="2:4")
    before = net[0].weight
    with pytest.raises(
        ValueError, match=r"NVIDIA GPUs of compute capability 8\.0 or newer alone, and the model is on cpu"
    ):
        to_semi_structured(net, torch.randn(8, 64).bfloat16(), inplace=True)
    assert net[0].weight is before
