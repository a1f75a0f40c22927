"""A strongly convex problem with every constant known: logistic regression with an L2 penalty."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from trimtab.checks import positive, whole


class LogisticRegression:
    """`F(w) = mean_i log(1 + exp(-y_i x_i . w)) + l2 / 2 ||w||^2`, in float64.

    Its constants, each valid for all w:

    * smoothness `L = lambda_max(X^T X) / (4 n) + l2` (attained at w = 0);
    * strong convexity `c = l2` (exact where X has not full rank, and in the limit of large w);
    * `E||g||^2 <= M + M_G ||grad F||^2` for mini-batches of b rows drawn with replacement, with `M = mean ||x_i||^2 / b` and
      `M_G = 1`: the penalty's part has no variance and the slope of the loss is at most 1;
    * the minimum F*, by Newton's method to a gradient norm of 1e-12.

    Args:
        features: X, shape (n, d), finite; add a column of ones for an intercept. Converted to float64.
        labels: y, shape (n,), each -1 or +1.
        l2: strength of the penalty, positive.

    Raises:
        TypeError: an argument is not a tensor.
        ValueError: shapes that do not fit, values that are not finite, labels other than -1 and +1, `l2` not positive.

    Example:
        >>> problem = LogisticRegression(torch.tensor([[1.0], [-1.0]]), torch.tensor([1, -1]), l2=0.1)
        >>> round(problem.smoothness, 4), problem.convexity
        (0.35, 0.1)
        >>> problem.loss(torch.zeros(1)) > problem.minimum
        True
    """

    def __init__(self, features: Tensor, labels: Tensor, l2: float) -> None:
        if not isinstance(features, Tensor) or not isinstance(labels, Tensor):
            raise TypeError(
                f"features and labels must be tensors, got {type(features).__name__} and {type(labels).__name__}"
            )
        if features.ndim != 2 or 0 in features.shape:
            raise ValueError(f"features must have shape (n, d) with n, d > 0, got {tuple(features.shape)}")
        if labels.shape != features.shape[:1]:
            raise ValueError(f"labels must have shape ({features.shape[0]},), got {tuple(labels.shape)}")
        if not bool(torch.isfinite(features).all()):
            raise ValueError("features hold values that are not finite")
        if not bool((labels.abs() == 1).all()):
            raise ValueError(f"labels must be -1 or +1, got values {sorted(set(labels.tolist()))[:5]}")
        self.features, self.labels, self.l2 = features.double(), labels.double(), positive("l2", l2)

    def __len__(self) -> int:
        return self.features.shape[0]

    @property
    def convexity(self) -> float:
        """c."""
        return self.l2

    @cached_property
    def smoothness(self) -> float:
        """L."""
        largest = torch.linalg.matrix_norm(self.features, 2).square() / (4 * len(self))
        return float(largest) + self.l2

    def variance(self, batch_size: int) -> float:
        """M for mini-batches of `batch_size` rows drawn with replacement."""
        return float(self.features.square().sum(1).mean()) / whole("batch_size", batch_size, 1)

    def loss(self, weights: Tensor) -> float:
        """F(w); `weights` of shape (d,)."""
        weights = weights.double()
        margins = self.labels * (self.features @ weights)
        return float(torch.nn.functional.softplus(-margins).mean() + self.l2 / 2 * weights.square().sum())

    def gradient(self, weights: Tensor, rows: Tensor | None = None) -> Tensor:
        """The gradient over `rows` (indices, shape (b,)) or over all of them; shape (d,), float64."""
        weights = weights.double()
        features, labels = (self.features, self.labels) if rows is None else (self.features[rows], self.labels[rows])
        slope = -labels * torch.sigmoid(-labels * (features @ weights))
        return features.T @ slope / features.shape[0] + self.l2 * weights

    @cached_property
    def minimiser(self) -> Tensor:
        """w*, shape (d,).

        Raises:
            ArithmeticError: Newton's method did not come to a gradient norm of 1e-12 (times L, if that is more than 1).
        """
        weights = torch.zeros(self.features.shape[1], dtype=torch.float64)
        identity = torch.eye(len(weights), dtype=torch.float64)
        for _ in range(100):
            gradient = self.gradient(weights)
            if float(gradient.norm()) < 1e-12 * max(1.0, self.smoothness):
                return weights
            chance = torch.sigmoid(self.features @ weights)
            curvature = self.features.T @ ((chance * (1 - chance))[:, None] * self.features) / len(self)
            direction = torch.linalg.solve(curvature + self.l2 * identity, gradient)
            length, before, slope = 1.0, self.loss(weights), float(gradient @ direction)
            while length > 1e-10 and self.loss(weights - length * direction) > before - 1e-4 * length * slope + 1e-15:
                length /= 2
            weights = weights - length * direction
        raise ArithmeticError(f"Newton's method stopped at a gradient norm of {float(self.gradient(weights).norm()):g}")

    @property
    def minimum(self) -> float:
        """F*."""
        return self.loss(self.minimiser)
