"""A pruned network is an ordinary module: copies, state dicts, export and compile see nothing but zeros."""

from __future__ import annotations

import copy
import io

import pytest
import torch

from tests.pruning.nets import Small, bits
from tests.warned import TOY_IS_CUT
from trimtab.pruning import one_shot, sweep

pytestmark = TOY_IS_CUT


def test_same_keys_no_hooks_and_copies() -> None:
    net = Small()
    keys = list(net.state_dict())
    parameters = [id(parameter) for parameter in net.parameters()]
    attributes = [set(vars(module)) for module in net.modules()]
    one_shot(net, 0.9)
    assert list(net.state_dict()) == keys
    assert [id(parameter) for parameter in net.parameters()] == parameters
    assert [set(vars(module)) for module in net.modules()] == attributes
    assert not any(module._forward_pre_hooks for module in net.modules())
    assert bits(copy.deepcopy(net)) == bits(net)
    file = io.BytesIO()
    torch.save(net.state_dict(), file)
    file.seek(0)
    other = Small()
    other.load_state_dict(torch.load(file, weights_only=True))
    assert bits(other) == bits(net)


def test_training_goes_on_after_pruning() -> None:
    net = Small()
    one_shot(net, 0.5)
    net(torch.randn(2, 4, 6, 6)).sum().backward()
    assert all(parameter.grad is not None and parameter.requires_grad for parameter in net.parameters())


def test_channels_last_weights() -> None:
    plain, last = Small(), Small().to(memory_format=torch.channels_last)
    last.load_state_dict(plain.state_dict())
    expected = one_shot(plain, 0.7).masks
    for name, mask in one_shot(last, 0.7).masks.items():
        assert torch.equal(mask, expected[name])
        assert torch.equal(last.get_parameter(name), plain.get_parameter(name))
    assert last.conv.weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.slow
def test_export() -> None:
    net = Small().eval()
    one_shot(net, 0.9)
    x = torch.randn(2, 4, 6, 6)
    program = torch.export.export(net, (x,))
    assert set(program.state_dict) == set(net.state_dict())
    torch.testing.assert_close(program.module()(x), net(x))


@pytest.mark.slow
def test_compiled_model_sees_every_state() -> None:
    net = Small().eval()
    compiled = torch.compile(net)
    x = torch.randn(2, 4, 6, 6)
    dense = compiled(x)
    outputs = []
    for _ in sweep(compiled, (0.5, 0.9)):
        outputs.append(compiled(x))
        torch.testing.assert_close(outputs[-1], net(x), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(*outputs)
    torch.testing.assert_close(compiled(x), dense)
