"""Blocks: the units of gradients and weights, whatever the layout of either."""

from __future__ import annotations

import pytest
import torch

from trimtab.tensors.blocks import blocks
from trimtab.tensors.units import Item

LAYOUTS = {
    "contiguous": lambda tensor: tensor.contiguous(),
    "channels last": lambda tensor: tensor.to(memory_format=torch.channels_last),
    "transposed": lambda tensor: tensor.transpose(0, 1).contiguous().transpose(0, 1),
    "with gaps": lambda tensor: torch.stack([tensor, tensor], -1)[..., 0],
}


@pytest.mark.parametrize("axis", [0, 1, None])
@pytest.mark.parametrize("of_weight", LAYOUTS)
@pytest.mark.parametrize("of_gradient", LAYOUTS)
@pytest.mark.parametrize("shape", [(4, 3, 2, 2), (8, 64, 6, 6)])
def test_the_same_units_hold_the_same_indices(shape, of_gradient, of_weight, axis):
    values = torch.arange(2.0 * torch.Size(shape).numel()).view(2, *shape)
    gradients = [Item(LAYOUTS[of_gradient](part), axis) for part in values]
    weights = [LAYOUTS[of_weight](part) for part in values]
    seen = 0
    for block in blocks(gradients):
        for rows, same in zip(block.rows, block.same_units_of(weights), strict=True):
            assert torch.equal(rows.reshape(-1), same.reshape(-1))
            assert len(rows) == len(same)
            seen += rows.numel()
    assert seen == values.numel()
