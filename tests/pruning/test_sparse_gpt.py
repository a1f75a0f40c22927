"""SparseGPT against a literal per-column form in float64, and what it must bring about."""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from tests.pruning.nets import Small, bits
from tests.pruning.test_data_scores import Aside, Tower, numbers
from trimtab.parameters import Rule
from trimtab.pruning import Wanda, obs_solver, one_shot, sparse_gpt
from trimtab.pruning.scopes import removed_count


def literal(
    weight: Tensor,
    inputs: Tensor,
    sparsity: float = 0.0,
    *,
    groups: tuple[int, int] | None = None,
    block: int = 128,
    damping: float = 0.01,
    bits: int | None = None,
) -> Tensor:
    """The published algorithm (`SparseGPT.fasterprune`), every inverse written out, with an exact count instead of `<=`."""
    w, x = weight.detach().double().clone(), inputs.double()
    rows, columns = w.shape
    gram = 2 / len(x) * x.T @ x
    dead = gram.diagonal() == 0
    gram[dead, dead] = 1
    w[:, dead] = 0
    top = 2 ** (bits or 1) - 1
    low, high = w.amin(1).clamp(max=0), w.amax(1).clamp(min=0)
    scale = (high - low) / top
    zero = (-low / scale).round()
    gram += damping * gram.diagonal().mean() * torch.eye(columns, dtype=torch.float64)
    inverses = [torch.linalg.inv(gram[i:, i:]) for i in range(columns)]
    pivots = torch.stack([inverse[0, 0] for inverse in inverses])
    gone = torch.zeros(rows, columns, dtype=torch.bool)
    for i in range(columns):
        if groups is None and i % block == 0:
            end = min(i + block, columns)
            score = (w[:, i:end] ** 2 / pivots[i:end]).flatten()
            count = removed_count(sparsity, rows * end) - removed_count(sparsity, rows * i)
            chosen = torch.zeros_like(score, dtype=torch.bool)
            chosen[score.argsort(stable=True)[:count]] = True
            gone[:, i:end] = chosen.view(rows, -1)
        if groups is not None and i % groups[1] == 0:
            score = w[:, i : i + groups[1]] ** 2 / pivots[i : i + groups[1]]
            chosen = score.topk(groups[1] - groups[0], dim=1, largest=False).indices
            gone[:, i : i + groups[1]] = torch.zeros_like(score, dtype=torch.bool).scatter_(1, chosen, value=True)
        q = w[:, i].clone()
        if bits is not None:
            q = scale * (((q / scale).round() + zero).clamp(0, top) - zero)
        q[gone[:, i]] = 0
        error = (w[:, i] - q) / pivots[i]
        w[:, i:] -= torch.outer(error, inverses[i][0])
        w[:, i] = q
    return w


def correlated(rows: int, columns: int, seed: int = 3) -> Tensor:
    return numbers(rows, columns, seed=seed) @ numbers(columns, columns, seed=seed + 1)


@pytest.mark.parametrize("block", [128, 8, 7])
@pytest.mark.parametrize("sparsity", [0.5, 0.83])
def test_equals_the_literal_form(sparsity: float, block: int) -> None:
    net, inputs = nn.Linear(24, 10).double(), correlated(60, 24)
    expected = literal(net.weight, inputs, sparsity, block=block)
    pruned = sparse_gpt(net, inputs.split(25), sparsity, block=block)
    assert torch.allclose(net.weight, expected, rtol=1e-9, atol=1e-9)
    assert pruned.count == removed_count(sparsity, 240)
    assert torch.equal(net.weight != 0, pruned.masks["weight"])


@pytest.mark.parametrize("groups", [(2, 4), (1, 4), (4, 8)])
def test_groups_equal_the_literal_form(groups: tuple[int, int]) -> None:
    net, inputs = nn.Linear(24, 10).double(), correlated(60, 24)
    expected = literal(net.weight, inputs, groups=groups)
    pruned = sparse_gpt(net, [inputs], pattern=f"{groups[0]}:{groups[1]}", block=10)
    assert torch.allclose(net.weight, expected, rtol=1e-9, atol=1e-9)
    assert bool((pruned.masks["weight"].view(10, -1, groups[1]).sum(-1) == groups[0]).all())


def test_rounding_in_the_same_pass_equals_the_literal_form() -> None:
    net, inputs = nn.Linear(24, 10).double(), correlated(60, 24)
    expected = literal(net.weight, inputs, 0.5, bits=4)
    sparse_gpt(net, [inputs], 0.5, quantize=4)
    assert torch.allclose(net.weight, expected, rtol=1e-9, atol=1e-9)
    assert max(len(row.unique()) for row in net.weight) <= 16
    net, coarse = nn.Linear(24, 10), 0.25
    sparse_gpt(net, [inputs.float()], 0.5, quantize=lambda column: (column / coarse).round() * coarse)
    assert torch.equal(net.weight / coarse, (net.weight / coarse).round())


@pytest.mark.parametrize("how", [{"sparsity": 0.5}, {"groups": (2, 4)}, {"sparsity": 0.5, "bits": 4}])
def test_rows_in_bands_equal_the_literal_form(how: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(obs_solver, "LEAST_ROWS", 1)
    net, inputs = nn.Linear(24, 50).double(), correlated(60, 24)
    assert len(obs_solver._bands(50, 24, 8)) == 3  # of 18 rows, the last of 14
    expected = literal(net.weight, inputs, block=8, **how)
    pattern = f"{how['groups'][0]}:{how['groups'][1]}" if "groups" in how else "unstructured"
    sparse_gpt(net, [inputs], how.get("sparsity"), pattern=pattern, block=8, quantize=how.get("bits"))
    assert torch.allclose(net.weight, expected, rtol=1e-9, atol=1e-9)


def test_a_function_that_rounds_sees_whole_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(obs_solver, "LEAST_ROWS", 1)
    seen: set[int] = set()

    def rounded(column: Tensor) -> Tensor:
        seen.add(len(column))
        return column.round()

    sparse_gpt(nn.Linear(24, 50), [numbers(60, 24).float()], 0.5, block=8, quantize=rounded)
    assert seen == {50}


@pytest.mark.parametrize("how", [{"sparsity": 0.5}, {"groups": (2, 4)}])
def test_a_layer_of_several_blocks_equals_the_literal_form(how: dict[str, Any]) -> None:
    net, inputs = nn.Linear(288, 48).double(), correlated(500, 288)
    expected = literal(net.weight, inputs, **how)
    pattern = f"{how['groups'][0]}:{how['groups'][1]}" if "groups" in how else "unstructured"
    sparse_gpt(net, [inputs], how.get("sparsity"), pattern=pattern)
    assert float((net.weight.detach() - expected).abs().max()) < 1e-6 * float(expected.abs().max())


def peak_bytes(work: Callable[[], object]) -> int:
    """Most bytes that were allocated at once, counted by PyTorch's allocator."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        work()
    events = [event for event in seen.profiler.kineto_results.events() if event.name() == "[memory]"]
    return max(accumulate(event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())))


@pytest.mark.parametrize(
    ("outputs", "how"),
    [
        (256, {"sparsity": 0.5}),
        (1024, {"sparsity": 0.5}),
        (1024, {"pattern": "2:4"}),
        (4096, {"sparsity": 0.5}),
        (4096, {"pattern": "2:4"}),
    ],
)
def test_memory_is_three_gram_matrices(outputs: int, how: dict[str, Any]) -> None:
    """Beside the copy for `undo` and the masks (a byte for each weight), which are what is asked for."""
    net = nn.Sequential(nn.Linear(1024, outputs, bias=False), nn.Linear(outputs, 8, bias=False))
    data = [torch.randn(16, 1024) for _ in range(2)]
    rule = Rule(include=("0.weight",))
    peak = peak_bytes(lambda: sparse_gpt(net, data, by="layer", rule=rule, **how))
    weight, gram = net[0].weight.numel(), 4 * 1024**2
    assert peak - 4 * weight - weight <= 3.02 * gram
    assert peak - 4 * weight >= 2 * gram  # what is measured is there


def test_float32_is_near_the_literal_form() -> None:
    net, inputs = nn.Linear(160, 64), numbers(600, 160)
    expected = literal(net.weight, inputs, 0.5)
    sparse_gpt(net, [inputs.float()], 0.5)
    assert float((net.weight.detach() != 0).eq(expected != 0).double().mean()) > 0.999
    assert float((net.weight.detach() - expected).abs().median()) < 1e-6


def test_a_column_that_no_input_uses_goes_first() -> None:
    net, inputs = nn.Linear(12, 6).double(), correlated(40, 12)
    inputs[:, [2, 9]] = 0
    expected = literal(net.weight, inputs, 0.5)
    sparse_gpt(net, [inputs], 0.5)
    assert torch.allclose(net.weight, expected, rtol=1e-9, atol=1e-9)
    assert not net.weight[:, [2, 9]].any()


@pytest.mark.parametrize("how", [{"sparsity": 0.6}, {"pattern": "2:4"}])
def test_outputs_are_nearer_than_by_scores_alone(how: dict[str, Any]) -> None:
    inputs = (numbers(200, 8) @ numbers(8, 32, seed=5) + 0.3 * numbers(200, 32, seed=6)) * torch.linspace(0.1, 3, 32)
    inputs, dense = inputs.float(), nn.Linear(32, 16)
    errors = {}
    for name in ("sparse_gpt", "wanda", "magnitude"):
        net = nn.Linear(32, 16)
        net.load_state_dict(dense.state_dict())
        if name == "sparse_gpt":
            sparse_gpt(net, [inputs], **how)
        else:
            one_shot(net, score=Wanda([inputs]) if name == "wanda" else "magnitude", **how)
        errors[name] = (net(inputs) - dense(inputs)).square().mean().item()
    assert errors["sparse_gpt"] < 0.8 * errors["wanda"] < 0.8 * errors["magnitude"]


def test_later_layers_see_what_pruned_ones_give() -> None:
    net, inputs = nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 6)).double(), numbers(60, 8)
    first, second = net[0].weight.detach().clone(), net[2].weight.detach().clone()
    sparse_gpt(net, [inputs], 0.5)
    assert torch.allclose(net[0].weight, literal(first, inputs, 0.5), atol=1e-9)
    hidden = net[1](net[0](inputs)).detach()
    assert torch.allclose(net[2].weight, literal(second, hidden, 0.5), atol=1e-9)


@pytest.mark.parametrize("by", ["layer", "block"])
def test_every_layer_has_its_exact_count_and_its_own_sparsity(by: str) -> None:
    net, data = Tower(2, 7), [torch.randn(50, 6)]
    before = bits(net)
    pruned = sparse_gpt(net, data, 0.37, by=by)
    assert pruned.removed == {name: removed_count(0.37, mask.numel()) for name, mask in pruned.masks.items()}
    pruned.undo()
    assert bits(net) == before
    pruned = sparse_gpt(net, data, {"blocks.*.up.*": 0.5}, by=by)
    assert {name: count > 0 for name, count in pruned.removed.items()} == {
        name: ".up." in name for name in pruned.masks
    }
    assert not (net.stem.weight.detach() - torch.where(pruned.masks["stem.weight"], net.stem.weight, 0)).any()


def test_a_convolution_equals_the_linear_layer_of_its_patches() -> None:
    conv, images = nn.Conv2d(4, 6, 3, padding=1).double(), numbers(3, 4, 7, 7)
    patches = F.unfold(images, 3, padding=1).transpose(1, 2).reshape(-1, 36)
    expected = literal(conv.weight.flatten(1), patches, 0.5)
    sparse_gpt(conv, [images], 0.5)
    assert torch.allclose(conv.weight.flatten(1), expected, atol=1e-9)
    pruned = sparse_gpt(nn.Conv2d(4, 6, 3).double(), [images], pattern="2:4")
    assert bool((pruned.masks["weight"].sum(1) == 2).all())


def test_what_is_left_out_says_why() -> None:
    net = nn.Sequential(nn.Conv2d(4, 4, 3, groups=2), Small())
    pruned = sparse_gpt(net, [torch.randn(2, 4, 8, 8)], 0.5)
    reasons = {entry.name: reason for entry, reason in pruned.left_out}
    assert "grouped convolution" in reasons["0.weight"]
    assert "ConvTranspose2d" in reasons["1.up.weight"]
    layers = nn.Sequential(nn.Linear(8, 6), nn.Linear(6, 2))
    with pytest.raises(ValueError, match=r"'2:4' does not divide 1 weight\(s\): 1\.weight"):
        sparse_gpt(layers, [torch.randn(9, 8)], pattern="2:4")
    indivisible = sparse_gpt(layers, [torch.randn(9, 8)], pattern="2:4", indivisible="leave_out")
    assert [(entry.name, reason) for entry, reason in indivisible.left_out if "multiple" in reason] == [
        ("1.weight", "input axis of 6 is not a multiple of 4")
    ]


def test_halves_are_solved_in_float32() -> None:
    net, inputs = nn.Linear(16, 8).bfloat16(), torch.randn(40, 16).bfloat16()
    expected = literal(net.weight, inputs, 0.5)
    sparse_gpt(net, [inputs], 0.5)
    assert torch.allclose(net.weight.double(), expected, rtol=1e-2, atol=1e-3)


def test_damping_is_raised_and_said() -> None:
    net, inputs = nn.Linear(40, 8), torch.ones(5, 40) * torch.arange(1, 41)
    with pytest.warns(UserWarning, match=r"weight: the Gram matrix .* damping 1e-09; 1e-0\d was used"):
        sparse_gpt(net, [inputs], 0.5, damping=1e-9)
    assert bool(net.weight.isfinite().all())
    before = bits(net)
    with pytest.raises(ValueError, match=r"weight: .* cannot be inverted, not even with damping 1e-17"):
        sparse_gpt(net, [inputs], 0.5, damping=1e-20)
    assert bits(net) == before


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"sparsity": 1.0}, "sparsity must lie"),
        ({"sparsity": 0.5, "damping": 0.0}, "damping must"),
        ({"sparsity": 0.5, "block": 0}, "block must be"),
        ({"sparsity": 0.5, "by": "row"}, "by must be one of"),
        ({"sparsity": 0.5, "quantize": 0}, "quantize must be"),
        ({"sparsity": 0.5, "pattern": "2:4", "loader": [torch.randn(4, 3)]}, "does not divide 1 weight"),
        ({"sparsity": 0.5, "loader": []}, "loader is empty"),
        ({"sparsity": 0.5, "loader": [torch.full((4, 3), torch.nan)]}, r"inputs of used\.weight hold NaN"),
        ({"sparsity": 0.5, "rule": None}, r"never reach aside\.weight"),
    ],
)
def test_bad_input_is_named_and_the_model_stays(more: dict[str, Any], message: str) -> None:
    net = Aside()
    before = bits(net)
    given: dict[str, Any] = {"loader": [torch.randn(4, 3)], "rule": Rule(exclude=("aside.*",), frozen=True), **more}
    with pytest.raises(ValueError, match=message):
        sparse_gpt(net, given.pop("loader"), **given)
    assert bits(net) == before
    assert not any(module._forward_pre_hooks for module in net.modules())


def test_an_error_in_a_later_layer_puts_the_first_back() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    before = bits(net)
    net[1].register_forward_pre_hook(lambda module, inputs: (inputs[0] / 0,))
    with pytest.raises(ValueError, match=r"inputs of 1\.weight hold NaN or infinite"):
        sparse_gpt(net, [torch.randn(4, 3)], 0.5)
    assert bits(net) == before
