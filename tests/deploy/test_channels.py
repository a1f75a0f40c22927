"""Channels that go for good: the same function where they were zero, exact budgets, what stays and why, refusals."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.pruning.nets import bits
from trimtab.deploy import remove_channels
from trimtab.models.cifar_resnet import resnet8
from trimtab.pruning import gate_channels

pytest.importorskip("torch_pruning")
IMAGES = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def residual() -> nn.Module:
    torch.manual_seed(0)
    net = resnet8(10, 3)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.2, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
    return net


class Mixed(nn.Module):
    """Depthwise and grouped convolutions, a concatenation, a flatten into a Linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(3, 4, 3, padding=1)
        self.depthwise = nn.Conv2d(10, 10, 3, padding=1, groups=10)
        self.grouped = nn.Conv2d(10, 8, 1, groups=2)
        self.last = nn.Conv2d(8, 5, 3, stride=4)
        self.fc = nn.Linear(5 * 4 * 4, 7)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([torch.relu(self.left(x)), torch.relu(self.right(x))], 1)
        x = torch.relu(self.grouped(torch.relu(self.depthwise(x))))
        return self.fc(torch.relu(self.last(x)).flatten(1))


def test_without_channels_that_were_zero_the_network_computes_the_same() -> None:
    net = residual()
    smaller = remove_channels(net, IMAGES, 0.4, score="random")
    masked = copy.deepcopy(net).eval()
    for name, members, _, _ in smaller.groups:
        gone = smaller.removed[name]
        for member in members:
            module = masked.get_submodule(member)
            if isinstance(module, nn.BatchNorm2d):
                module.weight.data[gone] = 0
                module.bias.data[gone] = 0
    with torch.no_grad():
        torch.testing.assert_close(smaller.model.eval()(IMAGES), masked(IMAGES), rtol=1e-4, atol=1e-5)
        assert not torch.allclose(masked(IMAGES), net.eval()(IMAGES), atol=1e-2)


def test_exactly_the_asked_number_goes_and_the_model_stays() -> None:
    net = residual().train()
    before = bits(net)
    smaller = remove_channels(net, IMAGES, 0.5)
    channels = sum(row[2] for row in smaller.groups)
    assert sum(row[3] for row in smaller.groups) == channels - int(0.5 * channels + 0.5)
    assert bits(net) == before
    assert net.training
    assert smaller.model.training
    assert smaller.parameters[0] == sum(p.numel() for p in net.parameters())
    assert smaller.parameters[1] == sum(p.numel() for p in smaller.model.parameters())
    assert smaller.multiply_adds[1] < 0.5 * smaller.multiply_adds[0]
    assert all(p.grad is None and p.requires_grad for p in smaller.model.parameters())
    smaller.model(IMAGES).sum().backward()
    assert "fc" in dict(smaller.left_out)
    assert "stays: its channels are those of the output" in smaller.describe()
    assert smaller.latency(2, budget=0.01).ratio > 0


@pytest.mark.parametrize(("budget", "place"), [("parameters", 0), ("multiply_adds", 1)])
def test_a_budget_is_met_by_the_fewest_channels(budget: Any, place: int) -> None:
    net = residual()
    smaller = remove_channels(net, IMAGES, 0.3, budget=budget)
    before, after = (smaller.parameters, smaller.multiply_adds)[place]
    assert after <= 0.7 * before
    count = sum(row[2] - row[3] for row in smaller.groups)
    total = sum(row[2] for row in smaller.groups)
    one_less = remove_channels(net, IMAGES, (count - 1) / total)
    assert (one_less.parameters, one_less.multiply_adds)[place][1] > 0.7 * before


def test_layers_lose_alike_and_counts_are_rounded_on_demand() -> None:
    net = residual()
    alike = remove_channels(net, IMAGES, 0.3, scope="layer")
    assert all(after == before - int(0.3 * before + 0.5) for _, _, before, after in alike.groups)
    rounded = remove_channels(net, IMAGES, 0.3, scope="layer", round_to=8)
    assert all(after % 8 == 0 and after >= before * 0.7 for _, _, before, after in rounded.groups)


def test_concatenations_flattened_inputs_and_depthwise_layers_follow() -> None:
    net = Mixed()
    smaller = remove_channels(net, IMAGES, 0.5, scope="layer")
    assert smaller.model(IMAGES).shape == (2, 7)
    left, reasons = {row[0]: row[3] for row in smaller.groups}, dict(smaller.left_out)
    assert left["last"] == 5 - 3
    assert smaller.model.fc.in_features == 2 * 16
    assert "fc" in reasons
    assert {"left", "right", "grouped"} & reasons.keys(), "what reaches a grouped convolution stays"
    assert all("group" in reasons[name] for name in ("left", "right", "grouped") if name in reasons)


def test_a_group_keeps_its_last_channels_and_others_go_instead() -> None:
    net = residual()

    def score(group: Any) -> Tensor:  # the first block's channels are the least of all
        size = len(group[0].idxs)
        return torch.arange(size) * 1e-6 if size == 16 else 1 + torch.arange(size, dtype=torch.float32)

    with pytest.warns(UserWarning, match=r"conv1.*others went instead"):
        smaller = remove_channels(net, IMAGES, 0.5, score=score, min_kept=2)
    assert min(row[3] for row in smaller.groups) == 2
    assert sum(row[2] - row[3] for row in smaller.groups) == sum(row[2] for row in smaller.groups) // 2
    assert smaller.kept_up
    with pytest.raises(ValueError, match="would keep fewer than 2 channels: conv1"):
        remove_channels(net, IMAGES, 0.5, score=score, min_kept=2, on_collapse="raise")


def test_ignored_layers_stay() -> None:
    smaller = remove_channels(residual(), IMAGES, 0.5, ignore=("conv1", "stages.2.*"))
    reasons = dict(smaller.left_out)
    assert reasons["conv1"] == "named in ignore"
    assert smaller.model.conv1.out_channels == 16


class Tied(nn.Module):
    """Two layers of one weight, and a layer between them that reads the channels of the first."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False)
        self.second.weight = self.first.weight
        self.wide, self.narrow = nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.relu(self.narrow(torch.relu(self.wide(torch.relu(self.first(x)))))))


def test_channels_of_tied_weights_stay() -> None:
    net, rows = Tied(), torch.randn(4, 8)
    before = bits(net)
    smaller = remove_channels(net, rows, 0.5)
    assert [(name, size, left) for name, _, size, left in smaller.groups] == [("wide", 16, 8)]
    reasons = dict(smaller.left_out)
    assert "tied weights: first.weight and second.weight are one" in reasons["first"]
    assert "tied weights: first.weight and second.weight are one" in reasons["narrow"]
    assert smaller.model.first.weight is smaller.model.second.weight  # type: ignore[union-attr]
    with pytest.raises(ValueError, match=r"no group of channels that can go .*tied weights"):
        remove_channels(net, rows, 0.5, ignore=("wide",))
    assert bits(net) == before


def test_bad_input_is_named_and_the_model_stays() -> None:
    net = residual()
    before = bits(net)
    for settings, message in (
        ({"sparsity": 1.0}, r"sparsity must lie in \[0, 1\)"),
        ({"budget": "bytes"}, "budget must be one of"),
        ({"score": "l1"}, "score must be one of"),
        ({"scope": "row"}, "scope must be one of"),
        ({"scope": "layer", "budget": "parameters"}, "needs scope 'global'"),
        ({"min_kept": 0}, "min_kept must be"),
        ({"score": lambda group: torch.full((len(group[0].idxs),), float("nan"))}, r"the score of \S+ holds NaN"),
        ({"score": lambda group: torch.ones(3)}, "one number for each of"),
        ({"sparsity": 0.99, "min_kept": 15}, "cannot go while each of"),
        ({"sparsity": 0.99, "budget": "parameters", "min_kept": 15}, "stay when all"),
        ({"ignore": ("*",)}, "has no group of channels that can go"),
    ):
        with pytest.raises(ValueError, match=message):
            remove_channels(net, IMAGES, **settings)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="example must be"):
        remove_channels(net, torch.zeros(0, 3, 16, 16))
    assert bits(net) == before


def test_an_encoder_is_counted_as_it_computes_and_not_as_its_fast_path_hides_it() -> None:
    layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)
    net = nn.Sequential(nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Linear(16, 5)).eval()
    smaller = remove_channels(net, torch.randn(1, 6, 16), 0.5)
    # queries, keys, values and the outputs, the attention of all pairs, the perceptron; twice, and the last layer
    attention, perceptron = 6 * 4 * 16 * 16 + 2 * 6 * 6 * 16, 6 * 2 * 16 * 32
    assert smaller.multiply_adds[0] == 2 * (attention + perceptron) + 6 * 16 * 5
    gone = sum(before - left for _, _, before, left in smaller.groups)
    assert smaller.multiply_adds[1] == smaller.multiply_adds[0] - gone * 6 * 2 * 16


def test_channels_of_computed_weights_stay() -> None:
    normed = nn.utils.parametrizations.weight_norm
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), normed(nn.Linear(8, 8)), nn.ReLU(), nn.Linear(8, 2))
    with pytest.raises(ValueError, match=r"no group of channels that can go .*weight of 2 is computed from others"):
        remove_channels(net, torch.randn(2, 4), 0.5)
    assert [tuple(p.shape) for p in net.parameters()] == [(8, 4), (8,), (8,), (8, 1), (8, 8), (2, 8), (2,)]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_parameters_without_finite_values_are_named(value: float) -> None:
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    net[0].bias.data[3] = value  # type: ignore[union-attr]
    with pytest.raises(ValueError, match=r"0\.bias holds NaN or infinite values in 1 of 8 places"):
        remove_channels(net, torch.randn(2, 4), 0.5)
    with pytest.raises(ValueError, match=r"0\.weight is on the meta device"):
        remove_channels(net.to("meta"), torch.randn(2, 4), 0.5)


def test_what_torch_pruning_searches_for_ever_stays() -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}
    config = transformers.LlamaConfig(vocab_size=40, num_key_value_heads=2, use_cache=False, **sizes)
    net, tokens = transformers.LlamaForCausalLM(config).eval(), torch.randint(40, (2, 6))
    smaller = remove_channels(net, tokens, 0.5)
    endless = [name for name, reason in smaller.left_out if "has no end in torch-pruning" in reason]
    assert sorted(name.rpartition(".")[2] for name in endless) == ["k_proj", "q_proj", "v_proj"]
    assert any("gate_proj" in ", ".join(members) for _, members, before, left in smaller.groups if left < before)
    assert smaller.model(tokens).logits.shape == (2, 6, 40)
    gates = gate_channels(net, tokens)
    assert {name for name, reason in gates.left_out if "no end" in reason} == set(endless)
