"""GBNN: the hidden units of one perceptron, added stage by stage on what is still unexplained."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPRegressor
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from trimtab.checks import number, one_of, whole

ACTIVATIONS = ("tanh", "logistic")
Array = NDArray[np.float64]


def newton_step(output: Array, residual: Array) -> float:
    """The least-squares factor of a stage's output: `sum h r / sum h^2`; 0 where the output is 0 throughout.

    Example:
        >>> newton_step(np.array([1.0, 2.0]), np.array([2.0, 4.0]))
        2.0
    """
    size = float(output @ output)
    return float(output @ residual) / size if size > 0 else 0.0


class GBNNRegressor(RegressorMixin, BaseEstimator):  # type: ignore[misc]
    """Gradient-boosted neural network: stages of a few hidden units, each fitted to the residual of those before, then one MLP.

    `F_0 = mean(y)`; at each stage a perceptron h of `units` hidden units is fitted to the pseudo-residuals `r = y - F` of a
    random part of the examples, its step is `rho = sum h r / sum h^2` over all, and `F <- F + learning_rate rho h`. Stages are
    hidden units side by side: the whole is one perceptron of `stages * units` hidden units (`network()`).

    Args:
        stages: 1 or more. Default 50 [ours].
        units: hidden units of a stage. Default 1 (paper's smallest).
        learning_rate: in (0, 1]. Default 0.5 [ours; the paper searches].
        subsample: part of the examples a stage is fitted to, in (0, 1]. Default 0.5 (authors' code).
        activation: "tanh" (default) or "logistic".
        alpha: weight decay of a stage's fit, 0 or more. Default 1e-4 (scikit-learn's).
        max_iter: iterations of L-BFGS at a stage. Default 200 (scikit-learn's).
        random_state: as everywhere in scikit-learn.

    After `fit`: `hidden_weights_` (features, hidden), `hidden_biases_`, `output_weights_`, `intercept_`, `train_score_` (mean
    squared error after each stage), `n_iter_` (most iterations of a stage).

    Raises:
        ValueError: (at `fit`) a number out of range, or data that scikit-learn refuses.

    Reference: Emami and Martinez-Munoz, arXiv 1909.12098 (in words of our own; a stage is scikit-learn's `MLPRegressor`).

    Example:
        >>> X = np.linspace(-1, 1, 60)[:, None]
        >>> y = np.sin(3 * X[:, 0])
        >>> bool(GBNNRegressor(stages=10, random_state=0).fit(X, y).score(X, y) > 0.95)
        True
    """

    def __init__(
        self,
        stages: int = 50,
        units: int = 1,
        learning_rate: float = 0.5,
        subsample: float = 0.5,
        activation: str = "tanh",
        alpha: float = 1e-4,
        max_iter: int = 200,
        random_state: Any = None,
    ) -> None:
        self.stages = stages
        self.units = units
        self.learning_rate = learning_rate
        self.subsample = subsample
        self.activation = activation
        self.alpha = alpha
        self.max_iter = max_iter
        self.random_state = random_state

    def fit(self, X: Any, y: Any) -> GBNNRegressor:
        """Add the stages."""
        whole("stages", self.stages, 1)
        whole("units", self.units, 1)
        whole("max_iter", self.max_iter, 1)
        number("learning_rate", self.learning_rate, above=0, most=1)
        number("subsample", self.subsample, above=0, most=1)
        number("alpha", self.alpha, least=0)
        one_of("activation", self.activation, ACTIVATIONS)
        X, y = validate_data(self, X, y, dtype=np.float64, y_numeric=True)
        y = y.astype(np.float64)
        random = check_random_state(self.random_state)
        part = max(1, round(self.subsample * len(X)))
        hidden: list[tuple[Array, Array, Array]] = []
        self.intercept_ = float(y.mean())
        fitted = np.full(len(y), self.intercept_)
        self.train_score_, self.n_iter_ = [], 0
        for _ in range(self.stages):
            residual = y - fitted
            scale = float(np.abs(residual).max()) or 1.0  # a stage sees residuals of one size, whatever the target's
            chosen = random.permutation(len(X))[:part]
            stage = MLPRegressor(
                hidden_layer_sizes=(self.units,),
                activation=self.activation,
                solver="lbfgs",
                alpha=self.alpha,
                max_iter=self.max_iter,
                random_state=random.randint(np.iinfo(np.int32).max),
            )
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ConvergenceWarning)  # the next stage goes on where this one stops
                stage.fit(X[chosen], residual[chosen] / scale)
            self.n_iter_ = max(self.n_iter_, stage.n_iter_)
            output = stage.predict(X) * scale
            step = self.learning_rate * newton_step(output, residual)
            fitted = fitted + step * output
            hidden.append((stage.coefs_[0], stage.intercepts_[0], step * scale * stage.coefs_[1][:, 0]))
            self.intercept_ += step * scale * float(stage.intercepts_[1][0])
            self.train_score_.append(float(np.mean((y - fitted) ** 2)))
        self.hidden_weights_ = np.concatenate([one[0] for one in hidden], axis=1)
        self.hidden_biases_ = np.concatenate([one[1] for one in hidden])
        self.output_weights_ = np.concatenate([one[2] for one in hidden])
        return self

    def predict(self, X: Any) -> Array:
        """The one perceptron's output."""
        check_is_fitted(self)
        X = validate_data(self, X, dtype=np.float64, reset=False)
        inner = X @ self.hidden_weights_ + self.hidden_biases_
        active = np.tanh(inner) if self.activation == "tanh" else 0.5 * (1 + np.tanh(inner / 2))
        found: Array = active @ self.output_weights_ + self.intercept_
        return found

    def network(self) -> Any:
        """The same as `torch.nn.Sequential` of Linear, activation, Linear, in float64."""
        import torch
        from torch import nn

        check_is_fitted(self)
        features, width = self.hidden_weights_.shape
        active = nn.Tanh() if self.activation == "tanh" else nn.Sigmoid()
        net = nn.Sequential(nn.Linear(features, width), active, nn.Linear(width, 1)).double()
        values = (self.hidden_weights_.T, self.hidden_biases_, self.output_weights_[None], np.array([self.intercept_]))
        with torch.no_grad():
            for parameter, value in zip(net.parameters(), values, strict=True):
                parameter.copy_(torch.from_numpy(value.copy()))
        return net
