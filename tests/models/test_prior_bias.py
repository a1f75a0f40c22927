"""prior_bias_: sigmoid of the bias is the prior, and the first loss that of one who knows it."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from trimtab.models import positive_share, prior_bias_


@pytest.mark.parametrize("share", [0.01, 0.5, 0.9])
@pytest.mark.parametrize("layer", [nn.Linear(4, 3), nn.Conv2d(4, 3, 1)])
def test_the_sigmoid_of_the_bias_is_the_prior(layer: nn.Module, share: float) -> None:
    prior_bias_(layer.double(), share)
    assert layer.bias.sigmoid().tolist() == pytest.approx([share] * 3)  # type: ignore[union-attr,operator]


def test_the_sheets_number() -> None:
    layer = nn.Linear(1, 1).double()
    prior_bias_(layer, 0.01)
    assert layer.bias.item() == pytest.approx(-4.59511985)


def test_of_one_positive_in_a_thousand_the_first_loss_is_small() -> None:
    targets = torch.zeros(1000, 1)
    targets[0] = 1
    share = positive_share([targets[:400], targets[400:]])
    assert share == 0.001
    torch.manual_seed(0)
    layer, inputs = nn.Linear(8, 1), 0.01 * torch.randn(1000, 8)
    before = F.binary_cross_entropy_with_logits(layer(inputs), targets).item()
    prior_bias_(layer, share)
    after = F.binary_cross_entropy_with_logits(layer(inputs), targets).item()
    assert before > 0.4
    assert after == pytest.approx(-math.log(1 - share) * 0.999 - math.log(share) / 1000, rel=0.05)


def test_bad_input_is_one_error() -> None:
    with pytest.raises(ValueError, match=r"share must lie in \(0, 1\), got 0"):
        prior_bias_(nn.Linear(1, 1), 0)
    with pytest.raises(TypeError, match="the prior goes into a bias"):
        prior_bias_(nn.Linear(1, 1, bias=False), 0.1)
    with pytest.raises(ValueError, match="targets must be 0 or 1"):
        positive_share([torch.tensor([0, 2])])
    with pytest.raises(ValueError, match="a share of positives needs targets"):
        positive_share([])
