"""Networks of a user, found by `tests.models.user_networks:NAME`."""

from torch import nn

offered: dict[str, object] = {}


def linear(num_classes: int, in_channels: int, image_size: int, bias: bool = True) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(in_channels * image_size * image_size, num_classes, bias=bias))


def without_sizes(hidden: int) -> nn.Module:
    return nn.Linear(hidden, hidden)


def open_ended(**arguments: object) -> nn.Module:
    offered.clear()
    offered.update(arguments)
    return nn.Identity()


def not_a_network(num_classes: int) -> int:
    return num_classes


a_number = 3
