"""Names, a user's own network, and what is refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.models import user_networks
from trimtab import models

USER = "tests.models.user_networks"


def test_names_are_described() -> None:
    expected = (
        "resnet8 resnet20 resnet56 resnet18 resnet50 vgg16_bn wrn28_10 vit_tiny digits_cnn resnet_digits unet_small "
        "unet_resnet18 unet_resnet50 cifar10_fast byte_gpt"
    )
    assert set(models.names()) == set(expected.split())
    assert all(len(text) > 10 for text in models.names().values())


def test_a_users_function_gets_what_it_takes() -> None:
    network = models.create(f"{USER}:linear", num_classes=3, in_channels=1, image_size=(4, 4), bias=False)
    assert isinstance(network, nn.Sequential)
    assert network(torch.zeros(2, 1, 4, 4)).shape == (2, 3)
    assert network[1].bias is None
    assert isinstance(models.create(f"{USER}:without_sizes", num_classes=3, hidden=4), nn.Linear)


def test_open_ended_arguments_get_the_number_of_classes_alone() -> None:
    models.create(f"{USER}:open_ended", num_classes=3, depth=2)
    assert user_networks.offered == {"num_classes": 3, "depth": 2}


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("resnet19", {}, "did you mean resnet18"),
        ("zzzz", {}, "models are .*resnet20"),
        ("resnet20", {"deph": 1}, "takes no argument 'deph'"),
        ("vit_tiny", {"deph": 1}, "did you mean depth"),
        ("vit_tiny", {"heads": 5}, "heads=5"),
        ("vit_tiny", {"patch": 5}, "patch=5"),
        ("resnet18", {"stem": "small"}, "stem must be one of"),
        ("wrn28_10", {"depth": 27}, "6 n \\+ 4"),
        ("no_such_package:net", {}, "no_such_package"),
        (f"{USER}:liner", {}, "did you mean linear"),
        (f"{USER}:without_sizes", {}, "needs the argument"),
        (":linear", {}, "package.module:function"),
    ],
)
def test_wrong_requests_are_named(name: str, arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        models.create(name, num_classes=10, **arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", [f"{USER}:not_a_network", f"{USER}:a_number"])
def test_what_is_no_network_is_refused(name: str) -> None:
    with pytest.raises(TypeError, match=r"must (return|be)"):
        models.create(name, num_classes=10)


@pytest.mark.parametrize(
    "wrong", [{"num_classes": 0}, {"num_classes": 2, "in_channels": 0}, {"num_classes": 2, "image_size": 0}]
)
def test_sizes_below_one_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="must be a whole number of 1 or more, got 0"):
        models.create("resnet8", **wrong)  # type: ignore[arg-type]
