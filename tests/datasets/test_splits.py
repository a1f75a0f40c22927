"""Splits are disjoint, stratified, seeded; statistics are those of the training split alone."""

from __future__ import annotations

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings

from trimtab import datasets
from trimtab.datasets.dataset import DataSet, Split, channel_statistics
from trimtab.datasets.splitting import balanced_index, part_off


def numbered(targets: torch.Tensor, groups: torch.Tensor | None = None) -> Split:
    """Each image carries its own number in its pixels."""
    number = torch.arange(len(targets))
    images = torch.stack([number // 256, number % 256], dim=1).to(torch.uint8)[:, :, None, None]
    return Split(images, targets, groups)


def numbers(split: Split) -> list[int]:
    return (split.images[:, 0, 0, 0].long() * 256 + split.images[:, 1, 0, 0].long()).tolist()


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 4), min_size=5, max_size=200), st.floats(0, 0.7), st.integers(0, 5))
def test_parts_are_disjoint_complete_and_stratified(labels: list[int], fraction: float, seed: int) -> None:
    split = numbered(torch.tensor(labels))
    rest, taken = part_off(split, fraction, seed, "test")
    assert sorted(numbers(rest) + numbers(taken)) == list(range(len(labels)))
    assert numbers(rest) == sorted(numbers(rest))
    total = len(taken)
    assert len(labels) * fraction - 1e-6 <= total < len(labels) * fraction + 1
    counts, all_counts = (torch.bincount(s.targets, minlength=5).double() for s in (taken, split))
    assert bool(((counts - all_counts * total / len(labels)).abs() < 1).all())


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 12), min_size=4, max_size=60).filter(lambda g: len(set(g)) > 3), st.integers(0, 5))
def test_groups_are_never_torn_apart(groups: list[int], seed: int) -> None:
    split = numbered(torch.zeros(len(groups)).long(), torch.tensor(groups))
    rest, taken = part_off(split, 0.3, seed, "test")
    assert rest.groups is not None
    assert taken.groups is not None
    assert not set(rest.groups.tolist()) & set(taken.groups.tolist())
    assert len(rest) + len(taken) == len(groups)


def test_the_limit_keeps_the_class_proportions() -> None:
    targets = torch.tensor([0] * 60 + [1] * 30 + [2] * 10)
    index = balanced_index(targets, 10, 0, "x")
    assert torch.bincount(targets[index]).tolist() == [6, 3, 1]
    assert not torch.equal(index, balanced_index(targets, 10, 1, "x"))
    assert torch.equal(index, balanced_index(targets, 10, 0, "x"))


def rows(split: Split) -> set[bytes]:
    return {image.numpy().tobytes() for image in split.images}


def test_the_test_split_of_digits_never_moves_and_validation_follows_its_seed() -> None:
    first, second = (datasets.load("digits", split_seed=seed) for seed in (0, 1))
    assert torch.equal(first.test.images, second.test.images)
    assert not torch.equal(first.validation.images, second.validation.images)
    again = datasets.load("digits", split_seed=1)
    assert torch.equal(second.train.images, again.train.images)
    assert sum(map(len, (first.train, first.validation, first.test))) == 1797
    assert not rows(first.test) & (rows(first.train) | rows(first.validation))
    shares = torch.bincount(first.test.targets) / torch.bincount(first.train.targets)
    assert shares.max() / shares.min() < 1.1


def test_statistics_are_of_the_training_split_alone() -> None:
    data = datasets.load("digits", limit_train=200)
    assert len(data.train) == 200
    pixels = data.train.images.numpy().astype(np.float64) / 255
    assert data.mean[0] == pytest.approx(pixels.mean(), rel=1e-12)
    assert data.std[0] == pytest.approx(pixels.std(), rel=1e-12)
    assert data.mean != datasets.load("digits").mean


def test_a_constant_channel_can_be_divided_by() -> None:
    images = torch.stack([torch.full((4, 3, 3), 7), torch.arange(36).reshape(4, 3, 3)], dim=1).to(torch.uint8)
    mean, std = channel_statistics(images)
    assert std[0] == 1.0
    assert mean[0] == pytest.approx(7 / 255)
    assert std[1] == pytest.approx(images[:, 1].numpy().std() / 255)


def test_resizing() -> None:
    data = datasets.load("digits", image_size=16)
    assert data.image_size == (16, 16)
    assert data.mean[0] == pytest.approx(datasets.load("digits").mean[0], abs=0.01)
    with pytest.raises(ValueError, match="image_size"):
        datasets.load("digits", image_size=0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "digit"}, "did you mean digits"),
        ({"name": "digits", "colour": 1}, "takes no argument 'colour'"),
        ({"name": "digits", "validation": 1.0}, r"\[0, 1\), got 1.0"),
        ({"name": "digits", "limit_train": 0}, "limit_train of 'digits' must be a whole number in 1.."),
        ({"name": "digits", "limit_train": 5000}, "got 5000"),
        ({"name": "svhn"}, "needs root: .*train_32x32.mat"),
        ({"name": "mnist"}, "needs root: .*train-images"),
        ({"name": "image_folder"}, "needs root"),
        ({"name": "npz"}, "needs root: .*train_images"),
        ({"name": "segmentation_folder"}, "needs root: .*masks"),
        ({"name": "hippocampus"}, "needs root: .*hippocampus_uint8.npz"),
        ({"name": "lgg_mri"}, "needs root: .*kaggle_3m"),
    ],
)
def test_wrong_requests_are_named(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        datasets.load(**arguments)  # type: ignore[arg-type]


def test_names_are_described() -> None:
    assert {"digits", "cifar10", "cifar100", "svhn", "mnist", "hippocampus"} <= set(datasets.names())


def test_malformed_splits_and_sets_are_refused() -> None:
    images = torch.zeros(4, 1, 2, 2, dtype=torch.uint8)
    targets = torch.tensor([0, 1, 0, 1])
    for wrong in ((images.float(), targets), (images, targets.int())):
        with pytest.raises(TypeError, match="must be"):
            Split(*wrong)
    for wrong in ((images[0], targets), (images, targets[:3]), (images, torch.zeros(4, 2, 3).long())):
        with pytest.raises(ValueError, match="shape"):
            Split(*wrong)
    split = Split(images, targets)
    with pytest.raises(ValueError, match=r"must lie in 0..0, found 0..1"):
        DataSet("x", "classification", split, split, split, ("one",), (0.0,), (1.0,))
    none = split.at(torch.tensor([], dtype=torch.int64))
    with pytest.raises(ValueError, match="no training image"):
        DataSet("x", "classification", none, split, split, ("a", "b"), (0.0,), (1.0,))
