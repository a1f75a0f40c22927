"""Multiply-adds against hand counts and PyTorch's own flop counter; the model is left bit-equal."""

from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils import parametrizations, prune
from torch.utils.flop_counter import FlopCounterMode

from trimtab.observe import summary
from trimtab.parameters import Rule


def oracle(model: nn.Module, *given: Tensor) -> float:
    """Half the floating-point operations PyTorch counts, with every fused kernel opened up."""
    with ExitStack() as stack:
        torch.backends.mha.set_fastpath_enabled(False)
        stack.callback(torch.backends.mha.set_fastpath_enabled, True)
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        stack.enter_context(torch.no_grad())
        counter = stack.enter_context(FlopCounterMode(display=False))
        model.eval()(*given)
        return counter.get_total_flops() / 2


class Attention(nn.Module):
    """Attention as Vision Transformers write it, with the fused function."""

    def __init__(self, width: int = 12, heads: int = 3) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        parts = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(*parts.unbind(0))
        return self.out(y.transpose(1, 2).flatten(2))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 6)
        self.head = nn.Linear(6, 20, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, index: Tensor) -> Tensor:
        return self.head(self.embed(index))


class Functional(nn.Module):
    """Uses a weight by hand, twice, once transposed."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(5, 7))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.kernel) @ self.kernel


HAND: list[tuple[str, Callable[[], nn.Module], tuple[int, ...], int]] = [
    ("linear", lambda: nn.Linear(4, 3), (2, 4), 2 * 4 * 3),
    ("linear, leading dims", lambda: nn.Linear(4, 3), (2, 5, 6, 4), 2 * 5 * 6 * 4 * 3),
    ("linear, one vector", lambda: nn.Linear(4, 3), (4,), 4 * 3),
    ("linear, no bias", lambda: nn.Linear(4, 3, bias=False), (4,), 4 * 3),
    ("conv", lambda: nn.Conv2d(3, 8, 3), (2, 3, 6, 7), 2 * 4 * 5 * 8 * 3 * 9),
    ("conv, padded", lambda: nn.Conv2d(3, 8, 3, padding=1), (1, 3, 6, 7), 6 * 7 * 8 * 3 * 9),
    ("conv, stride", lambda: nn.Conv2d(3, 8, 3, stride=2, padding=1), (1, 3, 6, 7), 3 * 4 * 8 * 3 * 9),
    ("conv, dilation", lambda: nn.Conv2d(3, 8, 3, dilation=2), (1, 3, 6, 7), 2 * 3 * 8 * 3 * 9),
    ("conv, groups", lambda: nn.Conv2d(4, 8, 3, groups=2), (1, 4, 5, 5), 9 * 8 * 2 * 9),
    ("conv, depthwise", lambda: nn.Conv2d(4, 4, 3, groups=4), (1, 4, 5, 5), 9 * 4 * 9),
    ("conv, circular", lambda: nn.Conv2d(2, 2, 3, padding=1, padding_mode="circular"), (1, 2, 5, 5), 25 * 2 * 2 * 9),
    ("conv 1d", lambda: nn.Conv1d(3, 5, 4, stride=3), (2, 3, 13), 2 * 4 * 5 * 3 * 4),
    ("conv 3d", lambda: nn.Conv3d(1, 2, 2), (1, 1, 3, 3, 3), 8 * 2 * 8),
    ("transposed", lambda: nn.ConvTranspose2d(3, 5, 4, stride=2), (1, 3, 6, 7), 6 * 7 * 3 * 5 * 16),
    ("transposed, groups", lambda: nn.ConvTranspose1d(4, 6, 3, groups=2), (2, 4, 5), 2 * 5 * 4 * 3 * 3),
    ("attention", Attention, (2, 5, 12), 2 * 5 * 12 * 48 + 2 * (2 * 5 * 5 * 12)),
    ("functional", Functional, (3, 7), 2 * 3 * 5 * 7),
    ("nothing", lambda: nn.Sequential(nn.BatchNorm2d(3), nn.ReLU(), nn.MaxPool2d(2)), (1, 3, 4, 4), 0),
]


@pytest.mark.parametrize(("build", "shape", "count"), [case[1:] for case in HAND], ids=[case[0] for case in HAND])
def test_hand_counted(build: Callable[[], nn.Module], shape: tuple[int, ...], count: int) -> None:
    found = summary(build(), input_shape=shape)
    assert found.dense_multiply_adds == count
    assert found.sparse_multiply_adds == count
    assert found.uncounted == ()


@settings(max_examples=40, deadline=None)
@given(
    channels=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    groups=st.integers(1, 3),
    kernel=st.integers(1, 3),
    stride=st.integers(1, 3),
    padding=st.integers(0, 2),
    dilation=st.integers(1, 2),
    transposed=st.booleans(),
)
def test_convolutions_against_the_flop_counter(
    channels: tuple[int, int], groups: int, kernel: int, stride: int, padding: int, dilation: int, transposed: bool
) -> None:
    kind = nn.ConvTranspose2d if transposed else nn.Conv2d
    inputs, outputs = channels[0] * groups, channels[1] * groups
    model = kind(inputs, outputs, kernel, stride, padding, groups=groups, dilation=dilation)
    given = torch.randn(2, inputs, 9, 8)
    assert summary(model, given).dense_multiply_adds == oracle(model, given)


@pytest.mark.parametrize("need_weights", [True, False])
def test_multihead_attention(need_weights: bool) -> None:
    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(16, 4, batch_first=True)

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return self.attention(x, y, y, need_weights=need_weights)[0]

    model, queries, keys = Wrapped(), torch.randn(2, 5, 16), torch.randn(2, 7, 16)
    found = summary(model, (queries, keys))
    products = 2 * 5 * 7 * 16 * 2
    projections = 2 * 5 * 16 * 16 + 2 * 2 * 7 * 16 * 16
    rows = {row.name: row for row in found.layers}
    assert rows["attention"].dense_multiply_adds == projections + products
    assert rows["attention.out_proj"].dense_multiply_adds == 2 * 5 * 16 * 16
    assert found.dense_multiply_adds == oracle(model, queries, keys)

    with torch.no_grad():  # the query's part of the packed weight: its products go, the others stay
        model.attention.in_proj_weight[:16] = 0.0
    assert summary(model, (queries, keys)).sparse_multiply_adds == found.dense_multiply_adds - 2 * 5 * 16 * 16


def test_transformer_layer_and_recurrent_layer() -> None:
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True).eval()
    given = torch.randn(2, 8, 16)
    assert summary(layer, given).dense_multiply_adds == oracle(layer, given)
    lstm = nn.LSTM(6, 5, batch_first=True)
    assert summary(lstm, torch.randn(2, 3, 6)).dense_multiply_adds == 2 * 3 * 4 * 5 * (6 + 5)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1000), sparsity=st.floats(0, 1))
def test_sparse_products_are_those_with_a_non_zero_weight(seed: int, sparsity: float) -> None:
    """Oracle: run with weights replaced by 1 where they are not zero and inputs of 1: outputs count the products."""
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(2, 4, 2, stride=2, bias=False), nn.ConvTranspose2d(4, 2, 2, stride=2, bias=False), nn.Flatten()
    ).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.masked_fill_(torch.rand_like(parameter) < sparsity, 0.0)
        counted = 0
        given = torch.ones(1, 2, 6, 6, dtype=torch.float64)
        for module in list(model)[:2]:
            ones = copy.deepcopy(module)
            ones.weight.copy_((module.weight != 0).double())
            counted += int(ones(torch.ones_like(given)).sum())
            given = module(given)
    assert summary(model, torch.ones(1, 2, 6, 6).double()).sparse_multiply_adds == counted


def test_tied_weights_count_once_and_work_at_each_use() -> None:
    model = Tied()
    with torch.no_grad():
        model.embed.weight[:5] = 0.0
    found = summary(model, torch.zeros(3, 4, dtype=torch.int64))
    assert found.parameters == 120
    assert found.nonzeros == 90
    rows = {row.name: row for row in found.layers}
    assert (rows["embed"].parameters, rows["embed"].dense_multiply_adds) == (120, 0)
    assert (rows["head"].parameters, rows["head"].dense_multiply_adds) == (0, 12 * 120)
    assert rows["head"].sparse_multiply_adds == 12 * 90


def test_a_shared_module_works_twice() -> None:
    layer = nn.Linear(4, 4)
    found = summary(nn.Sequential(layer, nn.ReLU(), layer), input_shape=(1, 4))
    assert found.parameters == 20
    assert found.dense_multiply_adds == 32


def test_masked_and_reparametrised_weights() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8 * 36, 4))
    prune.l1_unstructured(model[0], "weight", 0.5)
    parametrizations.weight_norm(model[2])
    found = summary(model, input_shape=(1, 3, 8, 8))
    assert found.dense_multiply_adds == 36 * 216 + 8 * 36 * 4
    assert found.sparse_multiply_adds == 36 * 108 + 8 * 36 * 4


def test_activations_with_zeros_do_not_count_as_sparse() -> None:
    class Products(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.relu() @ x.mT

    found = summary(Products(), torch.randn(2, 3, 4))
    assert found.dense_multiply_adds == found.sparse_multiply_adds == 2 * 3 * 3 * 4


def test_weights_written_over_by_activations_are_activations() -> None:
    class Overwritten(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(4, 4))

        def forward(self, x: Tensor) -> Tensor:
            held = self.weight * 2
            held += x
            return x @ held

    found = summary(Overwritten(), torch.randn(4, 4))
    assert found.sparse_multiply_adds == found.dense_multiply_adds == 64


def test_totals_sparsity_and_text() -> None:
    model = nn.Sequential(nn.Linear(10, 10), nn.BatchNorm1d(10), nn.Linear(10, 2))
    with torch.no_grad():
        model[0].weight.view(-1)[:90] = 0.0
        model[0].bias.zero_()
    found = summary(model, input_shape=(1, 10))
    assert (found.parameters, found.prunable) == (152, 120)
    assert found.sparsity == 0.75
    assert found.sparsity_total == (90 + 10 + 10) / 152  # weights, one bias, BatchNorm's bias
    assert found.speed_up == 120 / 30
    assert found.rows()[-1].parameters == sum(row.parameters for row in found.layers)
    assert "75.00% of the prunable weights" in str(found)
    assert len({len(line) for line in str(found).splitlines()[:-1]}) == 1  # aligned
    chosen = summary(model, rule=Rule(include=("2.*",)))
    assert chosen.prunable == 20
    assert chosen.layers[0].dense_multiply_adds is None
    with pytest.raises(ValueError, match="give summary an example_input"):
        _ = chosen.dense_multiply_adds


class Restless(nn.Module):
    """Everything a forward pass can disturb."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        self.drop = nn.Dropout(0.5)
        self.conv = nn.Conv2d(3, 4, 3)
        self.register_buffer("calls", torch.tensor([0.0, float("nan")]))
        self.frozen = nn.BatchNorm1d(4).eval()

    def forward(self, x: Tensor) -> Tensor:
        self.calls[0] += 1
        torch.rand(3)
        return self.frozen(self.conv(self.drop(self.norm(x))).mean((2, 3)))


def test_leaves_the_model_bit_equal() -> None:
    model = Restless().train()
    model.frozen.eval()
    model(torch.randn(2, 3, 5, 5)).sum().backward()
    state = {name: (tensor, tensor.clone()) for name, tensor in model.state_dict(keep_vars=True).items()}
    gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    modes = [module.training for module in model.modules()]
    random_state = torch.get_rng_state()
    hooks = [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()]
    summary(model, torch.randn(2, 3, 5, 5, generator=torch.Generator().manual_seed(1)))
    for name, (tensor, before) in state.items():
        now = model.state_dict(keep_vars=True)[name]
        assert now is tensor
        assert torch.equal(now.reshape(-1).view(torch.uint8), before.reshape(-1).view(torch.uint8))
    assert all(torch.equal(parameter.grad, gradients[name]) for name, parameter in model.named_parameters())
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), random_state)
    assert [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()] == hooks


def test_leaves_the_model_alone_when_it_fails() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Dropout()).train()
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        summary(model, torch.zeros(2, 5))
    assert model.training
    assert model[1].training
    assert not model[0]._forward_hooks
    assert torch.backends.mha.get_fastpath_enabled()


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="not both"):
        summary(nn.Linear(2, 2), torch.zeros(1, 2), input_shape=(1, 2))
    with pytest.raises(ValueError, match="positive integers"):
        summary(nn.Linear(2, 2), input_shape=(0, 2))
    with pytest.raises(ValueError, match="meta"):
        summary(nn.Linear(2, 2, device="meta"))


def test_named_arguments_and_dtype() -> None:
    assert summary(nn.Bilinear(2, 3, 4), {"input1": torch.ones(1, 2), "input2": torch.ones(1, 3)}).uncounted == (
        "_trilinear",
    )
    assert summary(nn.Linear(4, 4).to(torch.bfloat16), input_shape=(1, 4)).dense_multiply_adds == 16


@pytest.mark.slow
def test_compiled_models_are_counted_eagerly() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    whole = torch.compile(model, backend="eager")
    whole(torch.ones(1, 4))
    assert summary(whole, input_shape=(3, 4)) == summary(model, input_shape=(3, 4))
    assert summary(whole, input_shape=(3, 4)).dense_multiply_adds == 3 * 24
    model[0].compile(backend="eager")
    assert summary(model, input_shape=(3, 4)).dense_multiply_adds == 3 * 24


def test_does_not_import_the_compiler() -> None:
    code = (
        "import sys, torch; from trimtab.observe import summary; "
        "summary(torch.nn.Linear(2, 2), input_shape=(1, 2)); sys.exit('torch._dynamo.symbolic_convert' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
