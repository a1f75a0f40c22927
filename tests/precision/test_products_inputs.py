"""Products of rounded operands: what a layer may be given, and what happens to the layer."""

from __future__ import annotations

import copy
import gc
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from tests.precision.test_products import attached
from trimtab.precision import RECIPES, ShrinkageMeter

LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(20, 12), (20,)),
    "tokens": (lambda: nn.Linear(20, 12), (5, 20)),
    "one dimension": (lambda: nn.Conv1d(3, 4, 3, padding=1), (3, 9)),
    "groups": (lambda: nn.Conv2d(4, 6, 3, groups=2), (4, 8, 8)),
    "three dimensions": (lambda: nn.Conv3d(2, 3, 2), (2, 4, 4, 4)),
    "transposed, one dimension": (lambda: nn.ConvTranspose1d(3, 4, 3, stride=2), (3, 5)),
    "transposed": (lambda: nn.ConvTranspose2d(4, 4, 3, groups=2), (4, 5, 5)),
}


def made(kind: str, name: str) -> tuple[nn.Module, nn.Module, torch.optim.Optimizer]:
    """A layer, the same again under the recipe, and its optimizer."""
    torch.manual_seed(0)
    plain = LAYERS[kind][0]()
    layer = copy.deepcopy(plain)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of stochastic rounding under NVFP4, which the recipe's source knows
        optimizer, *_ = attached(layer, f"{name}-all-layers")
    return plain, layer, optimizer


def run(layer: nn.Module, batch: int, shape: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
    x = torch.randn(batch, *shape, generator=torch.Generator().manual_seed(1)).requires_grad_()
    y = layer(x)
    y.square().sum().backward()
    assert x.grad is not None
    return y.detach(), x.grad, layer.weight.grad  # type: ignore[return-value]


@pytest.mark.filterwarnings("ignore:stochastic rounding is biased under NVFP4:UserWarning")
@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("kind", LAYERS)
def test_every_recipe_goes_through_every_layer(name: str, kind: str) -> None:
    """Near the layer's own numbers, and with no example at all as the layer itself."""
    plain, layer, optimizer = made(kind, name)
    for found, wanted in zip(run(layer, 3, LAYERS[kind][1]), run(plain, 3, LAYERS[kind][1]), strict=True):
        assert float((found - wanted).norm()) < 0.45 * float(wanted.norm())
        assert not torch.equal(found, wanted)
    optimizer.step()
    optimizer.zero_grad()
    plain.zero_grad()
    for found, wanted in zip(run(layer, 0, LAYERS[kind][1]), run(plain, 0, LAYERS[kind][1]), strict=True):
        assert torch.equal(found, wanted)
    optimizer.step()


def test_a_layer_without_memory_has_shapes() -> None:
    with torch.device("meta"):
        layer = nn.Linear(16, 8)
    attached(layer, "fp8-delayed")
    y = layer(torch.empty(4, 16, device="meta"))
    y.sum().backward()
    assert y.shape == (4, 8)
    assert y.is_meta


def test_a_layer_that_is_used_twice_or_frozen_later_or_shared() -> None:
    layer = nn.Linear(8, 8, bias=False)
    attached(layer, "mxfp8")
    x = torch.randn(4, 8)
    y = layer(x)
    y.sum().backward(retain_graph=True)
    once = layer.weight.grad.clone()  # type: ignore[union-attr]
    y.sum().backward()
    assert torch.equal(layer.weight.grad, 2 * once)  # type: ignore[arg-type]
    layer.weight.grad = None
    layer.weight.requires_grad_(False)
    given = x.clone().requires_grad_()
    layer(given).sum().backward()
    assert layer.weight.grad is None
    assert given.grad is not None
    other = nn.Linear(8, 8, bias=False)
    other.weight = nn.Parameter(torch.randn(8, 8))
    pair = nn.Sequential(other, nn.Linear(8, 8, bias=False))
    pair[1].weight = other.weight
    optimizer, lever, handle = attached(pair, "fp8-delayed")
    pair(x).sum().backward()
    optimizer.step()
    assert lever.operands is not None
    assert lever.operands.layers == ["0", "1"]
    handle.remove()
    assert not any("forward" in each.__dict__ or each._forward_pre_hooks for each in pair)


@pytest.mark.parametrize(
    ("layer", "given", "error", "message"),
    [
        (nn.Linear(8, 4), torch.ones(2, 8, dtype=torch.int64), TypeError, "as floating-point numbers, got torch.int64"),
        (nn.Linear(8, 4), torch.ones(2, 8).half(), TypeError, "the model is torch.float16, its weight torch.float32"),
        (nn.Conv2d(4, 4, 3), torch.ones(2, 3, 8, 8), ValueError, r"images of 4 channels .*shape \(2, 3, 8, 8\)"),
        (nn.ConvTranspose1d(4, 4, 3), torch.ones(4), ValueError, r"in 3 dimensions, or one in 2, got shape \(4,\)"),
    ],
)
def test_what_a_layer_does_not_take(layer: nn.Module, given: Tensor, error: type[Exception], message: str) -> None:
    attached(layer, "mxfp4")
    with pytest.raises(error, match=message):
        layer(given)


def test_transforms_of_functions_and_second_derivatives_are_refused() -> None:
    layer = nn.Linear(8, 4)
    _, lever, _ = attached(layer, "mxfp4")
    x = torch.randn(3, 8, requires_grad=True)
    with pytest.raises(RuntimeError, match=r"torch.func's transforms do not go through .*lever.full_precision\(\)"):
        torch.func.vmap(layer)(x.expand(2, 3, 8))
    with lever.full_precision():
        assert torch.func.vmap(layer)(x.expand(2, 3, 8)).shape == (2, 3, 4)
    (gradient,) = torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiate twice"):
        gradient.sum().backward()


@pytest.mark.filterwarnings("ignore:stochastic rounding is biased under NVFP4:UserWarning")
@pytest.mark.parametrize("name", ["nvfp4", "fp8-delayed"])
def test_nothing_grows_over_a_hundred_steps(name: str) -> None:
    """Tensors alive, and their numbers, after 20 steps and after 120, metered as they go."""
    net = nn.Sequential(nn.Conv2d(2, 4, 3), nn.Flatten(), nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 3))
    meter = ShrinkageMeter(every=10, capacity=2)
    optimizer, *_ = attached(net, f"{name}-all-layers", meter=meter, oscillation=4)
    x = torch.randn(6, 2, 4, 4)
    found = []
    for _ in range(2):
        for _ in range(20 if not found else 100):
            optimizer.zero_grad()
            net(x).square().mean().backward()
            optimizer.step()
        meter.flush()
        gc.collect()
        alive = [each for each in gc.get_objects() if type(each) in (Tensor, nn.Parameter)]
        found.append((len(alive), sum(each.numel() for each in alive)))
        del alive
    assert found[0] == found[1]
