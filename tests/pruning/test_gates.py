"""Hard concrete gates: written-down values, what learning closes, closing for good, removal, refusals."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from tests.pruning.nets import Tied, bits
from tests.pruning.waves import wave
from trimtab.deploy import remove_gated
from trimtab.models.cifar_resnet import resnet8
from trimtab.models.vit import VisionTransformer
from trimtab.pruning import HardConcreteGate, gate_channels, gate_heads, match_output_loss

U = torch.tensor([0.1, 0.3, 0.5, 0.7, 0.9], dtype=torch.float64)


def gate_of_waves(**settings: float) -> HardConcreteGate:
    gate = HardConcreteGate(5, **settings).double()  # type: ignore[arg-type]
    gate.alpha.data = wave((5,), 3, 3.0)
    return gate


@pytest.mark.parametrize(
    ("noise_eps", "expected"),
    [
        (1e-8, [0.1537079119, 0.0, 0.0, 0.9321248168, 1.0]),
        (0.5, [0.5922769567, 0.0, 0.0, 0.8397203181, 1.0]),
    ],
)
def test_drawn_gates_are_the_written_down_ones(noise_eps: float, expected: list[float]) -> None:
    found = gate_of_waves(noise_eps=noise_eps).sample(U)
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=2e-9)


def test_probabilities_and_evaluated_gates_are_the_written_down_ones() -> None:
    gate = gate_of_waves()
    for found, expected in (
        (gate.open_probability(), [0.9566815705, 0.4409240721, 0.2050588448, 0.9340333708, 0.9618979443]),
        (gate.eval()(), [0.8013540456, 0.01675215887, 0.0, 0.6911421429, 0.8303397578]),
    ):
        torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=2e-9)
    assert gate.penalty("l0").item() == pytest.approx(gate.open_probability().sum().item())
    alpha = wave((5,), 3, 3.0)
    assert gate.penalty("l1").item() == pytest.approx(float((0.4 * alpha + 1).sigmoid().mean()))


def test_the_share_of_open_draws_is_the_probability_and_with_much_noise_is_not() -> None:
    torch.manual_seed(0)
    share = {}
    for noise_eps in (1e-8, 0.5):
        gate = gate_of_waves(noise_eps=noise_eps)
        drawn = torch.stack([gate.sample() for _ in range(20_000)])
        share[noise_eps] = (drawn > 0).double().mean(0)
    expected = gate_of_waves().open_probability()
    torch.testing.assert_close(share[1e-8], expected.detach(), rtol=0, atol=0.015)
    assert (share[0.5] - expected).abs().max().item() > 0.1
    with pytest.warns(UserWarning, match="only a surrogate"):
        gate_of_waves(noise_eps=0.5).penalty()


def vit() -> VisionTransformer:
    torch.manual_seed(0)
    net = VisionTransformer(10, dim=16, depth=2, heads=4, image_size=8).eval()
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.3)
    return net


IMAGES = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def test_learning_closes_the_neurons_that_do_nothing_and_touches_no_weight() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 3))
    net[2].weight.data[:, :4] *= 5
    net[2].weight.data[:, 4:] *= 1e-3
    before = bits(net)
    gates = gate_heads(net, outputs={"2": 12}, init=1.0)  # twelve "heads" of one number: what the last layer reads
    optimizer = torch.optim.Adam(gates.parameters(), lr=0.1)
    for _ in range(150):
        x = torch.randn(64, 6)
        with gates.open(), torch.no_grad():
            teacher = net(x)
        optimizer.zero_grad()
        (match_output_loss(net(x), teacher) + 0.02 * gates.penalty(mean=False)).backward()
        optimizer.step()
    gates.remove()
    assert bits(net) == before
    values = gates.values()["2"]
    assert (values[4:] == 0).all()
    assert (values[:4] > 0.5).all()


def test_open_gates_change_nothing_and_all_readers_see_one_draw() -> None:
    net = vit()
    expected = net(IMAGES)
    gates = gate_heads(net, init=1.0)
    with gates.open():
        torch.testing.assert_close(net(IMAGES), expected, rtol=0, atol=0)
    torch.manual_seed(0)
    drawn = net(IMAGES)
    assert not torch.equal(drawn, expected)
    torch.manual_seed(0)
    assert torch.equal(net(IMAGES), drawn)
    assert list(net.state_dict()) == list(vit().state_dict())
    assert set(gates.state_dict()) == {"gates.layers/0/attention.alpha", "gates.layers/1/attention.alpha"}
    gates.remove()
    assert torch.equal(net(IMAGES), expected)


def test_the_loss_is_the_squared_distance_for_each_example_and_the_teacher_gets_no_gradient() -> None:
    student, teacher = torch.ones(2, 3, requires_grad=True), torch.zeros(2, 3, requires_grad=True)
    loss = match_output_loss({"a": student, "b": [student]}, {"a": teacher, "b": [teacher]})
    loss.backward()
    assert loss.item() == 6.0
    assert teacher.grad is None
    with pytest.raises(ValueError, match=r"same shapes, got \[\(2, 3\)\] and \[\(3,\)\]"):
        match_output_loss(student, torch.zeros(3))


def test_heads_that_are_closed_go_for_good() -> None:
    pytest.importorskip("torch_pruning")
    net = vit()
    plain = net(IMAGES)
    gates = gate_heads(net)
    for place in gates.places:
        gates.gate(place.name).alpha.data = torch.tensor([-5.0, 3.0, 0.2, -4.0])
    gated = {name: value.tolist() for name, value in gates.values().items()}
    gates.eval()
    expected = net(IMAGES)
    closed = gates.finalize()
    assert closed == {"layers.0.attention": [0, 3], "layers.1.attention": [0, 3]}
    torch.testing.assert_close(net(IMAGES), expected)
    assert 0 < gated["layers.0.attention"][2] < 1, "a gate between 0 and 1 goes into the weight"
    net.train().get_submodule("layers.1").eval()  # a part that is frozen
    modes = [module.training for module in net.modules()]
    smaller = remove_gated(gates, IMAGES)
    for one in (net, smaller.model):
        assert [module.training for module in one.modules()] == modes, "the modes of parts are theirs"
        one.eval()
    torch.testing.assert_close(smaller.model(IMAGES), expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(expected, plain, atol=1e-2)
    attention = smaller.model.get_submodule("layers.0.attention")
    assert (attention.heads, attention.query.out_features, attention.out.in_features) == (2, 8, 8)
    assert smaller.removed["layers.1.attention"] == [0, 3]
    assert smaller.multiply_adds[1] < smaller.multiply_adds[0]


@pytest.mark.parametrize("build", ["vit", "resnet", "flat"])
def test_channels_that_are_closed_go_for_good(build: str) -> None:
    pytest.importorskip("torch_pruning")
    torch.manual_seed(0)
    net: nn.Module
    if build == "vit":
        net, images = vit(), IMAGES
    elif build == "resnet":
        net, images = resnet8(10, 3).eval(), torch.randn(2, 3, 16, 16)
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.bias, -0.5, 0.5)
                nn.init.uniform_(module.running_var, 0.5, 1.5)
    else:
        net = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 36, 5)).eval()
        nn.init.uniform_(net[1].bias, 0.5, 1.0)  # what a closed channel would pass on, were its own output gated
        images = IMAGES
    gates = gate_channels(net, images)
    readers = {reader for place in gates.places for reader in place.readers}
    assert (
        readers
        == {
            "vit": {"layers.0.mlp.2", "layers.1.mlp.2"},
            "resnet": {"stages.0.0.conv2", "stages.1.0.conv2", "stages.2.0.conv2"},
            "flat": {"4"},
        }[build]
    )
    for place in gates.places:
        nn.init.normal_(gates.gate(place.name).alpha, std=3.0)
    gates.eval()
    expected = net(images)
    sizes = sum(place.size for place in gates.places)
    closed = gates.finalize(sparsity=0.5)
    assert sum(map(len, closed.values())) == sizes // 2
    smaller = remove_gated(gates, images)
    with torch.no_grad():
        torch.testing.assert_close(smaller.model(images), net(images), rtol=1e-4, atol=1e-5)
    assert smaller.parameters[1] < smaller.parameters[0]
    assert expected.shape == net(images).shape


def test_heads_and_neurons_are_gated_together() -> None:
    pytest.importorskip("torch_pruning")
    net = vit()
    heads = gate_heads(net, init=0.0)
    neurons = gate_channels(net, IMAGES)
    heads.finalize(sparsity=0.25)
    with pytest.raises(ValueError, match="finalize or remove all gates"):
        remove_gated(heads, IMAGES)
    neurons.remove()
    assert remove_gated(heads, IMAGES).model(IMAGES).shape == (3, 10)


def test_what_cannot_go_stays_with_the_reason() -> None:
    pytest.importorskip("torch_pruning")
    reasons = dict(gate_channels(vit(), IMAGES, exclude=("layers.0.mlp.0",)).left_out)
    assert reasons["head"] == "no layer reads its channels: they are those of the output"
    assert "the network breaks without some" in reasons["layers.0.attention.value"], "single numbers of heads"
    assert reasons["layers.0.mlp.0"] == "named in exclude"


class TiedNeurons(nn.Module):
    """The second layer of one block is that of another."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.three = nn.Linear(4, 6), nn.Linear(6, 4), nn.Linear(4, 6)
        self.four = nn.Linear(6, 4)
        self.four.weight = self.two.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.four(self.three(self.two(self.one(x))))


def test_bad_input_is_named_and_the_model_stays() -> None:
    net = vit()
    before = bits(net)
    with pytest.raises(ValueError, match=r"a gate on a tied weight: head\.weight is also embedding\.weight"):
        gate_heads(Tied(), outputs={"head": 2})
    with pytest.raises(ValueError, match="has no attention heads that gates fit"):
        gate_heads(nn.Sequential(nn.Linear(3, 3)))
    with pytest.raises(ValueError, match="16 inputs, which 3 heads do not divide"):
        gate_heads(net, outputs={"layers.0.attention.out": 3})
    for settings, message in (
        ({"beta": 0.0}, "beta must be"),
        ({"stretch": (0.0, 1.1)}, r"stretch\[0\] must"),
        ({"stretch": (-0.1, 1.0)}, r"stretch\[1\] must"),
        ({"noise_eps": -1.0}, "noise_eps must"),
    ):
        with pytest.raises(ValueError, match=message):
            HardConcreteGate(3, **settings)  # type: ignore[arg-type]
    gates = gate_heads(net)
    for arguments, message in (
        ({"threshold": 1.0}, "threshold must"),
        ({"sparsity": 0.9}, "7 of 8 gates cannot close while each of 2 places keeps one; at most 6"),
        ({"sparsity": 1.0}, "sparsity must"),
    ):
        with pytest.raises(ValueError, match=message):
            gates.finalize(**arguments)  # type: ignore[arg-type]
    gates.gate("layers.1.attention").alpha.data[0] = float("nan")
    with pytest.raises(ValueError, match=r"the gates of layers\.1\.attention hold NaN"):
        gates.finalize()
    assert bits(net) == before
    gates.remove()
    with pytest.raises(ValueError, match="finalized or removed before"):
        gates.finalize()


def test_tied_neurons_are_one_clear_error() -> None:
    pytest.importorskip("torch_pruning")
    with pytest.raises(ValueError, match=r"a gate on a tied weight: \w+\.weight is also \w+\.weight"):
        gate_channels(TiedNeurons(), torch.randn(2, 4))


def test_packed_projections_are_gated_and_their_removal_is_refused_by_name() -> None:
    pytest.importorskip("torch_pruning")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    net = transformers.GPT2Model(
        transformers.GPT2Config(n_embd=8, n_layer=1, n_head=2, vocab_size=11, n_positions=8)
    ).eval()
    tokens = torch.tensor([[1, 2, 3]])
    gates = gate_heads(net)
    assert [place.readers for place in gates.places] == [("h.0.attn.c_proj",)]
    gates.gate("h.0.attn").alpha.data = torch.tensor([-5.0, 3.0])
    gates.eval()
    expected = net(tokens).last_hidden_state
    before = copy.deepcopy(net.h[0].attn.c_proj.weight)
    gates.finalize()
    assert torch.equal(net.h[0].attn.c_proj.weight[4:], before[4:])
    assert not net.h[0].attn.c_proj.weight[:4].any()
    torch.testing.assert_close(net(tokens).last_hidden_state, expected)
    with pytest.raises(ValueError, match=r"h\.0\.attn: the network breaks .* are not three linear layers"):
        remove_gated(gates, tokens)


def test_heads_of_a_transformers_model_go() -> None:
    pytest.importorskip("torch_pruning")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=4, intermediate_size=32, image_size=8, patch_size=4
    )
    net = transformers.ViTForImageClassification(config).eval()
    gates = gate_heads(net)
    assert len(gates.places) == 2
    nn.init.normal_(gates.gate(gates.places[0].name).alpha, std=3.0)
    gates.finalize(sparsity=0.25)
    smaller = remove_gated(gates, IMAGES)
    torch.testing.assert_close(smaller.model(IMAGES).logits, net(IMAGES).logits, rtol=1e-4, atol=1e-5)
    assert smaller.parameters[1] < smaller.parameters[0]


class Viewed(nn.Module):
    """Values whose sides are written down: of attention, four numbers a head, as many heads as there are."""

    def __init__(self) -> None:
        super().__init__()
        self.value, self.out = nn.Linear(6, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.relu(self.value(x).view(len(x), -1, 4)).flatten(1))


def test_numbers_of_a_head_are_not_gated_although_whole_heads_could_go() -> None:
    with pytest.raises(ValueError, match=r"value: the network breaks without some of its channels"):
        gate_channels(Viewed(), torch.randn(2, 6))
