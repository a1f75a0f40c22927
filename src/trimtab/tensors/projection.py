"""What of vectors lies along others, taken off."""

from __future__ import annotations

import torch
from torch import Tensor

PIECE = 1 << 16
"""Elements whose products are made at a time on a CPU, so that their sum reads the cache."""


def row_products(vectors: Tensor, others: Tensor) -> Tensor:
    """`<v, o>` over the last dimension.

    Example:
        >>> row_products(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.ones(2, 2))
        tensor([3., 7.])
    """
    if vectors.device.type != "cpu" or vectors.numel() <= PIECE:
        return (vectors * others).sum(-1)
    elements = vectors.shape[-1]
    cut = max(1, PIECE // elements)
    parts = [torch.split(each.reshape(-1, elements), cut) for each in (vectors, others)]
    return torch.cat([(one * other).sum(-1) for one, other in zip(*parts, strict=True)]).view(vectors.shape[:-1])


def share_along(products: Tensor, norms: Tensor, eps: float = 0.0) -> Tensor:
    """`<v, d> / (||d|| + eps)^2`: how many times a direction d must be taken off a vector v."""
    return products / (norms + eps).square()


def project_out(vectors: Tensor, directions: Tensor, eps: float = 0.0, norms: Tensor | None = None) -> Tensor:
    """Each row of `vectors` without its part along the same row of `directions`: `v - u <u, v>`, `u = d / (||d|| + eps)`.

    Args:
        vectors: shape (rows, elements).
        directions: of the same shape; where one is zero and `eps` above 0, the row stays as it is.
        eps: added to the norm of a direction.
        norms: of the directions, shape (rows,), where they are known.

    Example:
        >>> project_out(torch.tensor([[3.0, 1.0]]), torch.tensor([[2.0, 2.0]])).round(decimals=4)
        tensor([[ 1., -1.]])
    """
    known = torch.linalg.vector_norm(directions, dim=1) if norms is None else norms
    share = share_along(row_products(vectors, directions), known, eps)
    return torch.addcmul(vectors, directions, share.unsqueeze(1), value=-1)
