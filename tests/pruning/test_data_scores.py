"""Scores from calibration data: against the authors' expressions, autograd and closed forms; what is refused."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from tests.pruning.nets import Small, Tied, bits
from trimtab.parameters import PRUNABLE, Entry, Rule, select
from trimtab.pruning import GraSP, Snip, Taylor, Wanda, one_shot, owl, sparse_gpt, sweep
from trimtab.pruning.calibration import Calibration, stages
from trimtab.pruning.layer_inputs import as_matrix, from_matrix, input_rows
from trimtab.pruning.selection_plan import SelectionPlan


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(torch.relu(self.up(x)))


class Tower(nn.Module):
    """Linear layers in blocks, whose order of use is not that of their definition."""

    def __init__(self, depth: int = 3, width: int = 6) -> None:
        super().__init__()
        self.head = nn.Linear(width, 4)
        self.blocks = nn.ModuleList([Block(width) for _ in range(depth)])
        self.stem = nn.Linear(6, width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def published(weight: Tensor, inputs: Tensor, sparsity: float) -> Tensor:
    """True where weights go, by the expressions of the authors' code (`WrappedGPT.add_batch` and `prune_wanda`)."""
    scaler_row = torch.zeros(weight.shape[1], dtype=weight.dtype)
    for number, sample in enumerate(inputs.unsqueeze(1)):
        scaler_row *= number / (number + 1)
        scaler_row += torch.norm(sample.T, p=2, dim=1) ** 2 / (number + 1)
    metric = weight.abs() * torch.sqrt(scaler_row.reshape(1, -1))
    mask = torch.zeros_like(metric, dtype=torch.bool)
    order = torch.sort(metric, dim=-1, stable=True)[1]
    return mask.scatter_(1, order[:, : int(metric.shape[1] * sparsity)], value=True)


def test_wanda_equals_the_published_expressions() -> None:
    net, inputs = nn.Linear(10, 7).double(), numbers(30, 10) * torch.arange(1, 11)
    before = net.weight.detach().clone()
    pruned = one_shot(net, 0.5, score=Wanda(inputs.split(8)))
    assert torch.equal(~pruned.masks["weight"], published(before, inputs, 0.5))
    assert not torch.equal(pruned.masks["weight"], one_shot(nn.Linear(10, 7), 0.5).masks["weight"])
    assert (pruned.scope, pruned.score) == ("row", "Wanda(propagate=True, by='block')")
    pruned.undo()
    assert torch.equal(net.weight, before)


def test_rows_lose_exactly_their_share() -> None:
    net = nn.Linear(11, 5)
    pruned = one_shot(net, 0.3, score=Wanda([torch.randn(9, 11)], propagate=False))
    assert (~pruned.masks["weight"]).sum(1).tolist() == [math.floor(0.3 * 11 + 0.5)] * 5
    assert math.isnan(pruned.thresholds["weight"])
    net.weight.data.fill_(1.0)  # ties go by position
    pruned = one_shot(net, 0.3, scope="row")
    assert (~pruned.masks["weight"]).nonzero()[:, 1].tolist() == [0, 1, 2] * 5


def test_groups_of_four_keep_the_two_of_largest_product() -> None:
    net, inputs = nn.Linear(8, 3), torch.randn(20, 8) * torch.arange(1, 9)
    metric = net.weight.detach().abs() * inputs.norm(dim=0)
    pruned = one_shot(net, pattern="2:4", score=Wanda([inputs]))
    kept = metric.view(3, 2, 4).topk(2, dim=-1).indices
    assert torch.equal(pruned.masks["weight"].view(3, 2, 4), torch.zeros(3, 2, 4).bool().scatter_(-1, kept, value=True))
    assert pruned.scope == "group"


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize(
    "more",
    [{}, {"padding": 1, "stride": 2}, {"dilation": 2, "padding": "same"}, {"padding_mode": "circular", "padding": 1}],
)
def test_rows_of_a_convolution_give_its_outputs(more: dict[str, Any], groups: int) -> None:
    """Patches times the weight as a matrix are what the layer computes: order of columns, padding, groups."""
    for kind, places in ((nn.Conv1d, (9,)), (nn.Conv2d, (7, 8)), (nn.Conv3d, (5, 4, 6))):
        layer = kind(4, 6, 3, groups=groups, bias=False, dtype=torch.float64, **more)
        (entry,) = select(layer, PRUNABLE).chosen
        inputs = numbers(2, 4, *places)
        rows, matrix = input_rows(layer, inputs), as_matrix(entry, layer.weight)
        found = torch.einsum("gnc,goc->gno", rows, matrix.unflatten(0, (groups, -1)))
        outputs = layer(inputs)
        expected = outputs.movedim(1, -1).reshape(-1, 6)
        assert torch.allclose(found.movedim(0, 1).flatten(1), expected, atol=1e-12)
        assert torch.equal(from_matrix(entry, matrix), layer.weight)


def test_a_convolution_is_scored_by_its_patches() -> None:
    net, inputs = Small(), torch.randn(3, 4, 6, 6)
    score = Wanda([inputs], propagate=False)
    chosen = [entry for entry in select(net, PRUNABLE).chosen if entry.name == "conv.weight"]
    (found,) = score.of(net, chosen)
    norms = F.unfold(inputs, 3, padding=1).square().sum((0, 2)).sqrt().view(1, 4, 3, 3)
    assert torch.allclose(found, net.conv.weight.abs() * norms, rtol=1e-5)
    pruned = one_shot(net, 0.5, score=score)
    reasons = {entry.name: reason for entry, reason in pruned.left_out}
    assert "ConvTranspose2d" in reasons["up.weight"]


@pytest.mark.parametrize("by", ["layer", "block"])
def test_later_layers_see_what_pruned_ones_give(by: str) -> None:
    net, inputs = Tower().double(), numbers(40, 6)
    ours = {name: weight.detach().clone() for name, weight in net.named_parameters()}
    one_shot(net, 0.5, score=Wanda(inputs.split(16), by=by))
    reference = Tower().double()
    reference.load_state_dict(ours)
    with torch.no_grad():
        x = inputs
        prune(reference.stem.weight, x)
        x = reference.stem(x)
        for block in reference.blocks:
            hidden = torch.relu(block.up(x))  # by block: the inputs of both before either is pruned
            prune(block.up.weight, x)
            prune(block.down.weight, hidden if by == "block" else torch.relu(block.up(x)))
            x = block(x)
        prune(reference.head.weight, x)
    for name, weight in reference.named_parameters():
        assert torch.equal(weight, net.get_parameter(name)), name


def prune(weight: Tensor, inputs: Tensor) -> None:
    weight.masked_fill_(published(weight, inputs, 0.5), 0)


def test_one_pass_takes_the_dense_inputs() -> None:
    net, inputs = Tower().double(), numbers(40, 6)
    dense = net.stem(inputs)
    before = net.blocks[0].up.weight.detach().clone()
    pruned = one_shot(net, 0.5, score=Wanda([inputs], propagate=False))
    assert torch.equal(~pruned.masks["blocks.0.up.weight"], published(before, dense, 0.5))


class Reads(TorchDispatchMode):
    """Counts the operations that read a weight, those of the network's own passes apart."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.place, self.found = weight.untyped_storage().data_ptr(), []

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = [one for one in args if isinstance(one, Tensor) and one.untyped_storage().data_ptr() == self.place]
        if (
            given
            and not operation.is_view
            and operation._schema.name not in ("aten::detach", "aten::mm", "aten::addmm")
        ):
            self.found.append(operation._schema.name)
        return operation(*args, **(kwargs or {}))


def test_a_pass_and_two_reads_of_the_weights_are_enough() -> None:
    net, data = Tower(3, 8), [torch.randn(5, 6) for _ in range(4)]
    passes = []
    net.register_forward_hook(lambda *given: passes.append(1))
    how: dict[str, Any] = {"scope": None, "pattern": "unstructured", "rule": None, "seed": 0}
    counted = Reads(net.stem.weight)
    with counted:
        plan = SelectionPlan(net, score=Wanda(data, propagate=False), keep_first=False, keep_last=False, **how)
        plan.removals([0.5], plan.weights).at(0)
    assert len(passes) == len(data)
    assert counted.found == ["aten::sum", "aten::abs"]  # is there a NaN; the scores


def test_a_pass_in_inference_mode_gives_the_same() -> None:
    @torch.inference_mode()
    def forward(model: nn.Module, batch: Tensor) -> object:
        return model(batch)

    data = list(numbers(20, 6).float().split(10))
    for prune in (
        lambda net, **how: one_shot(net, 0.5, score=Wanda(data, **how)),
        lambda net, **how: sparse_gpt(net, data, 0.5, **how),
        lambda net, **how: owl(net, data, 0.5, **how),
    ):
        nets = [Tower(), Tower()]
        nets[1].load_state_dict(nets[0].state_dict())
        found = [prune(nets[0]), prune(nets[1], forward=forward)]
        assert bits(nets[0]) == bits(nets[1])
        assert not isinstance(found[0], dict) or found[0] == found[1]


def test_steps_are_layers_or_blocks_in_the_order_of_use() -> None:
    net = Tower(2)
    ordered, once = Calibration([torch.randn(3, 6)]).order(net, select(net, PRUNABLE).chosen)
    assert once
    names = [entry.name for entry in ordered]
    assert names == [
        f"{name}.weight" for name in ("stem", "blocks.0.up", "blocks.0.down", "blocks.1.up", "blocks.1.down", "head")
    ]
    assert [len(step) for step in stages(net, ordered, "block")] == [1, 2, 2, 1]
    assert [len(step) for step in stages(net, ordered, "layer")] == [1] * 6


def test_statistics_are_held_of_one_step_only(monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[int] = []
    plain = Wanda.of

    def of(self: Wanda, model: nn.Module, chosen: list[Entry], *, early: bool = False) -> list[Tensor]:
        held.append(len(chosen))
        assert early
        return plain(self, model, chosen, early=early)

    monkeypatch.setattr(Wanda, "of", of)
    one_shot(Tower(5), 0.5, score=Wanda([torch.randn(3, 6)], by="layer"))
    assert held == [1] * 12


def test_a_layer_used_twice_is_scored_by_all_its_inputs() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(6, 6, bias=False).double()

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(self.layer(x))

    net, inputs = Twice(), numbers(20, 6)
    weight = net.layer.weight.detach().clone()
    pruned = one_shot(net, 0.5, score=Wanda([inputs]))
    assert torch.equal(~pruned.masks["layer.weight"], published(weight, torch.cat([inputs, inputs @ weight.T]), 0.5))


def test_sweeps_take_scores_with_data() -> None:
    net, data = Tower(), [torch.randn(30, 6)]
    before = bits(net)
    alone = [one_shot(net, 0.3, score=Wanda(data))]
    alone[0].undo()
    found = list(sweep(net, (0.3, 0.6), score=Wanda(data)))
    assert bits(net) == before
    assert all(torch.equal(mask, alone[0].masks[name]) for name, mask in found[0].masks.items())
    assert found[1].count > found[0].count


def test_weight_norm_is_scored_as_the_product_uses_it() -> None:
    layer = nn.utils.parametrizations.weight_norm(nn.Linear(6, 4))
    inputs, weight = torch.randn(9, 6), layer.weight.detach().clone()
    pruned = one_shot(nn.Sequential(layer), 0.5, score=Wanda([inputs]))
    assert torch.equal(~pruned.masks["0.weight"], published(weight, inputs, 0.5))
    assert torch.allclose(layer.weight, torch.where(pruned.masks["0.weight"], weight, 0), atol=1e-6)


# Gradients


def regression() -> tuple[nn.Linear, Tensor, Tensor]:
    net = nn.Linear(5, 1, bias=False).double()
    return net, numbers(12, 5, seed=1), numbers(12, 1, seed=2)


def scores(score: Any, net: nn.Module) -> Tensor:
    (found,) = score.of(net, select(net, PRUNABLE).chosen)
    return found.flatten()


def test_snip_and_taylor_equal_closed_forms() -> None:
    net, x, y = regression()
    w = net.weight.detach().flatten()
    halves = [(x[:6], y[:6]), (x[6:], y[6:])]
    g = [2 / 6 * a.T @ (a @ w - b.flatten()) for a, b in halves]
    assert torch.allclose(scores(Snip(halves, F.mse_loss), net), (w * (g[0] + g[1]) / 2).abs())
    assert torch.allclose(scores(Taylor(halves, F.mse_loss), net), (w * g[0]) ** 2 + (w * g[1]) ** 2)
    channel = ((w * g[0]).sum() ** 2 + (w * g[1]).sum() ** 2).expand(5)
    assert torch.allclose(scores(Taylor(halves, F.mse_loss, unit="channel"), net), channel)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_grasp_equals_the_hessian_times_the_gradient(temperature: float) -> None:
    net, x, y = regression()
    w, t = net.weight.detach().flatten().clone(), temperature
    hessian = 2 / 12 * x.T @ x / t**2
    gradient = 2 / 12 * x.T @ (x @ w / t - y.flatten()) / t
    halves = [(x[:6], y[:6]), (x[6:], y[6:])]
    found = scores(GraSP(halves, F.mse_loss, temperature=t), net)
    assert torch.allclose(found, w * (hessian @ gradient))
    assert bool((found < 0).any())
    pruned = one_shot(net, 0.4, score=GraSP(halves, F.mse_loss, temperature=t))
    authors = -w * (hessian @ gradient)  # their largest go
    assert set((~pruned.masks["weight"]).flatten().nonzero().flatten().tolist()) == set(
        authors.topk(2).indices.tolist()
    )


class Attention(nn.Module):
    """One head, its products by PyTorch's fused attention or written out."""

    def __init__(self, *, fused: bool) -> None:
        super().__init__()
        self.fused, self.inputs, self.out = fused, nn.Linear(4, 12), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.inputs(x).chunk(3, -1)
        if self.fused:
            return self.out(F.scaled_dot_product_attention(q, k, v))
        return self.out(torch.softmax(q @ k.transpose(-1, -2) / 2, -1) @ v)


def test_grasp_takes_second_derivatives_of_fused_attention() -> None:
    plain, fused = Attention(fused=False), Attention(fused=True)
    fused.load_state_dict(plain.state_dict())
    data = [(torch.randn(3, 1, 5, 4), torch.randn(3, 1, 5, 2))]
    found = [GraSP(data, F.mse_loss, temperature=1).of(net, select(net, PRUNABLE).chosen) for net in (plain, fused)]
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-7)


def test_grasp_says_where_pytorch_has_no_second_derivative() -> None:
    net = nn.Sequential(nn.EmbeddingBag(5, 4), nn.Linear(4, 2))
    before = bits(net)
    with pytest.raises(ValueError, match=r"GraSP needs second derivatives.*embedding_bag"):
        one_shot(net, 0.5, score=GraSP([(torch.tensor([[0, 1]]), torch.randn(1, 2))], F.mse_loss))
    assert bits(net) == before


def test_mappings_and_losses_of_the_model_itself() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 2)

        def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
            return {"loss": F.cross_entropy(self.layer(x), labels)}

    batch = {"x": torch.randn(4, 3), "labels": torch.tensor([0, 1, 1, 0])}
    pruned = one_shot(Own(), 0.5, score=Snip([batch], lambda outputs, _: outputs["loss"]))
    assert pruned.count == 3
    with pytest.raises(TypeError, match=r"temperature 200 and must be a tensor, got dict"):
        one_shot(Own(), 0.5, score=GraSP([batch], lambda outputs, _: outputs["loss"]))


def every(data: list[Any]) -> list[Any]:
    return [Wanda(data), Wanda(data, propagate=False), *(kind(data, F.cross_entropy) for kind in (Snip, Taylor, GraSP))]


@pytest.mark.parametrize("which", range(5))
def test_the_model_is_only_pruned(which: int) -> None:
    """BatchNorm statistics, modes, random state, requires_grad and gradients stay."""
    net = Small().train()
    net.conv.weight.requires_grad_(requires_grad=False)
    net.norm.eval()
    before = bits(net)
    data = [(torch.randn(4, 4, 6, 6), torch.tensor([0, 1, 2, 3]))]
    state = torch.get_rng_state()
    pruned = one_shot(net, 0.5, score=every(data)[which], scope="layer")
    assert torch.equal(torch.get_rng_state(), state)
    pruned.undo()
    assert bits(net) == before
    assert net.training
    assert not net.norm.training
    assert net.drop.training
    assert not net.conv.weight.requires_grad
    assert all(parameter.grad is None for parameter in net.parameters())
    assert not any(module._forward_pre_hooks for module in net.modules())


# Bad input


class Aside(nn.Module):
    """One layer is never used."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.aside = nn.Linear(3, 5), nn.Linear(3, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.used(x)


@pytest.mark.parametrize("which", range(5))
def test_a_layer_that_no_data_reach_is_named(which: int) -> None:
    net = Aside()
    before = bits(net)
    score = every([(torch.randn(4, 3), torch.tensor([0, 1, 2, 3]))])[which]
    with pytest.raises(ValueError, match=r"never reach aside\.weight"):
        one_shot(net, 0.5, score=score)
    with pytest.raises(ValueError, match=r"never reach aside\.weight"):
        sweep(net, (0.5,), score=score)
    assert bits(net) == before
    assert one_shot(net, 0.5, score=score, rule=Rule(exclude=("aside.*",))).count > 0


@pytest.mark.parametrize("which", range(5))
def test_nan_of_the_data_is_refused_and_the_model_stays(which: int) -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.Sigmoid(), nn.Linear(4, 5))
    before = bits(net)
    data = [(torch.full((4, 3), torch.nan), torch.tensor([0, 1, 2, 3]))]
    with pytest.raises(ValueError, match=r"of (0|2)\.weight hold.* NaN"):
        one_shot(net, 0.5, score=every(data)[which])
    assert bits(net) == before
    assert not any(module._forward_pre_hooks for module in net.modules())


def test_an_empty_loader_is_refused() -> None:
    for make in (lambda: Wanda([]), lambda: Snip(iter(()), F.mse_loss)):
        with pytest.raises(ValueError, match="loader is empty"):
            make()


def test_propagation_does_not_compare_all_layers() -> None:
    with pytest.raises(ValueError, match="propagate=False"):
        one_shot(Tower(), 0.5, score=Wanda([torch.randn(2, 6)]), scope="global")
    assert one_shot(Tower(), 0.5, score=Wanda([torch.randn(2, 6)], propagate=False), scope="global").scope == "global"


def test_a_data_loader_that_is_read_once_is_held() -> None:
    def once() -> Iterator[Tensor]:
        yield torch.randn(4, 6)
        yield torch.randn(4, 6)

    assert one_shot(Tower(), 0.5, score=Wanda(once())).count > 0


def test_tied_tables_and_attention_are_left_out_with_reasons() -> None:
    class Attending(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention, self.head = nn.MultiheadAttention(4, 2, batch_first=True), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.attention(x, x, x)[0])

    pruned = one_shot(Attending(), 0.5, score=Wanda([torch.randn(2, 3, 4)]))
    assert list(pruned.masks) == ["head.weight"]
    reasons = {entry.name: reason for entry, reason in pruned.left_out}
    assert "without calling it" in reasons["attention.out_proj.weight"]
    with pytest.raises(ValueError, match=r"nothing to prune \(embedding\.weight: held by Embedding"):
        one_shot(Tied(), 0.5, score=Wanda([torch.tensor([1, 2])]))


# A sparsity for each layer


def test_sparsity_by_name() -> None:
    net = Tower()
    pruned = one_shot(net, {"blocks.0.*": 0.5, "blocks.*": 0.25})
    assert pruned.scope == "layer"
    assert pruned.removed == {name: {"0": 36, "1": 18, "2": 18}.get(name.split(".")[1], 0) for name in pruned.masks}
    assert pruned.masks["stem.weight"].all()
    by_row = one_shot(Tower(), {"stem.*": 0.4, "blocks.1.up.*": 0.5}, score=Wanda([torch.randn(3, 6)]))
    assert (~by_row.masks["stem.weight"]).sum(1).tolist() == [2] * 6
    assert (~by_row.masks["blocks.1.up.weight"]).sum(1).tolist() == [3] * 12
    states = [state.count for state in sweep(net, ({"stem.*": 0.5}, {"stem.*": 0.9}))]
    assert states == [18, 32]


@pytest.mark.parametrize(
    ("sparsity", "more", "message"),
    [
        ({"nowhere.*": 0.5}, {}, r"'nowhere\.\*' matches none of the 8"),
        ({"stem.*": 1.5}, {}, r"sparsity of 'stem\.\*' must lie in \[0, 1\)"),
        ({}, {}, "empty mapping"),
        ({"stem.*": 0.5}, {"scope": "global"}, "needs scope 'layer' or 'row'"),
        ({"stem.*": 0.5}, {"scope": "erk"}, "needs scope 'layer' or 'row'"),
        ({"stem.*": 0.5}, {"pattern": "2:4", "indivisible": "leave_out"}, "fixes the sparsity"),
    ],
)
def test_wrong_sparsities_by_name(sparsity: dict[str, float], more: dict[str, Any], message: str) -> None:
    net = Tower()
    before = bits(net)
    with pytest.raises(ValueError, match=message):
        one_shot(net, sparsity, **more)
    assert bits(net) == before


def test_layers_with_outliers_stay_denser() -> None:
    net, data = Tower(3, 8), [torch.randn(60, 6)]
    with torch.no_grad():
        net.blocks[1].up.weight[:, 0] *= 60
    before = bits(net)
    shares = owl(net, data, 0.6)
    assert bits(net) == before
    assert shares["blocks.1.up.weight"] == shares["blocks.1.down.weight"] == min(shares.values())
    assert max(shares.values()) - min(shares.values()) == pytest.approx(2 * 0.08)
    for pruned in (one_shot(net, shares, score=Wanda(data)), sparse_gpt(net, data, shares)):
        assert pruned.sparsity == pytest.approx(0.6, abs=0.04)  # rows are rounded
        assert pruned.removed["blocks.1.up.weight"] < pruned.removed["blocks.0.up.weight"]
    with pytest.raises(ValueError, match=r"smaller spread than 0\.5"):
        owl(net, data, 0.9, spread=0.5)


def test_shares_of_layers_are_not_taken_of_weights_without_values() -> None:
    net = Tower(1)
    net.blocks[0].up.weight.data[0, 0] = float("nan")  # type: ignore[union-attr]
    with pytest.raises(ValueError, match=r"blocks\.0\.up\.weight holds NaN in 1 of 72 weights"):
        owl(net, [torch.randn(4, 6)], 0.5)
    with pytest.raises(ValueError, match="meta device"):
        owl(net.to("meta"), [torch.randn(4, 6)], 0.5)
