"""A Linear layer whose weight is a compressed sparse row matrix: the one layer that a CPU runs faster for its zeros."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn

DTYPES = (torch.float32, torch.float64)


def csr_matrix(rows: Tensor, columns: Tensor, values: Tensor, shape: tuple[int, int]) -> Tensor:
    """A CSR tensor of the parts, without PyTorch's notice that the layout is new."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        return torch.sparse_csr_tensor(rows, columns, values, shape, check_invariants=False)


class CsrLinear(nn.Module):
    """`y = x W^T + b` with W stored as its non-zeros (32-bit indices). For inference only.

    The state dict holds `row_ends` (out + 1), `columns` and `values` (non-zeros), and `bias`. Results agree with the
    dense layer to rounding: sums run over the non-zeros alone.

    Args:
        linear: the layer to take over; float32 or float64, with a 2-dimensional weight (out, in).

    Raises:
        TypeError: `linear` is no `nn.Linear` or has another dtype.
        RuntimeError: on a call in training mode.

    Example:
        >>> dense = nn.Linear(4, 3).eval()
        >>> layer = CsrLinear(dense)
        >>> layer
        CsrLinear(in_features=4, out_features=3, bias=True, nonzeros=12)
        >>> x = torch.randn(2, 5, 4)
        >>> torch.allclose(layer(x), dense(x), atol=1e-6)
        True
    """

    row_ends: Tensor
    columns: Tensor
    bias: nn.Parameter | None

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        if not isinstance(linear, nn.Linear):
            raise TypeError(f"CsrLinear takes over an nn.Linear, got {type(linear).__name__}")
        if linear.weight.dtype not in DTYPES:
            raise TypeError(f"CsrLinear needs float32 or float64 weights, got {linear.weight.dtype}")
        self.in_features, self.out_features = linear.in_features, linear.out_features
        weight = linear.weight.detach()
        where = weight != 0
        ends = torch.cat([torch.zeros(1, dtype=torch.int64, device=weight.device), where.sum(1).cumsum(0)])
        self.register_buffer("row_ends", ends.int())
        self.register_buffer("columns", where.nonzero()[:, 1].int())
        self.values = nn.Parameter(weight[where], requires_grad=False)
        bias = None if linear.bias is None else nn.Parameter(linear.bias.detach().clone(), requires_grad=False)
        self.register_parameter("bias", bias)
        self._matrix: tuple[tuple[Any, ...], Tensor] | None = None
        self.eval()

    def _csr(self) -> Tensor:
        """The matrix, built anew only when one of its parts was replaced or written to."""
        parts = (self.row_ends, self.columns, self.values)
        key = tuple((part.data_ptr(), 0 if part.is_inference() else part._version) for part in parts)
        if self._matrix is None or self._matrix[0] != key:
            shape = (self.out_features, self.in_features)
            self._matrix = key, csr_matrix(self.row_ends, self.columns, self.values.detach(), shape)
        return self._matrix[1]

    def __getstate__(self) -> dict[str, Any]:
        """Without the cached matrix, which cannot be pickled or copied everywhere."""
        return self.__dict__ | {"_matrix": None}

    def to_dense(self) -> Tensor:
        """The weight as a dense tensor (out, in)."""
        return self._csr().to_dense()

    def forward(self, input: Tensor) -> Tensor:
        """`(..., in)` to `(..., out)`."""
        if self.training:
            raise RuntimeError("CsrLinear is for inference only: call model.eval(), or train the dense model")
        flat = input.reshape(-1, self.in_features)
        # The kernel wants the sparse matrix on the left and contiguous columns on the right: 2 to 20 times faster
        # here than F.linear with a CSR weight.
        columns = flat.t().contiguous()
        if self.bias is None:
            out = self._csr() @ columns
        else:
            out = torch.addmm(self.bias[:, None], self._csr(), columns)
        return out.t().contiguous().reshape(*input.shape[:-1], self.out_features)

    def extra_repr(self) -> str:
        """Sizes and number of non-zeros."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}, "
            f"nonzeros={self.values.numel()}"
        )
