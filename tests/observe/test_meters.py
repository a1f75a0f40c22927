"""Meters: closed forms, float64, the vectors of the method sheets, accumulation, ranks, and that nothing is changed."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import trimtab
from tests.distributed import on_two_ranks
from trimtab.observe import (
    ActivationStatistics,
    AttentionStatistics,
    GradientNoiseScale,
    GradientTracker,
    Meter,
    NLMCosine,
    SoftmaxCollapse,
    UpdateRatio,
    softmax_collapse,
)
from trimtab.observe.meters.attention import attention_statistics


def wave(*shape: int, seed: int = 0) -> Tensor:
    k = torch.arange(math.prod(shape), dtype=torch.float64)
    return ((1.3 * k + 0.7 * seed).sin() + 0.5 * (0.37 * k * k + seed).cos()).reshape(shape)


def attached(net: nn.Module, *levers: Any, lr: float = 0.1) -> torch.optim.Optimizer:
    optimizer = torch.optim.SGD(net.parameters(), lr=lr)
    trimtab.attach(optimizer, *levers, model=net)
    return optimizer


# Update ratio and cosine


def test_the_update_ratio_is_the_steps_length_over_the_weights() -> None:
    net = nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 3)).double()
    meter = UpdateRatio()
    optimizer = attached(net, meter)
    before = [layer.weight.detach().clone() for layer in net]
    net(wave(6, 5)).square().sum().backward()
    optimizer.step()
    moved = [layer.weight.detach() - old for layer, old in zip(net, before, strict=True)]
    each = [float(a.norm() / b.norm()) for a, b in zip(moved, before, strict=True)]
    assert list(meter.layers().values()) == pytest.approx(each, rel=1e-12)
    signals = {name: float(value) for name, value in meter.signals().items()}
    joint = math.sqrt(sum(float(a.square().sum()) for a in moved) / sum(float(b.square().sum()) for b in before))
    expected = {"update_ratio": joint, "update_ratio_max": max(each), "update_ratio_min": min(each)}
    assert signals == pytest.approx(expected, rel=1e-12)


def test_the_cosine_equals_the_sheets_vector_and_is_one_where_a_step_only_scales() -> None:
    net = nn.Linear(4, 3, bias=False).double()
    net.weight.data, net.weight.grad = wave(3, 4, seed=1), wave(3, 4, seed=2)
    meter = NLMCosine()
    optimizer = attached(net, meter, lr=0.0)
    optimizer.step()
    assert float(meter.signals()["nlm_cosine"]) == pytest.approx(-0.5960537248, rel=1e-9)
    net.weight.grad = -3 * net.weight.detach()
    optimizer.step()
    assert meter.layers() == pytest.approx({"weight": 1.0})


# Noise scale


def _linear_steps(
    world: int, rank: int, parts: int, steps: int, batch: int = 4
) -> tuple[GradientNoiseScale, nn.Module]:
    """A linear model at fixed weights, whose data are drawn anew in each step."""
    net: nn.Module = nn.Linear(6, 1, bias=False).double()
    inner = net
    net.weight.data = 0.7 + wave(1, 6, seed=3)  # type: ignore[union-attr,operator]
    if world > 1:
        net = nn.parallel.DistributedDataParallel(net)
    meter = GradientNoiseScale(batch, decay=0.999)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
    trimtab.attach(optimizer, meter, model=net)
    generator = torch.Generator().manual_seed(rank)
    for _ in range(steps):
        optimizer.zero_grad()
        for part in range(parts):
            inputs = torch.randn(batch, 6, dtype=torch.float64, generator=generator)
            loss = (net(inputs) - 0.5 * torch.randn(batch, 1, dtype=torch.float64, generator=generator)).square().mean()
            if world > 1 and part < parts - 1:
                with net.no_sync():  # type: ignore[operator]
                    (loss / parts).backward()
            else:
                (loss / parts).backward()
        optimizer.step()
    return meter, inner


def _exact(weight: Tensor) -> tuple[float, float]:
    """|G|^2 and tr(Sigma) of g = 2 (x w - e) x, x normal, e normal of variance 1/4: from the moments of normal numbers."""
    w2, n = float(weight.square().sum()), weight.numel()
    signal = 4 * w2
    return signal, 4 * ((n + 2) * w2 + 0.25 * n) - signal


def test_the_noise_scale_is_within_a_tenth_of_the_exact_one_on_a_linear_model() -> None:
    meter, net = _linear_steps(1, 0, parts=4, steps=1000)
    signal, variance = _exact(net.weight.detach())  # type: ignore[arg-type]
    found = {name: float(value) for name, value in meter.signals().items()}
    assert found["noise_scale"] == pytest.approx(variance / signal, rel=0.1)
    assert found["noise_signal"] == pytest.approx(signal, rel=0.1)
    assert found["noise_variance"] == pytest.approx(variance, rel=0.1)


def test_the_formula_equals_the_sheets_vector() -> None:
    """Squared norms 9 of batches of 8 and 6 of the batch of 64, by two gradients of eight parts."""
    net = nn.Linear(2, 1, bias=False).double()
    meter = GradientNoiseScale(8)
    optimizer = attached(net, meter, lr=0.0)
    for part in range(8):  # mean (sqrt 6, 0), squared norms 9 each
        inputs = torch.tensor([[math.sqrt(6), math.sqrt(3) * (-1) ** part]], dtype=torch.float64)
        (net(inputs).sum() / 8).backward()
    optimizer.step()
    found = [float(meter.signals()[name]) for name in ("noise_signal", "noise_variance", "noise_scale")]
    assert found == pytest.approx([5.571428571, 27.42857143, 4.923076923], rel=1e-9)


def _noise_on_ranks(rank: int, world: int) -> list[float]:
    meter, net = _linear_steps(world, rank, parts=2, steps=700)
    signal, variance = _exact(net.weight.detach())  # type: ignore[arg-type]
    return [float(meter.signals()["noise_scale"]), variance / signal]


def test_ranks_are_parts_too() -> None:
    one, other = on_two_ranks(_noise_on_ranks)
    assert one[0] == other[0]
    assert one[0] == pytest.approx(one[1], rel=0.1)


def test_a_scaled_loss_gives_the_same_noise() -> None:
    found = []
    for scaler in (None, torch.amp.GradScaler("cpu", init_scale=256.0)):
        net = nn.Linear(2, 1, bias=False).double()
        net.weight.data = wave(1, 2)
        meter = GradientNoiseScale(1, scaler=scaler)
        optimizer = attached(net, meter)
        for seed in range(2):
            loss = net(wave(1, 2, seed=seed)).sum() / 2
            (loss if scaler is None else scaler.scale(loss)).backward()
        if scaler is None:
            optimizer.step()
        else:
            scaler.step(optimizer)
        found.append([float(value) for value in meter.signals().values()])
    assert found[0] == pytest.approx(found[1], rel=1e-12)


def test_a_single_part_is_refused() -> None:
    net = nn.Linear(2, 1)
    optimizer = attached(net, GradientNoiseScale(4))
    net(torch.ones(1, 2)).sum().backward()
    with pytest.raises(ValueError, match="two or more micro-batches or ranks"):
        optimizer.step()


def test_a_removed_meter_listens_no_more() -> None:
    net = nn.Linear(2, 1)
    meter = GradientNoiseScale(4)
    handle = trimtab.attach(torch.optim.SGD(net.parameters(), lr=0.1), meter, model=net)
    handle.remove()
    net(torch.ones(1, 2)).sum().backward()
    assert not meter._squares


# Collapse


def test_collapse_equals_the_sheets_vector() -> None:
    logits, targets = torch.tensor([[200.0, 0, 0], [5, 0, 0], [20, 0, 0]]), torch.zeros(3, dtype=torch.int64)
    assert float(softmax_collapse(logits, targets)) == pytest.approx(2 / 3)
    assert float(softmax_collapse(logits.double(), targets)) == pytest.approx(1 / 3)
    targets[0] = -100
    assert float(softmax_collapse(logits, targets)) == 0.5
    with pytest.raises(ValueError, match=r"\(3, 3\) and \(2,\)"):
        softmax_collapse(logits, targets[:2])


# Activations and attention


def test_activations_of_linear_layers_and_convolutions() -> None:
    net = nn.Sequential(nn.Conv2d(1, 4, 1, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2))
    net[0].weight.data = torch.tensor([1.0, -1.0, 0.0, 30.0]).view(4, 1, 1, 1)
    meter = ActivationStatistics(net)
    optimizer = attached(net, meter)
    with torch.no_grad():
        net(100 * torch.ones(1, 1, 2, 2))  # a validation pass does not count
    net(torch.ones(3, 1, 2, 2)).sum().backward()
    optimizer.step()
    assert list(meter.layers()) == ["0", "3"]
    assert meter.layers()["0"] == pytest.approx(
        {"max_abs": 30, "rms": math.sqrt(902 / 4), "outliers": 0.25, "silent": 0.25}
    )
    assert float(meter.signals()["activation_max"]) == 30
    with pytest.raises(ValueError, match=r"no module's name matches \('x',\)"):
        ActivationStatistics(net, ["x"])


@pytest.mark.parametrize("causal", [False, True])
def test_attention_logits_equal_those_written_out(causal: bool) -> None:
    query, key = torch.randn(2, 4, 5, 8), torch.randn(2, 2, 5, 8)
    logits = query @ key.repeat_interleave(2, 1).transpose(-1, -2) / math.sqrt(8)
    kept = torch.rand(5, 5) < 0.7
    kept[:, 0] = True
    allowed = kept & torch.ones(5, 5, dtype=torch.bool).tril() if causal else kept
    found = attention_statistics(query, key, kept, causal=causal)
    assert found[0] == pytest.approx(float(logits.masked_fill(~allowed, -math.inf).max()), rel=1e-6)
    assert found[1:].tolist() == pytest.approx([float(query.norm(dim=-1).max()), float(key.norm(dim=-1).max())])


def test_attention_of_a_transformer_is_found_and_torch_is_left_as_it_was() -> None:
    attend, softmax = functional.scaled_dot_product_attention, functional.softmax
    net = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True), 2)
    meter = AttentionStatistics(net)
    optimizer = attached(net, meter)
    net(torch.randn(2, 3, 8)).sum().backward()
    optimizer.step()
    assert list(meter.layers()) == ["layers.0.self_attn", "layers.1.self_attn"]
    assert set(meter.signals()) == {"attention_logit", "attention_query_norm", "attention_key_norm"}
    assert (functional.scaled_dot_product_attention, functional.softmax) == (attend, softmax)
    with pytest.raises(AssertionError, match="embedding dimension"):
        net(torch.randn(2, 3, 9))
    assert functional.scaled_dot_product_attention is attend


def test_attention_that_returns_its_weights_shows_its_logits() -> None:
    layer = nn.MultiheadAttention(4, 1, batch_first=True)
    meter = AttentionStatistics(layer)
    optimizer = attached(layer, meter)
    inputs = torch.randn(1, 3, 4)
    layer(inputs, inputs, inputs, need_weights=True)[0].sum().backward()
    query, key, _ = functional.linear(inputs, layer.in_proj_weight, layer.in_proj_bias).chunk(3, -1)
    expected = (query @ key.transpose(-1, -2) / 2).max().item()
    optimizer.step()
    assert float(meter.signals()["attention_logit"]) == pytest.approx(expected, rel=1e-5)
    assert list(meter.signals()) == ["attention_logit"]


def test_a_network_without_attention_is_refused() -> None:
    net = nn.Linear(2, 1)
    optimizer = attached(net, AttentionStatistics(net))
    net(torch.ones(1, 2)).sum().backward()
    with pytest.raises(ValueError, match="saw no attention"):
        optimizer.step()


# All of them


class _Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.body = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.3, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).mean(1))  # type: ignore[no-any-return]


def _trained(
    meters: list[Meter], every: int = 1, steps: int = 5, at: int = 0, state: Any = None
) -> tuple[nn.Module, Any, Any]:
    net = _Net()
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    tracker = GradientTracker(every=every)
    handle = trimtab.attach(optimizer, tracker, *meters, model=net)
    tracker.watch(meters)
    if state is not None:
        net.load_state_dict(state[0])
        optimizer.load_state_dict(state[1])
        handle.load_state_dict(state[2])
    for step in range(at, steps):
        optimizer.zero_grad()
        torch.manual_seed(step)
        for _ in range(2):
            inputs, targets = torch.randn(4, 5, 8), torch.randint(0, 3, (4,))
            outputs = net(inputs)
            for meter in meters:
                if isinstance(meter, SoftmaxCollapse):
                    meter.see_outputs(outputs, targets)
            (functional.cross_entropy(outputs, targets) / 2).backward()
        optimizer.step()
    return net, tracker, copy.deepcopy((net.state_dict(), optimizer.state_dict(), handle.state_dict()))


def _all(net: nn.Module | None = None) -> list[Meter]:
    return [UpdateRatio(every=2), NLMCosine(every=2), GradientNoiseScale(4, every=2), SoftmaxCollapse(every=2)]


def test_meters_change_nothing_and_the_tracker_records_them_at_its_steps() -> None:
    plain, _, _ = _trained([])
    net, tracker, _ = _trained(_all(), every=2)
    for one, other in zip(plain.state_dict().values(), net.state_dict().values(), strict=True):
        assert torch.equal(one, other)
    rows = tracker.signals_table().to_pylist()
    assert {row["step"] for row in rows} == {0, 2, 4}
    names = {row["name"] for row in rows}
    assert {"update_ratio", "nlm_cosine", "noise_scale", "softmax_collapse"} <= names
    assert all(math.isfinite(row["value"]) for row in rows if row["name"] != "noise_scale")


def test_a_resumed_meter_goes_on_as_if_it_had_not_stopped() -> None:
    _, whole, _ = _trained(_all(), every=2)
    _, _, state = _trained(_all(), every=2, steps=3)
    _, resumed, _ = _trained(_all(), every=2, at=3, state=state)
    assert str(resumed.signals_table().to_pylist()) == str(whole.signals_table().to_pylist())  # NaN is NaN


@pytest.mark.parametrize("kind", [UpdateRatio, NLMCosine, SoftmaxCollapse])
def test_bad_settings_are_refused(kind: type[Meter]) -> None:
    with pytest.raises(ValueError, match="every must be a whole number of 1 or more, got 0"):
        kind(every=0)
    with pytest.raises(ValueError, match="batch must be finite and above 0, got 0"):
        GradientNoiseScale(0)
