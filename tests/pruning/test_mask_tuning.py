"""Masks that are learned on frozen weights: closed forms, transfer, one bit for each weight, refusals."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.pruning.nets import Tied, bits
from tests.pruning.waves import wave
from trimtab.models.vit import VisionTransformer
from trimtab.pruning import MaskTuning, apply_masks, layers_by_mask_gradient, load_masks, one_shot, save_masks


def linear() -> nn.Linear:
    net = nn.Linear(4, 3, bias=False).double()
    net.weight.data = wave((3, 4), 2)
    return net


def test_scores_get_the_gradient_of_the_masked_weight_times_the_weight() -> None:
    net, inputs, targets = linear(), wave((5, 4), 1), wave((5, 3), 3)
    tuning = MaskTuning(net, include=("*",)).double()
    tuning.scores["weight"].data = 5e-3 + 1e-3 * wave((3, 4), 4)
    mask = wave((3, 4), 4) > 0
    loss = (net(inputs) - targets).square().sum() / 2 + tuning.penalty()
    loss.backward()
    weight = wave((3, 4), 2)
    residual = inputs @ (weight * mask).T - targets
    expected = residual.T @ inputs * weight + 1e-4 * tuning.scores["weight"].detach().sign()
    torch.testing.assert_close(tuning.scores["weight"].grad, expected)
    assert torch.equal(tuning.masks["weight"], mask)
    assert (residual.square().sum() / 2 + 1e-4 * tuning.scores["weight"].abs().sum()).item() == pytest.approx(
        loss.item()
    )
    assert net.weight.grad is None


def test_between_calls_and_after_errors_the_network_is_an_ordinary_one() -> None:
    net = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))
    before, keys = bits(net), list(net.state_dict())
    net[0].bias.requires_grad_(False)
    tuning = MaskTuning(net, include=("*weight",))
    tuning.scores["0.weight"].data.fill_(0.0)
    masked = net(torch.ones(1, 4))
    with pytest.raises(RuntimeError):
        net(torch.ones(1, 5))
    assert bits(net) == before
    assert list(net.state_dict()) == keys == [name for name, _ in net.named_parameters()]
    assert [p.requires_grad for p in net.parameters()] == [False, False, False, True]
    assert [name for name, _ in tuning.named_parameters()] == ["_scores.0/weight", "_scores.2/weight"]
    tuning.remove()
    assert [p.requires_grad for p in net.parameters()] == [True, False, True, True]
    assert not torch.equal(net(torch.ones(1, 4)), masked)
    assert "weight" not in net[0].__dict__


def test_finalized_weights_compute_what_the_masked_ones_did() -> None:
    net = VisionTransformer(10, dim=16, depth=1, heads=2, image_size=8).eval()
    tuning = MaskTuning(net)
    assert sorted(tuning.masks) == [f"layers.0.attention.{name}.weight" for name in ("key", "out", "query", "value")]
    for scores in tuning.scores.values():
        nn.init.normal_(scores, 5e-3, 1e-3)
    images = torch.randn(2, 3, 8, 8)
    expected, sparsity = net(images), tuning.sparsity
    masks = tuning.finalize()
    assert torch.equal(net(images), expected)
    gone = sum(int((~mask).sum()) for mask in masks.values())
    assert 0 < gone == sum(int((net.get_parameter(name) == 0).sum()) for name in masks)
    assert sparsity == pytest.approx(gone / (4 * 256))
    with pytest.raises(ValueError, match="finalized or removed before"):
        tuning.finalize()


def test_torchs_own_attention_is_masked_in_all_its_parts() -> None:
    torch.manual_seed(0)
    net = nn.MultiheadAttention(8, 2, batch_first=True)
    tuning = MaskTuning(net, include=("*",))
    assert sorted(tuning.masks) == ["in_proj_weight", "out_proj.weight"]
    x = torch.randn(1, 3, 8)
    for name in tuning.masks:
        scores = tuning.scores[name]
        before = net(x, x, x)[0]
        scores.data[0] = 0
        assert not torch.equal(net(x, x, x)[0], before), name
    expected = net(x, x, x)[0]
    tuning.finalize()
    torch.testing.assert_close(net(x, x, x)[0], expected)


def test_a_file_holds_one_bit_for_each_weight(tmp_path: Path) -> None:
    net = nn.Linear(100, 80)
    tuning = MaskTuning(net, include=("*",))
    nn.init.normal_(tuning.scores["weight"], 5e-3, 1e-3)
    size = tuning.save(tmp_path / "masks.safetensors")
    assert 1000 <= size <= 1000 + 300
    other = nn.Linear(100, 80)
    fresh = MaskTuning(other, include=("*",))
    fresh.load(tmp_path / "masks.safetensors")
    assert torch.equal(fresh.masks["weight"], tuning.masks["weight"])
    assert fresh.scores["weight"].unique().tolist() == pytest.approx([0.0, 1e-2])
    third = nn.Linear(100, 80)
    apply_masks(third, load_masks(tmp_path / "masks.safetensors"))
    assert torch.equal(third.weight == 0, ~tuning.masks["weight"])


@pytest.mark.parametrize("shape", [(1,), (3, 3), (2, 2, 2), (0,), (17,)])
def test_masks_of_every_shape_come_back(shape: tuple[int, ...], tmp_path: Path) -> None:
    mask = torch.rand(shape) > 0.5
    save_masks({"a": mask, "b.c": ~mask}, tmp_path / "m")
    found = load_masks(tmp_path / "m")
    assert torch.equal(found["a"], mask)
    assert torch.equal(found["b.c"], ~mask)


def test_masks_of_one_shot_pruning_are_saved_too_and_damage_is_refused(tmp_path: Path) -> None:
    net, file = nn.Linear(9, 5), tmp_path / "m"
    pruned = one_shot(net, 0.5)
    save_masks(pruned.masks, file)
    assert torch.equal(load_masks(file)["weight"], net.weight != 0)
    content = file.read_bytes()
    other_shapes = (content.replace(b"[5, 9]", shape) for shape in (b"[5, 8]", b"[5,-9]"))
    for damaged in (b"", content[:20], content[:-1], *other_shapes):
        file.write_bytes(damaged)
        with pytest.raises(ValueError, match=str(file)):
            load_masks(file)
    with pytest.raises(FileNotFoundError):
        load_masks(tmp_path / "none")
    with pytest.raises(TypeError, match="mask 'a' must be bool"):
        save_masks({"a": torch.ones(3)}, file)
    with pytest.raises(ValueError, match="no masks"):
        save_masks({}, file)


def test_masks_alone_learn_the_other_half_of_the_digits_better_than_a_linear_probe() -> None:
    datasets = pytest.importorskip("sklearn.datasets")
    torch.manual_seed(0)
    images, labels = (torch.from_numpy(part) for part in datasets.load_digits(return_X_y=True))
    images = (images / 16).float()
    early, order = labels < 5, torch.randperm(int((labels >= 5).sum()))
    x, y = images[~early][order], labels[~early][order] - 5
    body = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU())

    def learn(parameters: list[nn.Parameter], head: nn.Linear, data: tuple[Tensor, Tensor], lr: float) -> None:
        groups = [{"params": parameters, "lr": lr}, {"params": list(head.parameters()), "lr": 1e-2}]
        optimizer = torch.optim.Adam(groups)
        for _ in range(150):
            optimizer.zero_grad()
            F.cross_entropy(head(body(data[0])), data[1]).backward()
            optimizer.step()

    learn(list(body.parameters()), nn.Linear(16, 5), (images[early], labels[early]), 1e-2)
    frozen = bits(body)
    accuracy = {}
    for kind in ("probe", "masks"):
        tuning, head = MaskTuning(body, include=("*",)), nn.Linear(16, 5)
        body.requires_grad_(False)
        parameters = list(tuning.parameters()) if kind == "masks" else []
        learn(parameters, head, (x[:400], y[:400]), 1e-3)
        accuracy[kind] = (head(body(x[400:])).argmax(1) == y[400:]).float().mean().item()
        tuning.remove()
    assert bits(body) == frozen
    assert accuracy["masks"] > accuracy["probe"] + 0.02, accuracy


def test_the_layers_with_the_largest_mask_gradients_are_chosen() -> None:
    net = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False), nn.Linear(4, 2, bias=False)).double()
    x, y = wave((6, 4), 1), wave((6, 2), 2)
    weights = [layer.weight for layer in net]
    gradients = torch.autograd.grad(F.mse_loss(net(x), y), weights)
    means = {
        f"{at}.weight": (g * w).abs().mean().item() for at, (g, w) in enumerate(zip(gradients, weights, strict=True))
    }
    found = layers_by_mask_gradient(net, [(x, y)], F.mse_loss, 2, include=("*",))
    assert list(found) == sorted(means, key=lambda name: -means[name])[:2]
    assert sorted(MaskTuning(net, include=found).masks) == sorted(found)
    with pytest.raises(ValueError, match=r"top must be a whole number in 1\.\.3, got 4"):
        layers_by_mask_gradient(net, [(x, y)], F.mse_loss, 4, include=("*",))


def test_bad_input_is_named_and_the_model_stays() -> None:
    net = nn.Linear(3, 2)
    for settings, message in (
        ({"init": 5e-3}, "init must be above the threshold 0.005, got 0.005"),
        ({"strength": -1.0}, "strength must be"),
        ({}, r"Linear has no weight that matches '\*attn\*', '\*attention\*'; its weights are weight"),
    ):
        with pytest.raises(ValueError, match=message):
            MaskTuning(net, **settings)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"a mask on a tied weight: embedding\.weight is also head\.weight"):
        MaskTuning(Tied(), include=("*",))
    normed = nn.utils.parametrizations.weight_norm(nn.Linear(3, 2))
    with pytest.raises(ValueError, match="computed from others"):
        MaskTuning(normed, include=("*",))
    assert net.weight.requires_grad
    tuning = MaskTuning(net, include=("*",))
    with pytest.raises(ValueError, match=r"the masks are of \['x'\]"):
        tuning.put_on({"x": torch.ones(2, 3, dtype=torch.bool)})
    with pytest.raises(ValueError, match="has shape"):
        tuning.put_on({"weight": torch.ones(2, 2, dtype=torch.bool)})
