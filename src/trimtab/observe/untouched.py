"""Run a model without leaving a trace in it."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from trimtab.parameters.modes import modes_kept


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside; afterwards the modes, buffers and random state are bit-equal to before.

    Example:
        >>> net = nn.Dropout()
        >>> with untouched(net):
        ...     inside = net.training
        >>> inside, net.training
        (False, True)
    """
    buffers = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    devices = {parameter.device for parameter in model.parameters() if parameter.device.type == "cuda"}
    with torch.random.fork_rng(devices=sorted(device.index for device in devices)):
        try:
            with modes_kept(model, training=False):
                yield
        finally:
            with torch.no_grad():
                for buffer, before in buffers:
                    if buffer.layout == torch.strided and not _same_bits(buffer, before):
                        buffer.copy_(before)


@contextmanager
def uncompiled(model: nn.Module) -> Iterator[None]:
    """Every part of `model` runs eagerly inside, where hooks and counters see it, compiled or not."""
    if any(hasattr(module, "_orig_mod") or module._compiled_call_impl is not None for module in model.modules()):
        with torch.compiler.set_stance("force_eager"):
            yield
    else:
        yield


@contextmanager
def unfused(model: nn.Module) -> Iterator[None]:
    """No kernels that hide several products in one operation: attention's fast path, oneDNN's recurrent layers."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        if any(isinstance(module, nn.RNNBase) for module in model.modules()):
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="TF32 acceleration on top of oneDNN")
                with torch.backends.mkldnn.flags(enabled=False):
                    yield
        else:
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def _same_bits(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape:
        return False
    flat = [tensor.detach().contiguous().reshape(-1).view(torch.uint8) for tensor in (one, other)]
    return torch.equal(*flat)
