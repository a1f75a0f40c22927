"""Batches: order, normalisation, augmentation against a slow reference, resuming, ranks."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from trimtab.datasets import Batches, DataSet, Split
from trimtab.datasets.augment import AUGMENTS, Draws, apply, draw, padding


def a_dataset(count: int = 50, size: tuple[int, int] = (9, 7), segmentation: bool = False) -> DataSet:
    generator = torch.Generator().manual_seed(5)
    images = torch.randint(256, (count, 3, *size), generator=generator, dtype=torch.uint8)
    targets = images[:, 0].long() // 64 if segmentation else torch.arange(count)
    split = Split(images, targets)
    task = "segmentation" if segmentation else "classification"
    classes = tuple(map(str, range(count)))
    return DataSet("made", task, split, split, split, classes, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))


def together(batches: Batches, epoch: int, start: int = 0) -> tuple[Tensor, Tensor]:
    images, targets = zip(*batches.epoch(epoch, start), strict=True)
    return torch.cat(images), torch.cat(targets)


def test_values_are_normalised_and_unshuffled_batches_keep_the_order() -> None:
    data = a_dataset()
    images, targets = together(Batches(data.test, data, 16, seed=0, shuffle=False), 0)
    mean, std = (torch.tensor(v, dtype=torch.float64).view(1, 3, 1, 1) for v in (data.mean, data.std))
    expected = (data.test.images.double() / 255 - mean) / std
    torch.testing.assert_close(images, expected.float(), rtol=1e-5, atol=1e-5)
    assert images.dtype == torch.float32
    assert targets.tolist() == list(range(50))


def test_an_epoch_holds_every_image_once_in_an_order_of_its_own() -> None:
    data = a_dataset()
    batches = Batches(data.train, data, 16, seed=3, drop_last=False)
    orders = [together(batches, epoch)[1].tolist() for epoch in (0, 1)]
    assert [sorted(order) for order in orders] == [list(range(50))] * 2
    assert orders[0] != orders[1] != list(range(50))
    assert orders[0] != together(Batches(data.train, data, 16, seed=4, drop_last=False), 0)[1].tolist()
    assert len(batches) == 4
    assert len(Batches(data.train, data, 16, seed=3)) == 3
    assert len(together(Batches(data.train, data, 16, seed=3), 0)[1]) == 48


@pytest.mark.parametrize("augment", AUGMENTS)
def test_any_epoch_and_batch_can_be_begun_with(augment: str) -> None:
    data = a_dataset()
    whole = list(Batches(data.train, data, 8, seed=3, augment=augment).epoch(2))  # type: ignore[arg-type]
    fresh = Batches(data.train, data, 8, seed=3, augment=augment)  # type: ignore[arg-type]
    torch.rand(3)  # the global generator does not matter
    for start in (0, 2, 5, 6):
        tail = list(fresh.epoch(2, start_batch=start))
        assert len(tail) == len(whole) - start
        for (images, targets), (again, same) in zip(tail, whole[start:], strict=True):
            assert torch.equal(images, again)
            assert torch.equal(targets, same)


@pytest.mark.parametrize("augment", ["flip", "crop_flip", "shift", "alternating"])
def test_augmentation_changes_from_epoch_to_epoch_and_with_the_seed(augment: str) -> None:
    data = a_dataset()

    def first(seed: int, epoch: int) -> Tensor:
        batches = Batches(data.train, data, 50, seed=seed, augment=augment, shuffle=False)  # type: ignore[arg-type]
        return next(batches.epoch(epoch))[0]

    assert torch.equal(first(0, 0), first(0, 0))
    assert not torch.equal(first(0, 0), first(0, 1))
    assert not torch.equal(first(0, 0), first(1, 0))


def test_two_batches_of_an_epoch_are_augmented_differently() -> None:
    images = torch.arange(63, dtype=torch.uint8).reshape(1, 1, 9, 7).expand(40, 3, 9, 7)
    split = Split(images, torch.zeros(40).long())
    data = DataSet("same", "classification", split, split, split, ("one",), (0.0,) * 3, (1.0,) * 3)
    first, second = (images for images, _ in Batches(split, data, 20, seed=0, augment="crop_flip").epoch(0))
    assert not torch.equal(first, second)


@pytest.mark.parametrize("augment", AUGMENTS)
@pytest.mark.parametrize("drop_last", [True, False])
def test_two_ranks_see_together_what_one_process_sees(augment: str, drop_last: bool) -> None:
    data = a_dataset(count=51)
    one = Batches(data.train, data, 8, seed=1, augment=augment, drop_last=drop_last)  # type: ignore[arg-type]
    ranks = [
        Batches(data.train, data, 4, seed=1, augment=augment, drop_last=drop_last, rank=r, world_size=2)  # type: ignore[arg-type]
        for r in (0, 1)
    ]
    seen = []
    for (images, targets), *parts in zip(one.epoch(3), *(rank.epoch(3) for rank in ranks), strict=drop_last):
        for rank, (part, part_targets) in enumerate(parts):
            assert torch.equal(images[rank::2], part)
            assert torch.equal(targets[rank::2], part_targets)
        seen += targets.tolist()
    own = [set(together(rank, 3)[1].tolist()) for rank in ranks]
    assert not own[0] & own[1]
    assert own[0] | own[1] == set(seen)
    assert len(seen) == (48 if drop_last else 51)


def by_hand(augment: str, image: Tensor, row: int, column: int, mirrored: bool) -> Tensor:
    """One image, one pixel after the other."""
    height, width = image.shape[-2:]
    vertical, horizontal = padding(augment, (height, width))  # type: ignore[arg-type]
    out = torch.zeros_like(image)
    for y in range(height):
        for x in range(width):
            from_y = y + row - vertical
            from_x = (width - 1 - x if mirrored else x) + column - horizontal
            if 0 <= from_y < height and 0 <= from_x < width:
                out[..., y, x] = image[..., from_y, from_x]
    return out


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(["flip", "crop_flip", "shift"]), st.integers(1, 12), st.integers(1, 20), st.integers(0, 100))
def test_augmentation_equals_a_pixel_by_pixel_reference(augment: str, height: int, width: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(256, (4, 2, height, width), generator=generator, dtype=torch.uint8)
    draws = draw(augment, 4, (height, width), generator)  # type: ignore[arg-type]
    for x in (images, images[:, 0].long()):
        found = apply(augment, x, draws)  # type: ignore[arg-type]
        assert found.dtype == x.dtype
        for i in range(4):
            row, column = int(draws.rows[i]), int(draws.columns[i])
            assert torch.equal(found[i], by_hand(augment, x[i], row, column, bool(draws.mirrored[i])))


def test_crops_and_flips_are_drawn_evenly() -> None:
    draws = draw("crop_flip", 9000, (32, 32), torch.Generator().manual_seed(0))
    for offsets in (draws.rows, draws.columns):
        counts = torch.bincount(offsets)
        assert len(counts) == 9  # padding of 4 on either side
        assert 850 < counts.min() < counts.max() < 1150
    assert 0.47 < draws.mirrored.float().mean() < 0.53
    assert not draw("shift", 100, (32, 32), torch.Generator()).mirrored.any()
    assert not draw("flip", 100, (32, 32), torch.Generator()).rows.any()


def test_masks_go_along_with_their_images() -> None:
    data = a_dataset(segmentation=True)
    batches = Batches(data.train, data, 50, seed=0, augment="flip")
    images, masks = next(batches.epoch(0))
    red = ((images[:, 0] * data.std[0] + data.mean[0]) * 255).round().long()
    assert torch.equal(masks, red // 64)
    assert not torch.equal(masks, data.train.targets[: len(masks)])


def test_a_sample_can_be_gone_through_again_and_is_augmented_as_the_batches_are() -> None:
    data = a_dataset()
    batches = Batches(data.train, data, 8, seed=0)
    sample = batches.sample(3, seed=9)
    first, second = (list(sample) for _ in range(2))
    assert len(sample) == len(first) == 3
    assert all(torch.equal(a[0], b[0]) for a, b in zip(first, second, strict=True))
    plain, _ = together(Batches(data.train, data, 50, seed=0, shuffle=False), 0)
    for images, targets in first:
        assert torch.equal(images, plain[targets])
    cropped = list(Batches(data.train, data, 8, seed=0, augment="crop_flip").sample(3, seed=9))
    for (images, targets), (others, same_targets) in zip(first, cropped, strict=True):
        assert torch.equal(targets, same_targets)
        assert not torch.equal(images, others)
    assert not torch.equal(first[0][1], next(iter(batches.sample(3, seed=8)))[1])
    assert len(batches.sample(100, seed=0)) == 6
    with pytest.raises(ValueError, match="batches must be a whole number of 1 or more"):
        batches.sample(0, seed=0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "batch_size must be a whole number of 1 or more"),
        ({"batch_size": 51}, "exceeds the 50 images"),
        ({"batch_size": 26, "world_size": 2}, "on 2 process"),
        ({"batch_size": 5, "augment": "rotate"}, "augment must be one of"),
        ({"batch_size": 5, "rank": 1}, "rank must be a whole number in 0..0"),
    ],
)
def test_wrong_arguments_are_named(arguments: dict[str, object], message: str) -> None:
    data = a_dataset()
    with pytest.raises(ValueError, match=message):
        Batches(data.train, data, seed=0, **arguments)  # type: ignore[arg-type]


def test_empty_splits_and_starts_outside_are_refused() -> None:
    data = a_dataset()
    with pytest.raises(ValueError, match="holds no image"):
        Batches(data.train.at(torch.tensor([], dtype=torch.int64)), data, 4, seed=0)
    batches = Batches(data.train, data, 10, seed=0)
    for wrong in ((-1, 0), (0, 6), (0, -1)):
        with pytest.raises(ValueError, match="must be a whole number"):
            batches.epoch(*wrong)
    assert list(batches.epoch(0, 5)) == []


def test_draws_of_a_rank_are_strided() -> None:
    draws = Draws(torch.arange(6), torch.arange(6), torch.arange(6) > 2)
    part = draws.part(1, 2, 2)
    assert part.rows.tolist() == [1, 3]
    assert part.mirrored.tolist() == [False, True]
