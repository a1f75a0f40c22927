"""Weights that see the same tensor share a Gram matrix, and get what each would get from its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.pruning.test_data_scores import numbers
from tests.pruning.test_sparse_gpt import literal
from trimtab.parameters import PRUNABLE, select
from trimtab.pruning import sparse_gpt
from trimtab.pruning.calibration import Calibration
from trimtab.pruning.grams import Gram, _Collected, grams_of

Use = Callable[["Heads", Tensor], list[Tensor]]


class Heads(nn.Module):
    """Three layers that read what `use` hands them, and one that reads their sum."""

    def __init__(self, use: Use, width: int = 8) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.q, self.k, self.v = (nn.Linear(width, 12, bias=False).double() for _ in range(3))
        self.out = nn.Linear(12, 8, bias=False).double()
        self.use = use

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.use(self, x)
        return self.out(q + k + v)


def same(net: Heads, x: Tensor) -> list[Tensor]:
    return [net.q(x), net.k(x), net.v(x)]


def other_tensor(net: Heads, x: Tensor) -> list[Tensor]:
    return [net.q(x), net.k(x.clone()), net.v(x)]


def changed_between(net: Heads, x: Tensor) -> list[Tensor]:
    x = x.clone()
    return [net.q(x), net.k(x.mul_(2)), net.v(x)]


def apart_later(net: Heads, x: Tensor) -> list[Tensor]:
    return [net.q(x), net.k(x if len(x) == 10 else 2 * x), net.v(x)]


def more_often(net: Heads, x: Tensor) -> list[Tensor]:
    more = net.q(3 * x) if len(x) == 11 else 0
    return [net.q(x) + more, net.k(x), net.v(x)]


def twice(net: Heads, x: Tensor) -> list[Tensor]:
    return [net.q(x) + net.q(x), net.k(x), net.v(x)]


def in_inference(net: Heads, x: Tensor) -> list[Tensor]:
    with torch.inference_mode():
        x = x + 1
        return [net.q(x), net.k(x), net.v(x)]


def found(net: nn.Module, batches: list[Tensor]) -> list[Gram]:
    return grams_of(Calibration(batches), net, select(net, PRUNABLE).chosen, early=False)


@pytest.mark.parametrize(
    ("use", "shared"),
    [
        (same, ["q.weight, k.weight, v.weight", "out.weight"]),
        (other_tensor, ["q.weight", "k.weight", "v.weight", "out.weight"]),
        (changed_between, ["q.weight", "k.weight, v.weight", "out.weight"]),
        (apart_later, ["q.weight", "k.weight", "v.weight", "out.weight"]),
        (more_often, ["q.weight", "k.weight", "v.weight", "out.weight"]),
        (twice, ["q.weight", "k.weight, v.weight", "out.weight"]),
        (in_inference, ["q.weight", "k.weight", "v.weight", "out.weight"]),
    ],
)
def test_what_is_one_tensor_is_multiplied_once(use: Use, shared: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    batches = list(numbers(33, 8).split((10, 11, 12)))
    own = found(Heads(use), batches)
    assert [gram.names for gram in own] == shared
    together = {entry.name: gram.matrix for gram in own for entry in gram.entries}
    net = Heads(use)
    sparse_gpt(net, batches, 0.5)
    monkeypatch.setattr(_Collected, "_same", lambda *given: None)
    for gram in found(Heads(use), batches):
        assert torch.equal(gram.matrix, together[gram.names])
        assert len(gram.entries) == 1
    alone = Heads(use)
    sparse_gpt(alone, batches, 0.5)
    assert all(torch.equal(one, other) for one, other in zip(net.parameters(), alone.parameters(), strict=True))


@pytest.mark.parametrize("how", [{"sparsity": 0.5}, {"groups": (2, 4)}])
def test_layers_that_share_equal_the_literal_form(how: dict[str, Any]) -> None:
    net, inputs = Heads(same, 24), numbers(60, 24)
    expected = [literal(layer.weight, inputs, **how) for layer in (net.q, net.k, net.v)]
    sparse_gpt(net, [inputs], how.get("sparsity"), pattern="2:4" if "groups" in how else "unstructured")
    for layer, right in zip((net.q, net.k, net.v), expected, strict=True):
        assert torch.allclose(layer.weight, right, rtol=1e-9, atol=1e-9)


def test_convolutions_and_other_precisions_have_their_own() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Conv2d(2, 3, 3, padding=1), nn.Conv2d(2, 3, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.one(x) + self.two(x)

    assert len(found(Two(), [torch.randn(2, 2, 5, 5)])) == 2
    net = Heads(lambda net, x: [net.q(x), net.k(x).double(), net.v(x)])
    net.k.float()
    for layer in (net.q, net.v):
        layer.register_forward_pre_hook(lambda layer, given: (given[0].double(),))
    assert [gram.matrix.dtype for gram in found(net, [torch.randn(6, 8)])] == [
        torch.float64,
        torch.float32,
        *[torch.float64] * 2,
    ]
