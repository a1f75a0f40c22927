"""Re-estimate BatchNorm statistics after pruning: nothing is trained, often most of the accuracy comes back."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from trimtab.collectives import is_distributed, sum_over_ranks


@dataclass(frozen=True)
class Recalibration:
    """How many BatchNorm modules were re-estimated, from how many batches on this rank."""

    modules: int
    batches: int


def _inputs(batch: Any) -> Tensor:
    found = batch[0] if isinstance(batch, list | tuple) and batch else batch
    if not isinstance(found, Tensor):
        raise TypeError(f"a batch must be a tensor or start with one, got {type(batch).__name__}")
    return found


def _merge_ranks(norms: list[_BatchNorm], batches: int) -> None:
    """Weighted mean of the statistics over all ranks: the mean over all batches of all ranks."""
    weight = torch.tensor([float(batches)], device=norms[0].running_mean.device, dtype=torch.float64)  # type: ignore[union-attr]
    rows = [
        buffer.double() * batches
        for norm in norms
        for buffer in (norm.running_mean, norm.running_var)
        if buffer is not None
    ]
    merged = sum_over_ranks(torch.cat([weight, *rows]))
    if merged[0] == 0:
        return
    offset = 1
    for norm in norms:
        for buffer in (norm.running_mean, norm.running_var):
            assert buffer is not None
            buffer.copy_((merged[offset : offset + buffer.numel()] / merged[0]).to(buffer.dtype))
            offset += buffer.numel()


def recalibrate(
    model: nn.Module, loader: Iterable[Any], batches: int | None = None, device: torch.device | str | None = None
) -> Recalibration:
    """Replace the running mean and variance of every BatchNorm module by those of training batches.

    The statistics are reset and then the plain mean over the batches (`momentum=None`). Only BatchNorm modules are in training
    mode, dropout stays off; modes and momentum are put back, weights, gradients and other buffers are not touched. On
    several ranks each runs its own batches and the results are averaged by the number of batches.

    Args:
        model: any module; instance and layer norms have no running statistics and are left alone.
        loader: yields inputs, or tuples that start with them. Training images, never test images.
        batches: use only the first so many; default all.
        device: where to move the inputs; default where the model is.

    Returns:
        `Recalibration(modules, batches)`; modules is 0 when the model has no BatchNorm, and the loader is not read then.

    Raises:
        ValueError: the loader is empty or `batches` is not positive. Statistics are as before then.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
        >>> recalibrate(net, [torch.randn(8, 2), torch.randn(8, 2)])
        Recalibration(modules=1, batches=2)
    """
    if batches is not None and batches < 1:
        raise ValueError(f"batches must be 1 or more, got {batches}")
    norms = [
        m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats and m.running_mean is not None
    ]
    if not norms:
        return Recalibration(0, 0)
    target = torch.device(device) if device is not None else next(iter(model.parameters())).device
    before = [(module, module.training) for module in model.modules()]
    momenta = [norm.momentum for norm in norms]
    saved = [[buffer.clone() for buffer in norm.buffers(recurse=False)] for norm in norms]
    seen = 0
    try:
        model.eval()
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None
            norm.train()
        with torch.no_grad():
            for batch in islice(loader, batches):
                model(_inputs(batch).to(target))
                seen += 1
            if seen == 0 and not is_distributed():
                raise ValueError("the loader is empty: recalibration needs at least one batch of training inputs")
            if is_distributed():
                _merge_ranks(norms, seen)
    except BaseException:
        with torch.no_grad():
            for norm, values in zip(norms, saved, strict=True):
                for buffer, value in zip(norm.buffers(recurse=False), values, strict=True):
                    buffer.copy_(value)
        raise
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        for module, mode in before:
            module.training = mode
    return Recalibration(len(norms), seen)
