"""SharedOrOwn: all shared is the plain layer, none shared the task's own; the score's gradient points downhill; bad input."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from trimtab.multitask import SharedOrOwn

LAYERS: list[tuple[Any, tuple[int, ...]]] = [
    (lambda: nn.Linear(5, 3), (4, 5)),
    (lambda: nn.Conv1d(4, 6, 3, padding=1, groups=2), (2, 4, 7)),
    (lambda: nn.Conv2d(4, 6, (3, 2), stride=2, dilation=1, padding_mode="circular", padding=1), (2, 4, 7, 6)),
    (lambda: nn.Conv3d(2, 3, 2, bias=False), (2, 2, 4, 4, 4)),
]


def made(kind: Any, granularity: Any, **given: Any) -> SharedOrOwn:
    torch.manual_seed(0)
    layer = SharedOrOwn(kind().double(), ("depth", "normals"), granularity, **given)
    for task in layer.tasks:  # as after some training
        layer.own[task].data.add_(torch.randn_like(layer.own[task]))
        if task in layer.own_bias:
            layer.own_bias[task].data.add_(1)
    return layer


@pytest.mark.parametrize(("kind", "shape"), LAYERS)
@pytest.mark.parametrize("granularity", ["layer", "channel", "kernel"])
def test_all_shared_is_the_plain_layer_none_shared_is_the_tasks_own(
    kind: Any, shape: tuple[int, ...], granularity: Any
) -> None:
    if granularity == "kernel" and isinstance(kind(), nn.Linear):
        pytest.skip("a Linear has no kernel places")
    layer, inputs = made(kind, granularity), torch.randn(shape, dtype=torch.float64)
    layer.scores.data.fill_(0.2)
    torch.testing.assert_close(layer(inputs, task="depth"), layer.layer(inputs))
    layer.scores.data.fill_(0.8)
    alone = kind().double()
    alone.weight.data = layer.own["normals"].data
    if alone.bias is not None:
        alone.bias.data = (layer.own_bias["normals"] if granularity == "layer" else layer.layer.bias).data
    torch.testing.assert_close(layer(inputs, task="normals"), alone(inputs))


def test_scores_have_the_form_of_their_granularity() -> None:
    conv = LAYERS[2][0]
    forms = {name: tuple(made(conv, name).scores.shape) for name in ("layer", "channel", "kernel")}
    assert forms == {"layer": (1, 1, 1, 1), "channel": (1, 4, 1, 1), "kernel": (1, 1, 3, 2)}


def test_the_masks_gradient_is_the_product_with_the_difference_of_weights() -> None:
    layer = made(LAYERS[0][0], "channel")
    inputs = torch.randn(4, 5, dtype=torch.float64)
    layer(inputs, task="depth").square().sum().backward()
    effective = (layer.mask * layer.layer.weight + (1 - layer.mask) * layer.own["depth"]).detach().requires_grad_()
    loss = nn.functional.linear(inputs, effective, layer.layer.bias.detach()).square().sum()
    (gradient,) = torch.autograd.grad(loss, effective)
    expected = -(gradient * (layer.layer.weight - layer.own["depth"])).sum(0, keepdim=True)
    torch.testing.assert_close(layer.scores.grad, expected)


@pytest.mark.parametrize("published", [False, True])
def test_a_step_of_the_score_alone_lowers_the_loss_but_raises_it_as_published(published: bool) -> None:
    """The mask is wrong: everything is own, and the shared weight is the right one."""
    layer = SharedOrOwn(nn.Linear(1, 1, bias=False), ("a", "b"), "layer", published=published)
    layer.layer.weight.data.fill_(1.0)
    layer.own["a"].data.fill_(-1.0)
    layer.scores.data.fill_(0.51)
    inputs = torch.ones(1, 1)
    loss = (layer(inputs, task="a") - 1).square().mean()
    loss.backward()
    assert layer.scores.grad is not None
    layer.scores.data -= 0.05 * layer.scores.grad
    after = (layer(inputs, task="a") - 1).square().mean()
    assert (after.item() < loss.item()) is not published


def test_the_penalty_pushes_towards_sharing() -> None:
    layer = made(LAYERS[0][0], "channel", penalty=0.5)
    layer.penalty().backward()
    assert layer.scores.grad is not None
    assert layer.scores.grad.flatten().tolist() == pytest.approx([0.1] * 5)
    assert float(layer.penalty()) == pytest.approx(0.5 * float(layer.scores.mean()))


def test_generator_and_state_make_it_repeatable() -> None:
    one, other = (SharedOrOwn(nn.Linear(6, 2), "ab", generator=torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(one.scores, other.scores)
    third = SharedOrOwn(nn.Linear(6, 2), "ab")
    third.load_state_dict(one.state_dict())
    inputs = torch.randn(3, 6)
    assert torch.equal(third(inputs, task="b"), one(inputs, task="b"))
    assert "tasks=('a', 'b'), granularity='channel'" in repr(one)


BAD: list[tuple[Any, type[Exception], str]] = [
    (lambda: SharedOrOwn(nn.ConvTranspose2d(1, 1, 1), "ab"), TypeError, "got ConvTranspose2d"),
    (lambda: SharedOrOwn(nn.Linear(1, 1), ["a"]), ValueError, "tasks must be two different names or more"),
    (lambda: SharedOrOwn(nn.Linear(1, 1), ["a", "a"]), ValueError, "tasks must be two different names or more"),
    (lambda: SharedOrOwn(nn.Linear(1, 1), "ab", "kernel"), ValueError, "granularity 'kernel' is of convolutions"),
    (lambda: SharedOrOwn(nn.Linear(1, 1), "ab", "unit"), ValueError, "granularity must be one of"),  # type: ignore[arg-type]
    (lambda: SharedOrOwn(nn.Linear(1, 1), "ab")(torch.ones(1, 1), task="c"), ValueError, "task must be one of 'a', 'b'"),
    (lambda: SharedOrOwn(nn.Linear(1, 1), "ab", penalty=-1.0), ValueError, "penalty must be finite and 0 or more, got -1"),
]  # fmt: skip


@pytest.mark.parametrize(("act", "kind", "words"), BAD)
def test_bad_input_is_one_error(act: Any, kind: type[Exception], words: str) -> None:
    with pytest.raises(kind, match=words):
        act()
