"""Re-estimate BatchNorm statistics after pruning: nothing is trained, often most of the accuracy comes back."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from trimtab.checks import whole
from trimtab.collectives import is_distributed, sum_over_ranks
from trimtab.parameters.arguments import arguments_of_batch, moved
from trimtab.parameters.modes import modes_kept
from trimtab.parameters.wrappers import unwrapped


@dataclass(frozen=True)
class Recalibration:
    """How many BatchNorm modules were re-estimated, from how many batches (of all ranks that took part)."""

    modules: int
    batches: int


def _norms(model: nn.Module) -> list[_BatchNorm]:
    """Those that have statistics to re-estimate."""
    found = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    return [norm for norm in found if norm.track_running_stats and norm.running_mean is not None]


def has_batch_norm(model: nn.Module) -> bool:
    """Whether `recalibrate` would find statistics to re-estimate.

    Example:
        >>> has_batch_norm(nn.BatchNorm1d(2)), has_batch_norm(nn.LayerNorm(2))
        (True, False)
    """
    return bool(_norms(model))


def _statistics(norm: _BatchNorm) -> tuple[Tensor, Tensor, Tensor]:
    """Running mean, running variance, number of batches seen."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    assert norm.num_batches_tracked is not None
    return norm.running_mean, norm.running_var, norm.num_batches_tracked


def _set(norm: _BatchNorm, values: Iterable[Tensor]) -> None:
    for buffer, value in zip(_statistics(norm), values, strict=True):
        buffer.copy_(value)


@contextmanager
def _estimating(model: nn.Module, norms: list[_BatchNorm]) -> Iterator[None]:
    """Cumulative means in `norms`, evaluation mode elsewhere; modes, momenta and random state are put back.

    So are the statistics after an exception, and at the end those of modules that the forward pass never reached.
    """
    momenta = [norm.momentum for norm in norms]
    saved = [[buffer.clone() for buffer in _statistics(norm)] for norm in norms]
    devices = sorted({buffer.device.index for norm in norms for buffer in norm.buffers() if buffer.is_cuda})
    with torch.random.fork_rng(devices=devices):  # iterating a DataLoader draws a number
        try:
            with modes_kept(model, training=False):
                for norm in norms:
                    norm.reset_running_stats()
                    norm.momentum = None
                    norm.training = True
                yield
        except BaseException:
            for norm, values in zip(norms, saved, strict=True):
                _set(norm, values)
            raise
        finally:
            for norm, momentum in zip(norms, momenta, strict=True):
                norm.momentum = momentum
    for norm, values in zip(norms, saved, strict=True):
        if int(_statistics(norm)[2]) == 0:
            _set(norm, values)


def _merge_ranks(norms: list[_BatchNorm]) -> None:
    """The mean over all batches of all ranks: each rank's mean weighted by the batches that reached the module."""
    sums = []
    for norm in norms:
        mean, variance, seen = (buffer.double() for buffer in _statistics(norm))
        sums += [mean * seen, variance * seen, seen.view(1)]
    parts = iter(torch.split(sum_over_ranks(torch.cat(sums)), [part.numel() for part in sums]))
    for norm in norms:
        mean, variance, seen = next(parts), next(parts), next(parts)
        if float(seen) > 0:
            _set(norm, (mean / seen, variance / seen, seen[0]))


@torch.no_grad()
def recalibrate(
    model: nn.Module,
    loader: Iterable[Any],
    batches: int | None = None,
    device: torch.device | str | None = None,
    *,
    across_ranks: bool = True,
    forward: Callable[[nn.Module, Any], object] | None = None,
) -> Recalibration:
    """Replace the running mean and variance of every BatchNorm module by those of training batches.

    The statistics are reset and then the plain mean over the batches (`momentum=None`), each batch of the same weight. Only
    BatchNorm modules are in training mode, dropout stays off. Modes, momentum and torch's random state are put back;
    weights, gradients and other buffers are not touched.

    Args:
        model: any module; wrappers (DDP, `torch.compile`) are looked through. Instance and layer norms, and BatchNorm
            without running statistics, are left alone; so are modules that the forward pass does not reach.
        loader: yields inputs: a tensor, a mapping of keyword arguments (those that `model.forward` takes are used), or a tuple
            or list that starts with its inputs: a mapping, a tuple, or as many tensors as `forward` has arguments without
            a default. Training images, never test images.
        batches: use only the first so many, on each rank; default all.
        device: where to move the inputs; default where the model is.
        across_ranks: in a process group every rank runs its own batches and all get the mean over all of them; every
            rank must then call. False keeps to this rank.
        forward: runs the model on a batch of any other form, `forward(model, batch)`, tensors already on the device; what it
            returns is not used.

    Returns:
        `Recalibration(modules, batches)`; modules is 0 when the model has no BatchNorm, and the loader is not read then.

    Raises:
        ValueError: the loader is empty (on every rank) or `batches` is not positive.
        TypeError: a batch is something else, or lacks an input that `model.forward` needs. After an error of any kind the
            statistics are as before.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
        >>> recalibrate(net, [torch.randn(8, 2), torch.randn(8, 2)])
        Recalibration(modules=1, batches=2)
        >>> recalibrate(net, [{"pixels": torch.randn(8, 2)}], forward=lambda net, batch: net(batch["pixels"]))
        Recalibration(modules=1, batches=1)
    """
    if batches is not None:
        whole("batches", batches, 1)
    model = unwrapped(model)  # DDP would broadcast rank 0's statistics, torch.compile recompile
    norms = _norms(model)
    if not norms:
        return Recalibration(0, 0)
    target = torch.device(device) if device is not None else next(chain(model.parameters(), model.buffers())).device
    shared = across_ranks and is_distributed()
    seen = 0
    with _estimating(model, norms):
        for batch in islice(loader, batches):
            if forward is not None:
                forward(model, moved(batch, target))
            else:
                positional, keywords = moved(arguments_of_batch(model, batch), target)
                model(*positional, **keywords)
            seen += 1
        if shared:
            seen = int(sum_over_ranks(torch.tensor(seen, device=target)))
        if seen == 0:
            raise ValueError("the loader is empty: recalibration needs at least one batch of training inputs")
        if shared:
            _merge_ranks(norms)
        reached = sum(int(_statistics(norm)[2]) > 0 for norm in norms)
    return Recalibration(reached, seen)
