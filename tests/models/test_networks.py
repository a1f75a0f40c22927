"""Shapes, gradients, initial values and repeatability of the networks."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from trimtab import models
from trimtab.models.cifar_resnet import PlainShortcutBlock
from trimtab.models.vit import SelfAttention

LIGHT = [
    ("digits_cnn", {}, (1, 8, 8)),
    ("resnet_digits", {}, (1, 8, 8)),
    ("resnet8", {}, (3, 32, 32)),
    ("resnet20", {}, (3, 16, 16)),
    ("vit_tiny", {"dim": 24, "depth": 2, "heads": 3, "patch": 4}, (3, 8, 16)),
    ("wrn28_10", {"depth": 10, "factor": 1}, (2, 16, 16)),
    ("resnet18", {"stem": "imagenet"}, (3, 32, 32)),
]
SEGMENTING = [("unet_small", {"width": 4}, (1, 45, 61)), ("unet_resnet18", {}, (2, 40, 33))]
HEAVY = ["resnet18", "resnet50", "resnet56", "vgg16_bn", "wrn28_10", "unet_resnet50", "unet_resnet18", "vit_tiny"]


def build(name: str, arguments: dict[str, object], shape: tuple[int, int, int], classes: int) -> nn.Module:
    return models.create(
        name,
        num_classes=classes,
        in_channels=shape[0],
        image_size=shape[1:],
        **arguments,  # type: ignore[arg-type]
    )


@pytest.mark.parametrize(("name", "arguments", "shape"), LIGHT + SEGMENTING)
def test_output_shape_and_a_gradient_for_every_parameter(
    name: str, arguments: dict[str, object], shape: tuple[int, int, int]
) -> None:
    network = build(name, arguments, shape, 5)
    outputs = network(torch.randn(4, *shape))
    segments = name.startswith("unet")
    assert outputs.shape == ((4, 5, *shape[1:]) if segments else (4, 5))
    targets = torch.randint(5, (4, *shape[1:]) if segments else (4,))
    F.cross_entropy(outputs, targets).backward()
    for label, parameter in network.named_parameters():
        assert parameter.grad is not None, label
        assert bool(torch.isfinite(parameter.grad).all()), label
        if not label.endswith("key.bias"):  # a softmax does not feel a shift common to all keys
            assert bool((parameter.grad != 0).any()), label


@pytest.mark.parametrize("name", HEAVY)
def test_big_networks_have_the_right_output_shape(name: str) -> None:
    with torch.device("meta"):
        network = models.create(name, num_classes=7, in_channels=3, image_size=32)
        outputs = network(torch.empty(2, 3, 32, 32))
    assert outputs.shape == ((2, 7, 32, 32) if name.startswith("unet") else (2, 7))


@pytest.mark.parametrize(("name", "arguments", "shape"), LIGHT[:5] + SEGMENTING[:1])
def test_same_seed_same_network_and_channels_last_changes_nothing_but_order(
    name: str, arguments: dict[str, object], shape: tuple[int, int, int]
) -> None:
    networks = []
    for _ in range(2):
        torch.manual_seed(3)
        networks.append(build(name, arguments, shape, 4).eval())
    first, second = networks
    assert all(
        torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    )
    x = torch.randn(2, *shape)
    ordered = second.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    torch.testing.assert_close(ordered(x.to(memory_format=torch.channels_last)), first(x), rtol=1e-4, atol=1e-5)


def test_convolutions_start_with_kaiming_fan_out_spread() -> None:
    network = models.create("resnet20", num_classes=10)
    convolutions = [m for m in network.modules() if isinstance(m, nn.Conv2d) and m.weight.numel() > 20_000]
    assert convolutions
    for module in convolutions:
        expected = (2 / (module.out_channels * 9)) ** 0.5
        assert module.weight.std().item() == pytest.approx(expected, rel=0.03)
    up = models.create("unet_small", num_classes=2, in_channels=1).up[0]  # type: ignore[index, union-attr]
    assert up.weight.std().item() == pytest.approx((2 / (up.out_channels * 4)) ** 0.5, rel=0.03)


def test_plain_shortcut_subsamples_and_appends_zero_channels() -> None:
    block = PlainShortcutBlock(2, 5, stride=2).eval()
    nn.init.zeros_(block.conv2.weight)
    x = torch.rand(1, 2, 6, 6)
    out = block(x)
    assert torch.equal(out[:, :2], x[:, :, ::2, ::2])
    assert not out[:, 2:].any()


def test_attention_equals_torchs_multihead_attention() -> None:
    ours, theirs = SelfAttention(12, 3).double(), nn.MultiheadAttention(12, 3, batch_first=True).double()
    with torch.no_grad():
        parts = (ours.query, ours.key, ours.value)
        theirs.in_proj_weight.copy_(torch.cat([part.weight for part in parts]))
        theirs.in_proj_bias.copy_(torch.cat([part.bias for part in parts]))
        theirs.out_proj.weight.copy_(ours.out.weight)
        theirs.out_proj.bias.copy_(ours.out.bias)
    x = torch.randn(2, 7, 12, dtype=torch.float64)
    torch.testing.assert_close(ours(x), theirs(x, x, x, need_weights=False)[0])


def test_padding_of_odd_sizes_leaves_the_rest_of_the_image_alone() -> None:
    network = models.create("unet_small", num_classes=2, in_channels=1, width=4).eval()
    x = torch.randn(1, 1, 45, 61)
    padded = F.pad(x, (0, 3, 0, 3))
    assert torch.equal(network(x), network(padded)[..., :45, :61])


@pytest.mark.parametrize("name", ["vit_tiny", "vgg16_bn"])
def test_images_of_a_wrong_size_are_refused(name: str) -> None:
    with torch.device("meta"):
        network = models.create(name, num_classes=2)
    with pytest.raises(ValueError, match="got"):
        network(torch.empty(1, 3, 20, 20, device="meta"))
