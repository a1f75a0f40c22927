"""Hold a model exactly as it is while functions of it are computed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from trimtab.observe.untouched import untouched


@contextmanager
def intact(model: nn.Module, *, batch_statistics: bool = False) -> Iterator[None]:
    """Evaluation mode inside; afterwards every tensor the modules hold is the same object with the same bits.

    Besides what `untouched` keeps (modes, buffers, random state) this puts back the parameters, buffers, gradients and
    tensors that hooks write into modules (`torch.nn.utils.prune`, weight norm), also after an error or Ctrl-C.

    Args:
        model: the network.
        batch_statistics: BatchNorm layers normalise by the batch, without touching their running statistics.

    Example:
        >>> net = nn.BatchNorm1d(2)
        >>> with intact(net, batch_statistics=True):
        ...     normalized = net(torch.tensor([[1.0, 1.0], [3.0, 3.0]]))
        >>> normalized[0].tolist(), net.running_mean.tolist()
        ([-0.9999..., -0.9999...], [0.0, 0.0])
    """
    modules = list(model.modules())
    held = [
        (module, dict(module._parameters), dict(module._buffers), _tensors(module), _tracks(module))
        for module in modules
    ]
    gradients = [(parameter, parameter.grad) for parameter in model.parameters()]
    with untouched(model):
        try:
            if batch_statistics:
                for module in modules:
                    if isinstance(module, nn.modules.batchnorm._BatchNorm):
                        module.training = True
                        module.track_running_stats = False  # then forward neither reads nor writes them
            yield
        finally:
            for module, parameters, buffers, tensors, tracks in held:
                module._parameters.update(parameters)
                module._buffers.update(buffers)
                for name in _tensors(module).keys() - tensors.keys():
                    del vars(module)[name]
                vars(module).update(tensors)
                if tracks is not None:
                    module.track_running_stats = tracks  # type: ignore[assignment]
            for parameter, gradient in gradients:
                if parameter.grad is not gradient:
                    parameter.grad = gradient


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    return {name: value for name, value in vars(module).items() if isinstance(value, Tensor)}


def _tracks(module: nn.Module) -> bool | None:
    return module.track_running_stats if isinstance(module, nn.modules.batchnorm._BatchNorm) else None


class RandomState:
    """The default generators' state, taken once and set before every pass, so that each pass draws the same numbers."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._cpu = torch.get_rng_state()
        self._gpu = torch.cuda.get_rng_state(device) if device.type == "cuda" else None

    def set(self) -> None:
        """Set the generators; call inside `intact`, which puts the caller's state back."""
        torch.set_rng_state(self._cpu)
        if self._gpu is not None:
            torch.cuda.set_rng_state(self._gpu, self._device)
