"""Products of rounded operands: three products against float64, each rounded along its own contraction."""

from __future__ import annotations

import copy
import io
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import trimtab
from trimtab.inexact import rounded_backward
from trimtab.precision import LowPrecision, Recipe, ShrinkageMeter, recipe_named
from trimtab.precision.blocks import MX
from trimtab.precision.eden import MSEden
from trimtab.precision.format import named
from trimtab.precision.named_recipes import RECIPES
from trimtab.precision.operands import turned
from trimtab.precision.recipes import Accumulator, Keep, Operand, Product

EVERY = Keep()


def in_format(x: np.ndarray, format: str) -> np.ndarray:
    """Nearest number of the format, ties to the even one, beyond the largest the largest; by looking at all of them."""
    values = named(format).values().numpy()
    place = np.abs(x)[..., None]
    distance = np.abs(values - place)
    best = distance.min(-1, keepdims=True)
    codes = np.arange(len(values))
    choice = np.where(distance == best, codes + 1000 * (codes % 2), 10**6).argmin(-1)  # among two, the even code
    return np.copysign(values[choice], x)


def scale_of(block: np.ndarray, format: str, rule: str) -> float:
    largest = float(np.abs(block).max())
    if largest == 0:
        return 1.0
    if rule == "absmax":
        return float(np.float32(largest) / np.float32(named(format).max))
    if rule == "floor":
        return 2.0 ** (math.floor(math.log2(largest)) - named(format).max_exponent)
    return 2.0 ** math.ceil(math.log2(largest / named(format).max))


def along(x: Tensor, format: str, rule: str, size: int, rows: int = 1) -> Tensor:
    """A matrix in float64, every block along its last dimension rounded with a scale of its own."""
    source = x.double().numpy()
    found = np.zeros_like(source)
    for top in range(0, source.shape[0], rows):
        for left in range(0, source.shape[1], size):
            part = source[top : top + rows, left : left + size]
            scale = scale_of(part, format, rule)
            found[top : top + rows, left : left + size] = scale * in_format(part / scale, format)
    return torch.from_numpy(found)


def along_nvfp4(x: Tensor, rows: int = 1) -> Tensor:
    """The same for blocks of 16 with scales in two levels, which are computed in float32."""
    source, one = x.float().numpy(), np.float32(1)
    whole = np.float32(448 * 6) / np.abs(source).max()
    found = np.zeros(source.shape)
    for top in range(0, source.shape[0], rows):
        for left in range(0, source.shape[1], 16):
            part = source[top : top + rows, left : left + 16]
            wanted = np.minimum(np.abs(part).max() * (whole * (one / np.float32(6))), np.float32(448))
            decode = in_format(wanted[None], "e4m3")[0].astype(np.float32) * (one / whole)
            if decode:
                found[top : top + rows, left : left + 16] = decode * in_format((one / decode) * part, "e2m1")
    return torch.from_numpy(found)


def reference(x: Tensor, w: Tensor, g: Tensor, factors: dict[str, tuple[Any, Any]]) -> tuple[Tensor, Tensor, Tensor]:
    """`Y`, `dX`, `dW` in float64; a factor is what `along` takes behind the matrix."""
    (fa, fw), (dg, dw), (wg, wa) = (factors[name] for name in ("fprop", "dgrad", "wgrad"))
    y = along(x, *fa) @ along(w, *fw).T
    dx = along(g, *dg) @ along(w.T, *dw).T
    dw_ = along(g.T, *wg) @ along(x.T, *wa).T
    return y, dx, dw_


MXFP8, MXFP4 = ("e4m3", "power_of_two", 32), ("e2m1", "floor", 32)
E4M3, E5M2 = ("e4m3", "absmax", 10**6, 10**6), ("e5m2", "absmax", 10**6, 10**6)
DEEP, DEEP_W = ("e4m3", "absmax", 128), ("e4m3", "absmax", 128, 128)
SAID = {
    "mxfp8": {"fprop": (MXFP8, MXFP8), "dgrad": (MXFP8, MXFP8), "wgrad": (MXFP8, MXFP8)},
    "mxfp4": {"fprop": (MXFP4, MXFP4), "dgrad": (MXFP4, MXFP4), "wgrad": (MXFP4, MXFP4)},
    "fp8-tensor": {"fprop": (E4M3, E4M3), "dgrad": (E5M2, E4M3), "wgrad": (E5M2, E4M3)},
    "fp8-deepseek": {"fprop": (DEEP, DEEP_W), "dgrad": (DEEP, DEEP_W), "wgrad": (DEEP, DEEP)},
}


def spread(*shape: int, seed: int) -> Tensor:
    """Numbers of very different sizes along both dimensions, so that a block along the wrong one has another scale."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(*shape, generator=generator)
    for axis in (-1, -2):
        factors = torch.exp2(torch.randint(-4, 5, (shape[axis],), generator=generator).float())
        x = x * (factors if axis == -1 else factors[:, None])
    return x


def attached(net: nn.Module, recipe: str | Recipe, **settings: Any) -> tuple[torch.optim.Optimizer, LowPrecision, Any]:
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    lever = LowPrecision(matmul=recipe, **settings)
    return optimizer, lever, trimtab.attach(optimizer, lever, model=net)


def close(found: Tensor | None, wanted: Tensor) -> None:
    assert found is not None
    torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-5 * float(wanted.abs().max()))


@pytest.mark.parametrize("name", SAID)
@pytest.mark.parametrize("sizes", [(96, 160, 64), (37, 45, 50)])  # tokens, inputs, outputs; the second no block divides
def test_the_three_products_of_linear_are_those_of_float64(name: str, sizes: tuple[int, int, int]) -> None:
    tokens, inputs, outputs = sizes
    layer = nn.Linear(inputs, outputs)
    layer.weight.data = spread(outputs, inputs, seed=0)
    attached(layer, name)
    x, g = spread(tokens, inputs, seed=1).requires_grad_(), spread(tokens, outputs, seed=2)
    y = layer(x.view(1, tokens, inputs))
    assert y.shape == (1, tokens, outputs)
    y.backward(g.view_as(y))
    wanted = reference(x.detach(), layer.weight.detach(), g, SAID[name])
    close(y[0].detach() - layer.bias.detach(), wanted[0])
    close(x.grad, wanted[1])
    close(layer.weight.grad, wanted[2])
    close(layer.bias.grad, g.double().sum(0))
    assert rounded_backward(y) is not None


@pytest.mark.parametrize("sizes", [(48, 64, 32), (37, 45, 50)])
def test_nvfp4_has_tiles_for_weights_and_turns_what_the_weights_gradient_is_made_of(
    sizes: tuple[int, int, int],
) -> None:
    tokens, inputs, outputs = sizes
    layer = nn.Linear(inputs, outputs, bias=False)
    layer.weight.data = spread(outputs, inputs, seed=0)
    attached(layer, "nvfp4-nearest", seed=4)
    x, g = spread(tokens, inputs, seed=1).requires_grad_(), spread(tokens, outputs, seed=2)
    y = layer(x)
    y.backward(g)
    weight = along_nvfp4(layer.weight.detach(), 16)
    close(y.detach(), along_nvfp4(x.detach()) @ weight.T)
    close(x.grad, along_nvfp4(g) @ weight)
    close(layer.weight.grad, along_nvfp4(turned(g.T, 16, 4)) @ along_nvfp4(turned(x.detach().T, 16, 4)).T)


@pytest.mark.filterwarnings("ignore:stochastic rounding is biased under NVFP4:UserWarning")  # as said by the lever
def test_gradients_of_nvfp4_are_rounded_stochastically_and_forward_passes_are_not() -> None:
    layer = nn.Linear(64, 32, bias=False)
    attached(layer, "nvfp4")
    x, g = spread(48, 64, seed=1).requires_grad_(), spread(48, 32, seed=2)
    found = []
    for _ in range(2):
        y = layer(x)
        found.append((y, *torch.autograd.grad(y, (x, layer.weight), g)))
    assert torch.equal(found[0][0], found[1][0])
    assert not torch.equal(found[0][1], found[1][1])
    assert not torch.equal(found[0][2], found[1][2])


@pytest.mark.parametrize("product", ["fprop", "dgrad", "wgrad"])
@pytest.mark.parametrize("place", [0, 1])
def test_an_operand_along_the_wrong_dimension_would_be_seen(product: str, place: int) -> None:
    """Blocks along the other dimension of any one operand move a result far beyond what the test above allows."""
    x, w, g = spread(96, 160, seed=1), spread(64, 160, seed=0), spread(96, 64, seed=2)
    right = reference(x, w, g, SAID["mxfp4"])

    def wrong(matrix: Tensor, *how: Any) -> Tensor:
        return along(matrix.T, *how).T

    factors = {"fprop": (x, w), "dgrad": (g, w.T), "wgrad": (g.T, x.T)}
    ways = [along, along]
    ways[place] = wrong
    one, other = (way(matrix, *MXFP4) for way, matrix in zip(ways, factors[product], strict=True))
    index = ("fprop", "dgrad", "wgrad").index(product)
    assert ((one @ other.T) - right[index]).norm() > 1e-2 * right[index].norm()


def exact_to(module: nn.Module, x: Tensor) -> None:
    """With operands that lose nothing, output and gradients are the layer's own."""
    free = Operand("e8m23")
    recipe = Recipe("exact", (free, free), (free, free), (free, free))
    plain, rounded = copy.deepcopy(module), module
    attached(rounded, recipe)
    assert "forward" in next(each for each in rounded.modules() if not list(each.children())).__dict__
    inputs = [x.clone().requires_grad_() for _ in range(2)]
    outputs = [each(given) for each, given in zip((plain, rounded), inputs, strict=True)]
    assert outputs[0].shape == outputs[1].shape
    torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-4, atol=1e-5)
    for out in outputs:
        (out * torch.linspace(-1, 1, out.numel()).view(out.shape)).sum().backward()
    torch.testing.assert_close(inputs[1].grad, inputs[0].grad, rtol=1e-4, atol=1e-4)
    for one, other in zip(plain.parameters(), rounded.parameters(), strict=True):
        torch.testing.assert_close(other.grad, one.grad, rtol=1e-4, atol=1e-3)


CONVOLUTIONS = {
    "plain": (nn.Conv2d(3, 8, 3), (2, 3, 7, 9)),
    "stride, padding, dilation": (
        nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(2, 1), dilation=(1, 2)),
        (2, 4, 9, 8),
    ),
    "groups": (nn.Conv2d(6, 9, 3, groups=3, padding=1), (2, 6, 5, 5)),
    "same": (nn.Conv2d(3, 4, (4, 3), padding="same"), (2, 3, 6, 5)),
    "circular": (nn.Conv2d(3, 4, 3, padding=1, padding_mode="circular"), (2, 3, 6, 5)),
    "one image": (nn.Conv2d(3, 4, 3), (3, 6, 5)),
    "one dimension": (nn.Conv1d(3, 4, 3, stride=2, padding=1, bias=False), (2, 3, 11)),
    "three dimensions": (nn.Conv3d(2, 4, (2, 3, 1), padding=(1, 0, 0)), (2, 2, 4, 5, 3)),
    "transposed": (nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1, groups=2), (2, 4, 5, 6)),
    "transposed, one dimension": (nn.ConvTranspose1d(3, 5, 4, stride=2, dilation=2), (2, 3, 6)),
}


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")
@pytest.mark.parametrize("kind", CONVOLUTIONS)
def test_convolutions_are_products_of_patches(kind: str) -> None:
    layer, shape = CONVOLUTIONS[kind]
    exact_to(copy.deepcopy(layer), torch.randn(*shape, generator=torch.Generator().manual_seed(0)))


def test_the_products_of_a_convolution_are_rounded_as_matrices() -> None:
    layer = nn.Conv2d(5, 12, 3, bias=False)
    attached(layer, "mxfp4")
    x = spread(2, 5, 8, 8, seed=1).requires_grad_()
    y = layer(x)
    g = spread(2, 12, 6, 6, seed=2)
    y.backward(g)
    rows = F.unfold(x.detach(), 3).transpose(1, 2).reshape(-1, 45)
    flat = g.permute(0, 2, 3, 1).reshape(-1, 12)
    wanted = reference(rows, layer.weight.detach().view(12, 45), flat, SAID["mxfp4"])
    close(y.detach().permute(0, 2, 3, 1).reshape(-1, 12), wanted[0])
    back = F.fold(wanted[1].view(2, 36, 45).transpose(1, 2), (8, 8), 3)
    close(x.grad, back)
    close(layer.weight.grad, wanted[2].view(12, 5, 3, 3))


def test_conv1d_of_transformers_lies_the_other_way() -> None:
    pytorch_utils = pytest.importorskip("transformers.pytorch_utils")
    layer = pytorch_utils.Conv1D(64, 160)
    layer.weight.data = spread(160, 64, seed=0)
    attached(layer, "mxfp4")
    x, g = spread(96, 160, seed=1).requires_grad_(), spread(96, 64, seed=2)
    y = layer(x)
    y.backward(g)
    wanted = reference(x.detach(), layer.weight.detach().T, g, SAID["mxfp4"])
    close(y.detach(), wanted[0])
    close(x.grad, wanted[1])
    close(layer.weight.grad, wanted[2].T)


def test_experts_are_products_of_each_expert() -> None:
    qwen = pytest.importorskip("transformers.models.qwen3_moe")
    config = qwen.Qwen3MoeConfig(hidden_size=32, moe_intermediate_size=48, num_experts=3, num_experts_per_tok=1)
    config._experts_implementation = "grouped_mm"
    experts = qwen.modeling_qwen3_moe.Qwen3MoeExperts(config)
    for place, weight in enumerate(experts.parameters()):
        weight.data = 0.05 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(place))
    net = nn.ModuleDict({"experts": experts})
    meter = ShrinkageMeter(every=1)
    optimizer, *_ = attached(net, "mxfp4", meter=meter)
    x = spread(12, 32, seed=3)
    choice = torch.tensor([0] * 7 + [2] * 5).view(12, 1)
    y = experts(x, choice, torch.ones(12, 1))
    y.sum().backward()
    for index, rows in ((0, slice(0, 7)), (2, slice(7, 12))):
        up, down = experts.gate_up_proj[index].detach(), experts.down_proj[index].detach()
        gate, linear = (along(x[rows], *MXFP4) @ along(up, *MXFP4).T).chunk(2, -1)
        inner = (F.silu(gate) * linear).float()
        close(y[rows].detach(), along(inner, *MXFP4) @ along(down, *MXFP4).T)
    optimizer.step()
    rows = meter.table().to_pylist()
    found = {row["layer"]: row["n"] for row in rows if row["kind"] == "fprop weight"}
    assert found == {"experts.gate_up_proj": 2 * 96 * 32, "experts.down_proj": 2 * 32 * 48, "(global)": 2 * 144 * 32}


@pytest.mark.parametrize("size", [16, 32, 128])
def test_a_hadamard_transform_of_both_operands_leaves_their_product(size: int) -> None:
    one, other = spread(5, 100, seed=0), spread(7, 100, seed=1)
    first, second = turned(one, size, 3), turned(other, size, 3)
    torch.testing.assert_close(first @ second.T, one @ other.T, rtol=1e-4, atol=1e-3)
    assert first.shape[1] % size == 0
    outlier = torch.zeros(1, size)
    outlier[0, 3] = 1.0
    assert turned(outlier, size, 0).abs().allclose(torch.tensor(size**-0.5))
    assert not torch.equal(turned(one, size, 3), turned(one, size, 4))


def test_a_rotated_product_is_that_of_rotated_operands() -> None:
    four = Operand("e2m1", MX())
    recipe = Recipe("turned", wgrad=Product(four, four, hadamard=16))
    layer = nn.Linear(40, 24, bias=False)
    attached(layer, recipe, seed=5)
    x, g = spread(96, 40, seed=1), spread(96, 24, seed=2)
    y = layer(x)
    assert torch.equal(y, x @ layer.weight.T)
    y.backward(g)
    close(layer.weight.grad, along(turned(g.T, 16, 5), *MXFP4) @ along(turned(x.T, 16, 5), *MXFP4).T)


def test_signs_drawn_anew_are_the_same_for_both_factors() -> None:
    exact = Operand("e8m23")
    recipe = Recipe("anew", dgrad=Product(exact, exact, 128, fresh=True), wgrad=Product(exact, exact, 16, fresh=True))
    layer = nn.Linear(40, 24, bias=False)
    attached(layer, recipe)
    x, g = spread(96, 40, seed=1).requires_grad_(), spread(96, 24, seed=2)
    for _ in range(2):
        dx, dw = torch.autograd.grad(layer(x), (x, layer.weight), g)
        close(dx, g.double() @ layer.weight.detach().double())
        close(dw, g.double().T @ x.detach().double())


def test_the_gradients_of_quartet_are_unbiased() -> None:
    """Means over calls lie within five standard errors of the exact gradient, and each call rounds otherwise."""
    layer = nn.Linear(128, 8, bias=False)
    attached(layer, "quartet-ii")
    x, g = torch.randn(128, 128, generator=torch.Generator().manual_seed(0)), spread(128, 8, seed=2)
    draws = torch.stack([torch.autograd.grad(layer(x), layer.weight, g)[0].double() for _ in range(100)])
    error = draws.mean(0) - g.double().T @ x.double()
    assert float((error / (draws.std(0) / 10)).square().mean()) < 2  # 1 is expected of zero mean
    assert float(draws.std(0).min()) > 0


@pytest.mark.parametrize(("promote", "format"), [(128, "e8m7"), (None, "e8m7"), (64, "e8m13")])
def test_an_accumulator_of_few_bits(promote: int | None, format: str) -> None:
    """Step by step in float64, each running sum cut off to the format's bits."""
    bits = named(format).mantissa
    recipe = Recipe("short sums", accumulator=Accumulator(format, 32, promote))
    layer = nn.Linear(200, 3, bias=False)
    attached(layer, recipe)
    x = torch.randn(4, 200, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found = layer(x)
    wanted = np.zeros((4, 3), np.float32)
    running = np.zeros((4, 3), np.float32)
    for start in range(0, 200, 32):
        part = (x[:, start : start + 32] @ layer.weight[:, start : start + 32].T).detach().numpy()
        mantissa, exponent = np.frexp(running + part)
        running = np.ldexp(np.trunc(mantissa * 2 ** (bits + 1)) / 2 ** (bits + 1), exponent).astype(np.float32)
        if promote and (start + 32) % promote == 0:
            wanted, running = wanted + running, np.zeros_like(running)
    np.testing.assert_array_equal(found.numpy(), wanted + running)
    assert not torch.equal(found, x @ layer.weight.T)


STOCHASTIC = Recipe(
    "noise",
    fprop=(Operand("e2m1", MX(rule="ceil"), "stochastic"), Operand("e2m1", MX(rule="ceil"))),
    dgrad=(Operand("e2m1", MX(rule="ceil"), "stochastic"), None),
    wgrad=Product(Operand("e2m1", MX(rule="ceil"), "stochastic"), None, hadamard=16),
)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(24, 20), nn.Tanh(), nn.Linear(20, 3))


def batch(number: int) -> Tensor:
    return torch.randn(8, 2, 4, 4, generator=torch.Generator().manual_seed(number))


def steps(net: nn.Module, optimizer: torch.optim.Optimizer, numbers: range, evaluate: bool = False) -> None:
    for number in numbers:
        optimizer.zero_grad()
        net(batch(number)).square().mean().backward()
        optimizer.step()
        if evaluate:
            net.eval()
            with torch.no_grad():
                net(batch(0))
            net.train()


def same(one: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(*pair) for pair in zip(one.parameters(), other.parameters(), strict=True))


def test_a_resumed_run_is_the_same_run_and_evaluation_changes_nothing() -> None:
    whole, parts, plain = network(), network(), network()
    torch.manual_seed(1)
    optimizer, *_ = attached(whole, STOCHASTIC)
    steps(whole, optimizer, range(6), evaluate=True)
    torch.manual_seed(1)
    optimizer, lever, handle = attached(parts, STOCHASTIC)
    steps(parts, optimizer, range(3))
    file = io.BytesIO()
    torch.save({"lever": lever.state_dict(), "net": parts.state_dict(), "rng": torch.get_rng_state()}, file)
    handle.remove()
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    resumed = network()
    resumed.load_state_dict(saved["net"])
    optimizer, lever, _ = attached(resumed, STOCHASTIC)
    lever.load_state_dict(saved["lever"])
    torch.set_rng_state(saved["rng"])
    steps(resumed, optimizer, range(3, 6))
    assert same(whole, resumed)
    steps(plain, torch.optim.SGD(plain.parameters(), lr=0.01), range(6))
    assert not same(whole, plain)
    other = network()
    torch.manual_seed(1)
    optimizer, *_ = attached(other, STOCHASTIC, seed=1)
    steps(other, optimizer, range(6))
    assert not same(whole, other)


@pytest.mark.parametrize("reentrant", [True, False])
def test_under_activation_checkpointing_the_pass_computed_again_is_the_same(reentrant: bool) -> None:
    class Inner(nn.Module):
        def __init__(self, again: bool) -> None:
            super().__init__()
            self.net, self.again = network(), again

        def forward(self, x: Tensor) -> Tensor:
            inside = x.requires_grad_()
            out: Tensor = checkpoint(self.net, inside, use_reentrant=reentrant) if self.again else self.net(inside)
            return out

    found = []
    for again in (True, False):
        net = Inner(again)
        torch.manual_seed(3)
        meter = ShrinkageMeter(every=1)
        optimizer, *_ = attached(net, STOCHASTIC, meter=meter)
        steps(net, optimizer, range(2))
        found.append((net, meter.table().to_pylist()))
    assert same(found[0][0], found[1][0])
    assert repr(found[0][1]) == repr(found[1][1])


def test_under_autocast_results_have_its_dtype() -> None:
    layer = nn.Linear(64, 48)
    attached(layer, "mxfp4")
    x = spread(32, 64, seed=1).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.bfloat16
    rounded = along(x.detach().bfloat16(), *MXFP4) @ along(layer.weight.detach().bfloat16(), *MXFP4).T
    torch.testing.assert_close(
        y.detach().double(), rounded + layer.bias.detach(), rtol=2**-7, atol=2**-7 * rounded.abs().max()
    )
    y.sum().backward()
    assert x.grad is not None
    assert x.grad.dtype == layer.weight.grad.dtype == torch.float32  # type: ignore[union-attr]
    half = nn.Linear(64, 48).bfloat16()
    attached(half, "mxfp8")
    half(x.detach().bfloat16()).sum().backward()
    assert half.weight.grad is not None
    assert half.weight.grad.dtype == torch.bfloat16


@pytest.mark.parametrize("before", [True, False])
def test_a_compiled_network_computes_the_same(before: bool) -> None:
    net, plain = network(), network()
    compiled = torch.compile(net, backend="eager")
    if before:
        compiled(batch(0))
    attached(net, "mxfp4")
    attached(plain, "mxfp4")
    assert torch.equal(compiled(batch(0)), plain(batch(0)))
    assert not torch.equal(plain(batch(0)), network()(batch(0)))
    torch._dynamo.reset()
    whole = torch.compile(net, backend="eager", fullgraph=True)
    with pytest.raises(Exception, match="operands of products are rounded one by one"):
        whole(batch(1))


def test_layers_kept_and_full_precision_and_removal() -> None:
    net = network()
    recipe = recipe_named("mxfp4").replace(keep=Keep(("5",), first=0.34))
    _, lever, handle = attached(net, recipe)
    assert [(entry.name, reason) for entry, reason in lever.left_out if "matmul" in reason] == [
        ("0.weight", "matmul='mxfp4': among the first 1 of 3 layers, kept in full precision"),
        ("5.weight", "matmul='mxfp4': name matches keep pattern '5'"),
    ]
    exact, rounded = network()(batch(0)), net(batch(0))
    assert not torch.equal(exact, rounded)
    with lever.full_precision():
        assert torch.equal(net(batch(0)), exact)
        assert rounded_backward(net(batch(0))) is None
    copied = copy.deepcopy(net)
    copied[3].weight.data.zero_()
    assert not torch.equal(copied(batch(0)), rounded)
    assert torch.equal(net(batch(0)), rounded)
    handle.remove()
    assert torch.equal(net(batch(0)), exact)
    assert "forward" not in net[3].__dict__


@pytest.mark.filterwarnings("ignore:.*products with weights elsewhere are not:UserWarning")  # attention's
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("what", ["matmul", "activations"])
def test_the_fused_encoder_layer_of_torch_does_not_go_around_it(what: str, padded: bool) -> None:
    net = nn.TransformerEncoder(nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True), 2)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    inputs = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(0))
    padding = torch.arange(5) >= torch.tensor([[3], [5]]) if padded else None
    lever = LowPrecision(matmul="mxfp4-all-layers") if what == "matmul" else LowPrecision(activations="e2m1")
    handle = trimtab.attach(optimizer, lever, model=net)
    net.eval()
    trained = net(inputs, src_key_padding_mask=padding).detach()
    with torch.no_grad():
        evaluated = net(inputs, src_key_padding_mask=padding)
        torch.testing.assert_close(evaluated[:, :3], trained[:, :3])
        handle.remove()
        assert not torch.allclose(net(inputs, src_key_padding_mask=padding)[:, :3], trained[:, :3], atol=1e-2)
    assert not net.layers[0].linear1._forward_pre_hooks


def test_near_the_end_products_are_exact() -> None:
    net, plain = network(), network()
    optimizer, lever, _ = attached(net, recipe_named("mxfp4").replace(until=0.5), total_steps=4)
    steps(net, optimizer, range(2))
    plain.load_state_dict(net.state_dict())
    assert torch.equal(net(batch(7)), plain(batch(7)))
    assert lever.step == 2
    net = network()
    optimizer, *_ = attached(net, recipe_named("mxfp4").replace(until=0.51), total_steps=4)
    steps(net, optimizer, range(2))
    plain.load_state_dict(net.state_dict())
    assert not torch.equal(net(batch(7)), plain(batch(7)))


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="unknown recipe 'mxfp44'; did you mean mxfp4"):
        LowPrecision(matmul="mxfp44")
    with pytest.raises(ValueError, match="there is nothing that -no-hadamard would change"):
        LowPrecision(matmul="mxfp8-no-hadamard")
    with pytest.raises(TypeError, match="a recipe is a name or"):
        LowPrecision(matmul=3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"matmul='mxfp8' computes the products of .* in Embedding there is none"):
        attached(nn.Embedding(4, 4), "mxfp8")
    with pytest.raises(ValueError, match=r"all 1 stay in full precision .*keep pattern '\*head'"):
        attached(nn.ModuleDict({"head": nn.Linear(2, 2)}), "mxfp8")
    with pytest.raises(TypeError, match=r"this is a product of float64; use model.float\(\)"):
        attached(network().double(), "mxfp8")
    with pytest.raises(ValueError, match="model=model"):
        trimtab.attach(torch.optim.SGD(network().parameters()), LowPrecision(matmul="mxfp8"))
    with pytest.raises(ValueError, match="give total_steps"):
        LowPrecision(matmul=recipe_named("mxfp8").replace(until=0.9))
    with pytest.raises(ValueError, match="power of two, got 24"):
        Product(hadamard=24)
    with pytest.raises(ValueError, match="give hadamard the same size, got 16"):
        Product(Operand("e2m1", MSEden()), hadamard=16)
    with pytest.raises(ValueError, match="lie along its product's contraction"):
        Operand("e2m1", MX(dim=0))
    with pytest.raises(ValueError, match="rounds nothing"):
        Recipe("nothing")
    with pytest.raises(ValueError, match="oscillation watches"):
        LowPrecision("e4m3", oscillation=5)
    net = network()
    net[5].double()
    with pytest.raises(TypeError, match="float64"):
        attached(net, "mxfp8")
    assert not any("forward" in layer.__dict__ for layer in net)
    net[5].float()
    attached(net, "mxfp8")
    with pytest.raises(ValueError, match="replaced already"):
        attached(net, "mxfp8")
    with pytest.raises(TypeError, match="float64"):
        net.double()(batch(0).double())


def test_the_meter_tells_products_and_layers_apart() -> None:
    net = network()
    meter = ShrinkageMeter(every=2)
    optimizer, *_ = attached(net, "mxfp4", meter=meter, oscillation=4)
    steps(net, optimizer, range(3), evaluate=True)
    rows = [row for row in meter.table().to_pylist() if row["step"] == 2]
    kinds = {row["kind"] for row in rows}
    assert kinds == {
        "fprop", "dgrad", "wgrad", "fprop activation", "fprop weight", "dgrad gradient", "dgrad weight", "wgrad gradient",
        "wgrad activation",
    }  # fmt: skip
    by = {(row["kind"], row["layer"]): row for row in rows}
    assert by["fprop weight", "3"]["n"] == 24 * 20
    assert by["wgrad activation", "0"]["n"] == 8 * 4 * 18
    assert by["dgrad gradient", "5"]["n"] == 8 * 3
    assert math.isnan(by["dgrad gradient", "0"]["projection"])  # the input needs no gradient
    for row in rows:
        assert (row["loss_gap"] is None) == (row["kind"] != "fprop")
        if row["n"]:
            whole = row["noise_to_signal"] ** 2 + (1 - row["projection"]) ** 2
            assert row["scale_bias"] + row["dead_zone"] + row["grid_noise"] == pytest.approx(whole, rel=1e-9)
    assert 0 <= by["fprop weight", "3"]["oscillating"] < 1
    assert by["dgrad weight", "3"]["oscillating"] is None


@pytest.mark.parametrize("set_to_none", [True, False])
def test_a_step_that_a_scaler_skips_leaves_nothing_in_the_measurement(set_to_none: bool) -> None:
    found = []
    for skips in (False, True):
        net = network()
        meter = ShrinkageMeter(every=1)
        optimizer, *_ = attached(net, "fp8-tensor", meter=meter)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
        for times in ([torch.inf] if skips else []) + [1.0, 1.0]:
            for micro in range(2):
                scaler.scale(net(batch(micro)).square().mean() * times).backward()
            before = net[0].weight.detach().clone()
            scaler.step(optimizer)
            assert torch.equal(before, net[0].weight) == (times == torch.inf)
            scaler.update(2.0**10)
            optimizer.zero_grad(set_to_none)
        found.append(meter.table().to_pylist())
    assert str(found[0]) == str(found[1])  # NaN is no number that equals itself
    assert {row["step"] for row in found[1]} == {0, 1}
    assert all(math.isfinite(row["norm_ratio"]) for row in found[1] if row["n"] and row["layer"] == "5")


def test_the_loss_gap_is_that_of_the_loss_to_first_order() -> None:
    """Operands that lose little: the loss of exact ones lies below by what the meter says."""
    fine = Operand("e8m9")
    net = network()
    meter = ShrinkageMeter(every=1)
    optimizer, lever, _ = attached(net, Recipe("fine", fprop=(fine, fine)), meter=meter)
    x, target = batch(0), torch.randn(8, 3, generator=torch.Generator().manual_seed(1))
    loss = (net(x) - target).square().mean()
    loss.backward()
    with lever.full_precision():
        exact = (net(x).double() - target).square().mean()
    optimizer.step()
    rows = {row["layer"]: row for row in meter.table().to_pylist() if row["kind"] == "fprop"}
    assert rows["(global)"]["loss_gap"] == pytest.approx(float(loss.detach().double() - exact.detach()), rel=0.05)
    assert rows["(global)"]["loss_gap"] == pytest.approx(sum(rows[name]["loss_gap"] for name in ("0", "3", "5")))
    assert {row["kind"] for row in meter.table().to_pylist()} == {"fprop", "fprop activation", "fprop weight"}


def test_under_a_scaler_the_loss_gap_is_that_times_the_scale() -> None:
    """The lever sees the backward pass alone, which does not tell who multiplied the loss."""
    found = []
    for scale in (1.0, 1024.0):
        net = network()
        meter = ShrinkageMeter(every=1)
        optimizer, *_ = attached(net, "mxfp4", meter=meter)
        scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        scaler.scale(net(batch(0)).square().mean()).backward()
        scaler.step(optimizer)
        rows = {row["layer"]: row for row in meter.table().to_pylist() if row["kind"] == "fprop"}
        found.append(rows["(global)"]["loss_gap"])
    assert found[0] != 0
    assert found[1] == pytest.approx(1024 * found[0], rel=1e-5)


@pytest.mark.parametrize("name", ["mxfp4", "fp8-deepseek", "nvfp4-all-layers", "fp8-tensor-all-layers"])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_shows_as_far_as_its_scale_reaches(name: str, bad: float) -> None:
    """A block's row of the output; all of it where the tensor has a scale."""
    layer = nn.Linear(64, 8)
    attached(layer, name)
    x = torch.randn(4, 64, generator=torch.Generator().manual_seed(0))
    x[2, 40] = bad
    alone = name in ("mxfp4", "fp8-deepseek")
    assert layer(x).isfinite().all(1).tolist() == [alone, alone, False, alone]


def test_state_of_another_recipe_is_refused() -> None:
    lever = LowPrecision(matmul="mxfp4")
    with pytest.raises(ValueError, match="the saved settings"):
        LowPrecision(matmul="mxfp8").load_state_dict(lever.state_dict())
    assert repr(lever) == "LowPrecision(matmul=mxfp4, min_ndim=2)"
    assert "rounding=nearest, matmul=mxfp4" in repr(LowPrecision("e4m3", matmul="mxfp4"))


def test_every_named_recipe_says_where_it_is_from() -> None:
    for name, recipe in RECIPES.items():
        assert recipe.name == name
        assert "arXiv" in recipe.source
