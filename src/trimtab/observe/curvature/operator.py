"""Symmetric matrices known by their products with vectors: `operator @ v`."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from trimtab.observe.curvature.results import Setting


class SymmetricOperator(ABC):
    """A symmetric matrix of shape (size, size) that is only multiplied with.

    Attributes:
        size: number of rows.
        dtype: of its vectors.
        device: of its vectors.
        products: how many products have been taken so far.

    Raises:
        ValueError: on `@`, a vector of another length, or a product that is not finite.
    """

    def __init__(self, size: int, dtype: torch.dtype, device: torch.device) -> None:
        self.size, self.dtype, self.device = size, dtype, device
        self.products = 0

    @abstractmethod
    def _product(self, vector: Tensor) -> Tensor:
        """The matrix times a vector of shape (size,)."""

    @property
    def setting(self) -> Setting | None:
        """What is measured, None for a plain matrix."""
        return None

    def __matmul__(self, other: Tensor) -> Tensor:
        if other.ndim == 2:
            return torch.stack([self @ column for column in other.unbind(1)], dim=1)
        if other.shape != (self.size,):
            raise ValueError(f"expected a vector of shape ({self.size},), got {tuple(other.shape)}")
        product = self._product(other.to(self.device, self.dtype))
        self.products += 1
        if not bool(torch.isfinite(product).all()):
            raise ValueError("a product with the operator is not finite: the loss has no second derivative here")
        return product


class MatrixOperator(SymmetricOperator):
    """A matrix that is at hand, as an operator.

    Args:
        matrix: shape (n, n), symmetric, float32 or float64.

    Raises:
        ValueError: the matrix is not square or not symmetric.

    Example:
        >>> (MatrixOperator(torch.diag(torch.tensor([2.0, 3.0]))) @ torch.ones(2)).tolist()
        [2.0, 3.0]
    """

    def __init__(self, matrix: Tensor) -> None:
        if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or not torch.allclose(matrix, matrix.T):
            raise ValueError(f"expected a symmetric matrix, got one of shape {tuple(matrix.shape)}")
        super().__init__(matrix.shape[0], matrix.dtype, matrix.device)
        self._matrix = matrix

    def _product(self, vector: Tensor) -> Tensor:
        return self._matrix @ vector


class Scaled(SymmetricOperator):
    """`D A D` with a diagonal D.

    Args:
        operator: A.
        scale: the diagonal of D, shape (size,).
        description: added to the operator's own in the results.

    Example:
        >>> identity = MatrixOperator(torch.eye(2))
        >>> (Scaled(identity, torch.tensor([1.0, 3.0])) @ torch.ones(2)).tolist()
        [1.0, 9.0]
    """

    def __init__(self, operator: SymmetricOperator, scale: Tensor, description: str = "scaled") -> None:
        if scale.shape != (operator.size,):
            raise ValueError(f"expected a scale of shape ({operator.size},), got {tuple(scale.shape)}")
        super().__init__(operator.size, operator.dtype, operator.device)
        self._operator, self._scale = operator, scale.to(operator.device, operator.dtype)
        self._description = description

    @property
    def setting(self) -> Setting | None:
        """The operator's own, with the scaling named."""
        from dataclasses import replace

        setting = self._operator.setting
        return setting and replace(setting, curvature=f"{setting.curvature} {self._description}")

    def _product(self, vector: Tensor) -> Tensor:
        return self._scale * (self._operator @ (self._scale * vector))
