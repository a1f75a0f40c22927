"""Whether several losses pull the shared weights the same way."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class TaskCosines:
    """Gradients of several losses against each other.

    Attributes:
        cosines: shape (losses, losses), float64; below 0 two losses are in conflict. NaN where a gradient is zero.
        similarity: `2 |a| |b| / (|a|^2 + |b|^2)`, in [0, 1]: 1 for gradients of one size.
        norms: shape (losses,).
        names: of the losses.
    """

    cosines: Tensor
    similarity: Tensor
    norms: Tensor
    names: tuple[str, ...]

    def table(self, step: int = 0) -> pa.Table:
        """Rows of step, layer (the pair "one/other"), quantity, value."""
        import pyarrow as pa

        rows = [
            {"step": step, "layer": f"{one}/{other}", "quantity": quantity, "value": float(values[i, j])}
            for quantity, values in (("cosine", self.cosines), ("magnitude_similarity", self.similarity))
            for i, one in enumerate(self.names)
            for j, other in enumerate(self.names)
            if i < j
        ]
        schema = [("step", pa.int64()), ("layer", pa.string()), ("quantity", pa.string()), ("value", pa.float64())]
        return pa.Table.from_pylist(rows, pa.schema(schema))


def task_cosines(
    losses: Sequence[Tensor], parameters: Iterable[Tensor], names: Sequence[str] | None = None
) -> TaskCosines:
    """Cosines and magnitude similarity of the gradients of several losses by the weights that they share.

    One backward pass for each loss; the graph is kept, so that the loss can be passed back afterwards; no `.grad` is written.

    Args:
        losses: at least two numbers of one forward pass.
        parameters: the shared weights; those that a loss does not reach count as 0 for it.
        names: of the losses. Default "0", "1", ...

    Raises:
        ValueError: fewer than two losses, no weight with a gradient, or another number of names.

    Reference: Yu et al., arXiv 2001.06782 (magnitude similarity, conflict).

    Example:
        >>> w = torch.tensor([1.0, 1.0], requires_grad=True)
        >>> task_cosines([w[0], -2 * w.sum()], [w]).cosines[0, 1]
        tensor(-0.7071, dtype=torch.float64)
    """
    if len(losses) < 2:
        raise ValueError(f"at least two losses are compared, got {len(losses)}")
    shared = [one for one in parameters if one.requires_grad]
    if not shared:
        raise ValueError("no parameter takes a gradient")
    named = tuple(map(str, range(len(losses)))) if names is None else tuple(names)
    if len(named) != len(losses):
        raise ValueError(f"{len(losses)} losses need as many names, got {len(named)}")
    gradients = [torch.autograd.grad(loss, shared, retain_graph=True, allow_unused=True) for loss in losses]
    products = torch.zeros(len(losses), len(losses), dtype=torch.float64)
    for parts in zip(*gradients, strict=True):
        zero = torch.zeros_like(next((one for one in parts if one is not None), torch.zeros(1)))
        rows = torch.stack([(zero if one is None else one).detach().double().flatten() for one in parts])
        products += (rows @ rows.T).cpu()
    norms = products.diagonal().sqrt()
    sizes = norms.square()
    return TaskCosines(
        products / torch.outer(norms, norms), 2 * torch.outer(norms, norms) / (sizes[:, None] + sizes), norms, named
    )
