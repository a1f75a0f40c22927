"""Sparse gradients, as `nn.Embedding(sparse=True)` gives them: their values, and the error of levers that need dense ones."""

from __future__ import annotations

import torch
from torch import Tensor


def stored_values(parameter: Tensor) -> Tensor:
    """The stored values of a parameter's sparse COO gradient, each place once; changed in place, they change the gradient.

    Example:
        >>> table = torch.nn.Embedding(4, 2, sparse=True)
        >>> table(torch.tensor([1, 1, 3])).sum().backward()
        >>> stored_values(table.weight)
        tensor([[2., 2.],
                [1., 1.]])
    """
    assert parameter.grad is not None
    if not parameter.grad.is_coalesced():
        parameter.grad = parameter.grad.coalesce()
    values: Tensor = parameter.grad._values()
    return values


def stored_places(parameter: Tensor) -> tuple[Tensor, ...]:
    """Where in the parameter the `stored_values` belong, as an index."""
    assert parameter.grad is not None
    return parameter.grad._indices().unbind(0)


def is_sparse(parameter: Tensor) -> bool:
    """Whether the parameter's gradient is a sparse COO one."""
    return parameter.grad is not None and parameter.grad.layout is torch.sparse_coo


def refuse_sparse(lever: object, name: str, gradient: Tensor) -> None:
    """TypeError for a gradient that is not dense; it names the parameter, its layout and the ways out.

    Example:
        >>> refuse_sparse("Centralize", "table.weight", torch.zeros(2, 2))
        >>> refuse_sparse("Centralize", "table.weight", torch.zeros(2, 2).to_sparse())
        Traceback (most recent call last):
        TypeError: Centralize acts on dense gradients, that of table.weight has layout torch.sparse_coo; ...
    """
    if gradient.layout is torch.strided:
        return
    label = lever if isinstance(lever, str) else type(lever).__name__
    raise TypeError(
        f"{label} acts on dense gradients, that of {name} has layout {gradient.layout}; leave it out with "
        "rule=Rule(exclude=...) or build the layer with sparse=False (ClipNorm, L1 and GradientTracker take "
        "torch.sparse_coo)"
    )
