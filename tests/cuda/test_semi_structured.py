"""2:4 weights on sparse tensor cores give the dense model's numbers."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from trimtab.deploy import to_semi_structured
from trimtab.pruning import one_shot


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 7, 64])
def test_the_converted_model_agrees(gpu: torch.device, dtype: torch.dtype, rows: int) -> None:
    if torch.cuda.get_device_capability(gpu) < (8, 0):
        pytest.skip("no sparse tensor cores")
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(256, 512), nn.ReLU(), nn.Linear(512, 128), nn.Linear(128, 10)).to(gpu, dtype)
    one_shot(net, pattern="2:4")
    inputs = torch.randn(rows, 256, device=gpu, dtype=dtype)
    fast, report = to_semi_structured(net, inputs, budget=0.01)
    assert [row.fits for row in report.rows] == [True, True, False]
    assert report.model is not None
    with torch.no_grad():
        dense, found = net(inputs).float(), fast(inputs).float()
    assert float((dense - found).abs().max()) <= 2e-2 * float(dense.abs().max())
    assert type(net[0].weight) is nn.Parameter
    same, _ = to_semi_structured(net, inplace=True)
    assert same is net
    assert "SparseSemiStructured" in type(net[0].weight.data).__name__
