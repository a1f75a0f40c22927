"""AttentionResidual: a layer's input is a learned mixture of all earlier outputs instead of their sum."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from trimtab.checks import positive, whole


class AttentionResidual(nn.Module):
    """`h = sum_i softmax_i(q . RMSNorm(s_i)) s_i` over the sources s_i: the embedding and the outputs of all layers so far.

    A residual stream adds every output with weight 1, so that it grows with depth and drowns what came early. Here each place
    of each example chooses by a vector q that belongs to the layer; at the start q is 0 and all sources weigh the same.

    Args:
        dim: features of a source.
        eps: of the norm. Default 1e-6.

    The norm has no gain of its own: q would take it up [ours].

    Raises:
        ValueError: a number out of range, or (at the call) no source, or sources of other shapes.

    Reference: Kimi team, Attention Residuals, arXiv 2603.15031.

    Example:
        >>> mix = AttentionResidual(2)
        >>> mix([torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 3.0]])])  # q = 0: the mean
        tensor([[0.5000, 1.5000]], grad_fn=<SumBackward1>)
    """

    def __init__(self, dim: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.zeros(whole("dim", dim, 1)))
        self.eps = positive("eps", eps)

    def weights(self, sources: Sequence[Tensor]) -> Tensor:
        """Of the sources, shape (sources, ...), sum 1."""
        stacked = self._stacked(sources)
        wide = stacked.to(torch.promote_types(stacked.dtype, torch.float32))
        return (functional.rms_norm(wide, (wide.shape[-1],), eps=self.eps) @ self.query.to(wide.dtype)).softmax(0)

    def forward(self, sources: Sequence[Tensor]) -> Tensor:
        """Sources of one shape (..., dim) -> their mixture, of that shape."""
        mixed: Tensor = (self.weights(sources)[..., None].to(sources[0].dtype) * torch.stack(list(sources))).sum(0)
        return mixed

    def _stacked(self, sources: Sequence[Tensor]) -> Tensor:
        shapes = {tuple(one.shape) for one in sources}
        if len(shapes) != 1 or next(iter(shapes))[-1:] != tuple(self.query.shape):
            raise ValueError(f"sources must be of one shape (..., {len(self.query)}), got {sorted(shapes)}")
        return torch.stack(list(sources))

    def extra_repr(self) -> str:
        """The size."""
        return f"dim={len(self.query)}"
