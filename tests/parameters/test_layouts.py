"""What a parameter is to its owner and which way it lies."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import trimtab
from trimtab.gradients import AdaptiveClip, Centralize, ZScore
from trimtab.gradients.adaptive_clip import last_linear
from trimtab.observe.curvature import Objective
from trimtab.observe.landscape.directions import random_directions
from trimtab.optimizers import CrAM
from trimtab.parameters import Entry, Layout, Rule, entries, register_layout, select, total_elements, with_names
from trimtab.parameters.layouts import is_position_name, layout_of
from trimtab.pruning import one_shot


class Conv1D(nn.Module):
    """As transformers': y = x W + b, W of shape (inputs, outputs)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(inputs, outputs))
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight + self.bias


class OfTransformers(Conv1D):
    pass


OfTransformers.__module__, OfTransformers.__name__ = "transformers.pytorch_utils", "Conv1D"


class MixedExperts(nn.Module):
    """As transformers' fused experts, which say whether they are transposed."""

    def __init__(self, transposed: bool) -> None:
        super().__init__()
        self.is_transposed = transposed
        up, down = ((8, 12), (6, 8)) if transposed else ((12, 8), (8, 6))
        self.gate_up_proj = nn.Parameter(torch.randn(3, *up))
        self.down_proj = nn.Parameter(torch.randn(3, *down))
        self.gate_up_proj_bias = nn.Parameter(torch.randn(3, 12))


MixedExperts.__module__ = "transformers.models.mixed.modeling_mixed"


class Columns(nn.Module):
    """Of the user: experts of (inputs, outputs)."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Parameter(torch.randn(3, 8, 4))
        self.scale_table = nn.Parameter(torch.ones(4, 4))


class Unknown(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.A_log = nn.Parameter(torch.randn(4, 8))
        self.logit_scale = nn.Parameter(torch.ones(4, 1, 1))
        self.linear = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) + x @ self.A_log.T


@pytest.fixture
def columns():
    register_layout(
        Columns, {"inner": Layout(output_axis=2, input_axis=1, stack_axis=0), "scale_table": Layout(role="scale")}
    )
    yield Columns()
    register_layout(Columns, {})


def axes(module: nn.Module) -> dict[str, tuple[int | None, int | None, int | None]]:
    return {e.name: (e.output_axis, e.input_axis, e.stack_axis) for e in select(module).chosen}


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        (nn.Linear(3, 5), {"weight": (0, 1, None)}),
        (nn.Conv2d(4, 6, 3), {"weight": (0, 1, None)}),
        (nn.ConvTranspose2d(4, 6, 3), {"weight": (1, 0, None)}),
        (nn.Embedding(4, 6), {"weight": (0, 1, None)}),
        (nn.Bilinear(3, 4, 5), {"weight": (0, None, None)}),
        (nn.LSTM(3, 4, proj_size=2), dict.fromkeys(("weight_ih_l0", "weight_hh_l0", "weight_hr_l0"), (0, 1, None))),
        (nn.GRUCell(3, 4), dict.fromkeys(("weight_ih", "weight_hh"), (0, 1, None))),
        (
            nn.MultiheadAttention(4, 2, add_bias_kv=True),
            {"in_proj_weight": (0, 1, None), "out_proj.weight": (0, 1, None)},
        ),
        (nn.LayerNorm((3, 4)), {}),
        (OfTransformers(3, 5), {"weight": (1, 0, None)}),
        (MixedExperts(True), {"gate_up_proj": (2, 1, 0), "down_proj": (2, 1, 0)}),
        (MixedExperts(False), {"gate_up_proj": (1, 2, 0), "down_proj": (1, 2, 0)}),
        (Conv1D(3, 5), {}),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_axes_by_owner(module: nn.Module, expected: dict[str, tuple[int | None, int | None, int | None]]) -> None:
    assert axes(module) == expected


def test_a_registered_class_and_its_subclasses(columns: Columns) -> None:
    assert axes(columns) == {"inner": (2, 1, 0)}
    reasons = {entry.name: reason for entry, reason in select(columns).left_out}
    assert reasons["scale_table"] == "a scale, no weight of a product"

    class Below(Columns):
        pass

    assert axes(Below()) == {"inner": (2, 1, 0)}


def test_bad_layouts() -> None:
    with pytest.raises(ValueError, match="role must be one of 'weight', 'bias'"):
        Layout(role="kernel")
    with pytest.raises(ValueError, match="different dimensions"):
        Layout(output_axis=1, input_axis=1)
    with pytest.raises(ValueError, match="0 or more"):
        Layout(output_axis=-1)
    with pytest.raises(TypeError, match="class of modules"):
        register_layout(nn.Linear(1, 1), {})  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="map attribute names to Layout"):
        register_layout(Columns, {"inner": 0})  # type: ignore[dict-item]
    register_layout(Columns, {"inner": Layout(output_axis=5)})
    with pytest.raises(ValueError, match=r"inner of Columns has shape \(3, 8, 4\), which has no dimension 5"):
        entries(Columns())
    register_layout(Columns, {})
    with pytest.raises(ValueError, match="role must be one of 'weight', 'any', got 'bias'"):
        Rule(role="bias")
    assert layout_of(nn.ReLU(), "weight", torch.ones(2, 2)) is None


@pytest.mark.parametrize(
    "name",
    [
        "wpe.weight", "embeddings.position_embeddings.weight", "encoder.embed_positions.weight", "positions_embed.weight",
        "visual.positional_embedding", "blocks.0.attn.rel_pos_h", "relative_position_bias_table", "pos_embed",
        "attn.distance_embedding.weight", "block.0.relative_attention_bias.weight", "encoder.rel_embeddings.weight",
    ],
)  # fmt: skip
def test_names_of_tables_of_positions(name: str) -> None:
    assert is_position_name(name)


@pytest.mark.parametrize(
    "name", ["wte.weight", "composer.weight", "token_type_embeddings.weight", "positive.weight", "exposure"]
)
def test_other_names(name: str) -> None:
    assert not is_position_name(name)


def test_tables_of_positions_are_left_out_and_layers_of_such_names_are_not() -> None:
    net = nn.ModuleDict({"wpe": nn.Embedding(8, 4), "wte": nn.Embedding(8, 4), "pos_proj": nn.Linear(4, 4)})
    net["wpe"].weight.requires_grad_(False)  # Whisper's table of sinusoids is frozen
    pruned = one_shot(net, 0.5)
    assert list(pruned.masks) == ["wte.weight", "pos_proj.weight"]
    assert {e.name: reason for e, reason in pruned.left_out}[
        "wpe.weight"
    ] == "a table of positions, no weight of a product"
    assert bool((net["wpe"].weight != 0).all())


@pytest.mark.parametrize("source", ["pruning", "penalty"])
def test_no_weight_of_a_product_is_left_out_and_include_brings_it_back(source: str) -> None:
    def chosen(rule: Rule | None) -> tuple[list[str], dict[str, str]]:
        net = Unknown()
        if source == "pruning":
            pruned = one_shot(net, 0.5, rule=rule)
            return list(pruned.masks), {entry.name: reason for entry, reason in pruned.left_out}
        penalty = trimtab.penalties.L1(1.0, rule=rule)
        return list(penalty.per_layer(net)), {entry.name: reason for entry, reason in penalty.left_out}

    names, reasons = chosen(None)
    assert names == ["linear.weight"]
    assert "A_log of Unknown is not known as a weight of a product (include=" in reasons["A_log"]
    assert chosen(Rule(include=("A_log",)))[0] == ["A_log"]
    assert chosen(Rule(include=("*",)))[0] == ["A_log", "logit_scale", "linear.weight"]
    assert chosen(Rule(role="any"))[0] == ["A_log", "logit_scale", "linear.weight"]


def test_parameters_of_a_list_belong_to_the_module_that_holds_it() -> None:
    class Holder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.factors = nn.ParameterList([torch.ones(2, 3), torch.ones(3, 2)])

    holder = Holder()
    assert select(holder).chosen == []
    register_layout(Holder, {"factors.*": Layout(output_axis=1, input_axis=0)})
    assert axes(holder) == {"factors.0": (1, 0, None), "factors.1": (1, 0, None)}
    assert len(select(nn.ParameterList([torch.ones(2, 3)])).chosen) == 1  # nothing but tensors: PyTorch's habit


def test_n_of_m_runs_along_the_inputs(columns: Columns) -> None:
    net = nn.ModuleList([OfTransformers(8, 6), MixedExperts(True), columns, Unknown(), nn.Bilinear(4, 4, 4)])
    before = {name: parameter.detach().clone() for name, parameter in net.named_parameters()}
    pruned = one_shot(net, pattern="2:4", rule=Rule(exclude=("1.down_proj",), include=("*",)))
    for name, axis in (("0.weight", 0), ("1.gate_up_proj", 1), ("2.inner", 1), ("3.linear.weight", 1)):
        groups = net.get_parameter(name).detach().movedim(axis, -1).reshape(-1, 4)
        assert bool(((groups != 0).sum(1) == 2).all()), name
        kept = before[name].movedim(axis, -1).reshape(-1, 4).abs().topk(2, 1).values.sum()
        torch.testing.assert_close(groups.abs().sum(), kept)
    reasons = {entry.name: reason for entry, reason in pruned.left_out}
    assert reasons["3.A_log"] == (
        "which dimension of this parameter of Unknown are inputs is not known (register_layout says it)"
    )
    assert "inputs" in reasons["4.weight"]


def step(net: nn.Module, transform: object) -> None:
    generator = torch.Generator().manual_seed(0)
    for parameter in net.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
    with trimtab.attach(optimizer, transform, model=net):  # type: ignore[arg-type]
        optimizer.step()


@pytest.mark.parametrize("transform", [Centralize(), ZScore("channel")], ids=repr)
def test_transforms_by_channel_follow_the_owner(transform: Centralize | ZScore, columns: Columns) -> None:
    net = nn.ModuleList([OfTransformers(8, 6), MixedExperts(True), MixedExperts(False), columns, Unknown()])
    step(net, transform)
    for name, over in (
        ("0.weight", 0), ("1.gate_up_proj", 1), ("1.down_proj", 1), ("2.gate_up_proj", 2), ("3.inner", 1),
        ("4.linear.weight", 1),
    ):  # fmt: skip
        gradient = net.get_parameter(name).grad
        assert gradient is not None
        torch.testing.assert_close(gradient.mean(over), torch.zeros_like(gradient.mean(over)), atol=1e-6, rtol=0)
        if isinstance(transform, ZScore):
            torch.testing.assert_close(gradient.std(over), torch.ones_like(gradient.std(over)))
    left = {entry.name: reason for entry, reason in transform.left_out}
    assert "not known as a weight" in left["4.A_log"]
    assert left["1.gate_up_proj_bias"] == "a bias, no weight of a product"
    axis_less = Centralize(rule=Rule(include=("*A_log",)))
    step(net, axis_less)
    assert "outputs is not known" in {e.name: reason for e, reason in axis_less.left_out}["4.A_log"]


def test_adaptive_clip_by_units_of_the_owner(columns: Columns) -> None:
    net = nn.ModuleList([OfTransformers(8, 6), MixedExperts(True), columns, Unknown()])
    expected = {}
    generator = torch.Generator().manual_seed(0)
    for name, parameter in net.named_parameters():
        gradient = torch.randn(parameter.shape, generator=generator)
        over = {
            "0.weight": (0,),
            "1.gate_up_proj": (1,),
            "1.down_proj": (1,),
            "2.inner": (1,),
            "3.linear.weight": (1,),
        }.get(name)
        over = tuple(range(parameter.ndim)) if over is None else over
        limit = 0.01 * torch.linalg.vector_norm(parameter.detach(), dim=over, keepdim=True).clamp(min=1e-3)
        norm = torch.linalg.vector_norm(gradient, dim=over, keepdim=True)
        expected[name] = torch.where(norm > limit, gradient * limit / norm.clamp(min=1e-6), gradient)
        if name in ("3.A_log", "3.logit_scale"):
            expected[name] = gradient
    transform = AdaptiveClip(exclude_last_linear=False)
    step(net, transform)
    for name, parameter in net.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], msg=name)
    assert [entry.name for entry, _ in transform.left_out] == ["3.A_log", "3.logit_scale"]


def test_cram_compresses_weights_along_their_inputs() -> None:
    net = nn.Sequential(OfTransformers(8, 6), nn.Linear(6, 8), Unknown())
    seen = {}
    optimizer = CrAM(torch.optim.SGD(net.parameters(), lr=0.1), rho=0.0, sparsities=(0.5,), pattern="2:4", model=net)

    def closure() -> Tensor:
        optimizer.zero_grad()
        seen.update({name: parameter.detach().clone() for name, parameter in net.named_parameters()})
        loss = net(torch.ones(2, 8)).square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    assert bool(((seen["0.weight"].reshape(2, 4, 6) != 0).sum(1) == 2).all())
    assert bool(((seen["2.linear.weight"].reshape(4, 2, 4) != 0).sum(2) == 2).all())
    assert bool((seen["2.A_log"] != 0).all())
    left = {entry.name: reason for entry, reason in optimizer.left_out}
    assert "not known as a weight" in left["2.A_log"]
    assert left["1.weight"] == "input axis of 6 is not a multiple of 4"


def test_filters_of_the_landscape_follow_the_owner(columns: Columns) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.experts, self.unknown = OfTransformers(8, 8), columns, Unknown()

        def forward(self, x: Tensor) -> Tensor:
            return self.unknown(self.first(x)) + torch.einsum("bi,eio->bo", x, self.experts.inner)

    net = Net()
    objective = Objective(net, nn.functional.mse_loss, (torch.ones(2, 8), torch.zeros(2, 4)))
    found = random_directions(objective, 1)
    for entry, part in zip(objective.entries, objective.split(found.vectors[0]), strict=True):
        over = {"first.weight": 0, "experts.inner": 1, "unknown.linear.weight": 1}.get(entry.name)
        if over is None:
            assert not part.any(), entry.name
        else:
            torch.testing.assert_close(part.norm(dim=over), entry.parameter.detach().norm(dim=over))
    left = dict(found.left_out)
    assert "outputs is not known" in left["unknown.A_log"]
    assert left["experts.scale_table"] == "a scale, no weight of a product"
    scaled = random_directions(objective, 1, one_dimensional="scaled")
    part = objective.split(scaled.vectors[0])[[e.name for e in objective.entries].index("unknown.A_log")]
    torch.testing.assert_close(part.norm(), net.unknown.A_log.detach().norm())


class TiedHead(nn.Module):
    """A head tied to the first embedding; its last layer of its own is `middle`."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 4)
        self.middle = nn.Linear(4, 4)
        self.head = nn.Linear(4, 7, bias=False)
        self.head.weight = self.embedding.weight


def test_the_last_layer_is_the_models_and_a_tied_one_stands_at_its_last_name() -> None:
    net = TiedHead()
    kept = {entry.name: reason for entry, reason in one_shot(net, 0.5, keep_last=True).left_out}
    assert kept["embedding.weight"] == "last layer, kept (keep_last)"
    assert bool((net.head.weight != 0).all())
    net = TiedHead()
    kept = {entry.name: reason for entry, reason in one_shot(net, 0.5, keep_first=True).left_out}
    assert kept["embedding.weight"] == "first layer, kept (keep_first)"
    assert last_linear(entries(net)) is net.head


def test_adaptive_clip_leaves_the_models_last_layer_whatever_the_groups() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    biases = [parameter for name, parameter in net.named_parameters() if name.endswith("bias")]
    groups = [{"params": [net[2].weight, net[0].weight]}, {"params": biases[::-1], "weight_decay": 0.0}]
    optimizer = torch.optim.SGD(groups, lr=0.0)
    assert last_linear(with_names(optimizer, net)) is net[2]
    for parameter in net.parameters():
        parameter.grad = torch.full_like(parameter, 100.0)
    with trimtab.attach(optimizer, AdaptiveClip(), model=net):
        optimizer.step()
    assert bool((net[2].weight.grad == 100).all() and (net[2].bias.grad == 100).all())
    assert bool((net[0].weight.grad < 1).all() and (net[0].bias.grad < 1).all())


def test_a_transposed_view_of_a_weight_counts_once() -> None:
    net = nn.ModuleDict({"a": nn.Linear(6, 4, bias=False), "b": nn.Linear(4, 6, bias=False)})
    net["b"].weight = nn.Parameter(net["a"].weight.data.t())
    pruned = one_shot(net, 0.5)
    assert (pruned.count, pruned.prunable, pruned.total) == (12, 24, 24)
    assert int((net["a"].weight == 0).sum()) == 12 == int((net["b"].weight == 0).sum())
    assert {entry.name: reason for entry, reason in pruned.left_out} == {
        "b.weight": "a view of the memory of a.weight, which counts for it"
    }
    once = net["a"].weight.abs().sum().item()
    assert trimtab.penalties.L1(1.0).value(net).item() == pytest.approx(once)
    assert total_elements(entries(net)) == 24
    found = trimtab.observe.summary(net)
    assert (found.parameters, found.prunable) == (24, 24)
    optimizer = torch.optim.SGD(net.parameters())
    assert len(with_names(optimizer, net)) == 2  # both gradients are the optimizer's
    assert [entry.name for entry in select(net, Rule(min_ndim=0)).chosen] == ["a.weight", "b.weight"]


def test_halves_of_one_memory_are_two_weights() -> None:
    both = torch.randn(8, 4)
    net = nn.ModuleList([nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)])
    net[0].weight, net[1].weight = nn.Parameter(both[:4]), nn.Parameter(both[4:])
    assert len(select(net).chosen) == 2


def test_without_a_model_the_habit_holds() -> None:
    entry = entries([torch.ones(3, 2)])[0]
    assert (entry.output_axis, entry.role) == (0, "weight")
    assert Entry("a", torch.ones(2, 2)).role == "weight"
