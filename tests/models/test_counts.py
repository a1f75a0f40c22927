"""Parameter counts against the published ones, on the meta device."""

from __future__ import annotations

import pytest
import torch

from trimtab import models

# (name, arguments, parameters): resnet20/56 as in common reimplementations of option A; resnet18 for CIFAR, VGG-16-BN and
# WRN-28-10 as in the usual PyTorch ones; the ImageNet stems as in the common model library.
PUBLISHED = [
    ("resnet20", {"num_classes": 10}, 269_722),
    ("resnet56", {"num_classes": 10}, 853_018),
    ("resnet18", {"num_classes": 10}, 11_173_962),
    ("resnet18", {"num_classes": 1000, "stem": "imagenet", "image_size": 224}, 11_689_512),
    ("resnet50", {"num_classes": 10}, 23_520_842),
    ("resnet50", {"num_classes": 1000, "stem": "imagenet", "image_size": 224}, 25_557_032),
    ("vgg16_bn", {"num_classes": 10}, 14_728_266),
    ("wrn28_10", {"num_classes": 10}, 36_479_194),
    ("wrn28_10", {"num_classes": 100}, 36_536_884),
]


def count(name: str, **arguments: object) -> int:
    with torch.device("meta"):
        network = models.create(name, **arguments)  # type: ignore[arg-type]
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize(("name", "arguments", "expected"), PUBLISHED)
def test_parameter_counts_are_the_published_ones(name: str, arguments: dict[str, object], expected: int) -> None:
    assert count(name, **arguments) == expected


def test_projection_shortcuts_would_make_the_other_published_resnet20() -> None:
    # Option B adds a 1 x 1 convolution and a BatchNorm at the two changes of width: 272,474.
    assert count("resnet20", num_classes=10) + (16 * 32 + 64) + (32 * 64 + 128) == 272_474


def test_resnet_depth_is_six_n_plus_two() -> None:
    for name, depth in (("resnet8", 8), ("resnet20", 20), ("resnet56", 56)):
        with torch.device("meta"):
            network = models.create(name, num_classes=10)
        layers = [m for m in network.modules() if isinstance(m, (torch.nn.Conv2d, torch.nn.Linear))]
        assert len(layers) == depth


def test_vit_count_from_its_formula() -> None:
    dim, depth, tokens = 192, 6, 65
    layer = 4 * (dim * dim + dim) + (dim * 4 * dim + 4 * dim) + (4 * dim * dim + dim) + 4 * dim
    expected = (3 * 16 * dim + dim) + dim + tokens * dim + depth * layer + 2 * dim + (dim * 10 + 10)
    assert count("vit_tiny", num_classes=10) == expected


def test_the_demo_networks_are_tiny() -> None:
    assert count("digits_cnn", num_classes=10, in_channels=1, image_size=8) == 24_058
    assert count("resnet_digits", num_classes=10, in_channels=1, image_size=8) == 19_130


def test_resnet_keys_are_those_of_the_common_library() -> None:
    with torch.device("meta"):
        keys = set(models.create("resnet50", num_classes=1000, stem="imagenet").state_dict())
    assert {
        "conv1.weight",
        "bn1.running_mean",
        "layer2.0.downsample.0.weight",
        "layer4.2.conv3.weight",
        "fc.bias",
    } <= keys
    assert "layer1.1.downsample.0.weight" not in keys
