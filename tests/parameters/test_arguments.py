"""What a model is called with, from examples and batches."""

from __future__ import annotations

from collections import UserDict, namedtuple

import torch
from torch import Tensor, nn

from trimtab.parameters.arguments import arguments, arguments_of_batch, moved

Pair = namedtuple("Pair", "left right")


class Open(nn.Module):
    def forward(self, x: Tensor, **options: object) -> Tensor:
        return x


class Many(nn.Module):
    def forward(self, *inputs: Tensor) -> Tensor:
        return inputs[0]


def test_examples() -> None:
    assert arguments([1, 2]) == ((1, 2), {})
    assert arguments(UserDict(x=1)) == ((), {"x": 1})
    assert arguments(None) == ((None,), {})


def test_batches_follow_the_forward_they_are_for() -> None:
    x, y = torch.ones(2), torch.zeros(2)
    assert arguments_of_batch(Open(), {"x": 1, "y": 2}) == ((), {"x": 1, "y": 2})
    assert arguments_of_batch(nn.ReLU(), {"input": 1, "y": 2}) == ((), {"input": 1})
    assert arguments_of_batch(Many(), (x, y)) == ((x,), {})
    assert arguments_of_batch(Many(), ((x, y), 3)) == ((x, y), {})


def test_every_tensor_moves_and_the_rest_stays() -> None:
    t = torch.ones(1)
    found = moved(({"a": t, "b": [t, "name"]}, Pair(t, 3), None), torch.device("meta"))
    assert [t.device.type for t in (found[0]["a"], found[0]["b"][0], found[1].left)] == ["meta"] * 3
    assert (found[0]["b"][1], found[1].right, found[2], type(found[1])) == ("name", 3, None, Pair)
