"""Training and evaluation mode, module by module."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def modes_kept(model: nn.Module, *, training: bool | None = None) -> Iterator[None]:
    """Within the block every module is in the mode given; afterwards each is in its own again, frozen parts too.

    Args:
        model: with all it holds.
        training: the mode; None (default) begins with the modes as they are.

    Example:
        >>> net = nn.Sequential(nn.Dropout(), nn.BatchNorm1d(2).eval())
        >>> with modes_kept(net, training=False):
        ...     inside = [module.training for module in net.modules()]
        >>> inside, [module.training for module in net.modules()]
        ([False, False, False], [True, True, False])
    """
    modes = [(module, module.training) for module in model.modules()]
    try:
        if training is not None:
            for module, _ in modes:
                module.training = training
        yield
    finally:
        for module, mode in modes:
            module.training = mode
