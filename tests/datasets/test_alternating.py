"""The alternating augmentation: mirrored every second epoch, shifted over a mirrored border."""

from __future__ import annotations

import hypothesis.strategies as st
import torch
from hypothesis import given, settings
from torch import Tensor
from torch.nn import functional as F

from tests.datasets.test_batches import a_dataset, together
from trimtab.datasets import Batches, DataSet, Split
from trimtab.datasets.augment import apply, draw, padding


def by_hand(image: Tensor, row: int, column: int, mirrored: bool) -> Tensor:
    """One image, one pixel after the other; beyond the border stands what lies as far inside it."""
    height, width = image.shape[-2:]
    vertical, horizontal = padding("alternating", (height, width))
    out = torch.empty_like(image)
    for y in range(height):
        for x in range(width):
            from_y, from_x = y + row - vertical, (width - 1 - x if mirrored else x) + column - horizontal
            from_y = -from_y if from_y < 0 else 2 * (height - 1) - from_y if from_y >= height else from_y
            from_x = -from_x if from_x < 0 else 2 * (width - 1) - from_x if from_x >= width else from_x
            out[..., y, x] = image[..., from_y, from_x]
    return out


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 100))
def test_shift_over_a_mirrored_border_equals_a_pixel_by_pixel_reference(height: int, width: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(256, (4, 2, height, width), generator=generator, dtype=torch.uint8)
    draws = draw("alternating", 4, (height, width), generator)
    for x in (images, images[:, 0].long()):
        found = apply("alternating", x, draws)
        assert found.dtype == x.dtype
        for i in range(4):
            row, column = int(draws.rows[i]), int(draws.columns[i])
            assert torch.equal(found[i], by_hand(x[i], row, column, bool(draws.mirrored[i])))


def test_every_crop_is_one_of_torchs_reflected_padding() -> None:
    x = torch.rand(1, 3, 32, 32)
    padded = F.pad(x, (2, 2, 2, 2), mode="reflect")
    for row in range(5):
        for column in range(5):
            draws = draw("alternating", 1, (32, 32), torch.Generator())
            draws.rows[0], draws.columns[0], draws.mirrored[0] = row, column, False
            assert torch.equal(apply("alternating", x, draws), padded[:, :, row : row + 32, column : column + 32])


def asymmetric(count: int = 300) -> DataSet:
    """Images whose left half is dark and whose right half is bright; a shift by a pixel does not hide it."""
    images = torch.zeros(count, 3, 16, 16, dtype=torch.uint8)
    images[..., 8:] = 255
    split = Split(images, torch.arange(count))
    return DataSet(
        "sides", "classification", split, split, split, tuple(map(str, range(count))), (0.0,) * 3, (1.0,) * 3
    )


def mirrored(batches: Batches, epoch: int) -> Tensor:
    """Which image was mirrored in that epoch, by its number."""
    images, targets = together(batches, epoch)
    found = torch.empty(len(targets), dtype=torch.bool)
    found[targets] = images[:, 0, :, :4].mean((1, 2)) > 0.5
    return found


def test_each_image_is_mirrored_in_every_second_epoch_from_a_start_of_its_own() -> None:
    data = asymmetric()
    batches = Batches(data.train, data, 60, seed=7, augment="alternating")
    first = mirrored(batches, 0)
    assert 0.4 < first.float().mean() < 0.6
    for epoch in range(1, 6):
        assert torch.equal(mirrored(batches, epoch), first if epoch % 2 == 0 else ~first)
    assert not torch.equal(first, mirrored(Batches(data.train, data, 60, seed=8, augment="alternating"), 0))
    flips = Batches(data.train, data, 60, seed=7, augment="crop_flip")
    assert not torch.equal(mirrored(flips, 0), ~mirrored(flips, 1))  # coin flips do not take turns


def test_shifts_are_drawn_evenly_and_anew() -> None:
    draws = draw("alternating", 5000, (32, 32), torch.Generator().manual_seed(0))
    for offsets in (draws.rows, draws.columns):
        counts = torch.bincount(offsets)
        assert len(counts) == 5
        assert 850 < counts.min() < counts.max() < 1150
    data = a_dataset()
    batches = Batches(data.train, data, 50, seed=0, augment="alternating", shuffle=False)
    first, third = (next(batches.epoch(epoch))[0] for epoch in (0, 2))
    assert not torch.equal(first, third)
