"""L1: the sum of absolute weights."""

from __future__ import annotations

import torch
from torch import Tensor

from trimtab.parameters import Rule, Source
from trimtab.penalties.magnitude import Law, MagnitudePenalty
from trimtab.penalties.magnitude_pass import MagnitudePass, Magnitudes
from trimtab.sparse import is_sparse, refuse_sparse, stored_places, stored_values


class L1(MagnitudePenalty):
    """`psi = sum |w|` over all weights of all chosen tensors; gradient `sign(w)`, 0 where w = 0.

    Args:
        strength: lambda. Default 1e-5 [ours]; choose it on validation data.
        rule: which tensors count. Default at least two dimensions [ours].

    Raises:
        ValueError: the strength is negative or not finite.

    Source: Tibshirani 1996 (the lasso).

    Example:
        >>> L1(strength=0.5).value([torch.nn.Parameter(torch.tensor([[1.0, -3.0]]))])
        tensor(2., grad_fn=<MulBackward0>)
    """

    def __init__(self, strength: float = 1e-5, rule: Rule | None = None) -> None:
        super().__init__(strength, rule)

    def psi(self, weight: Tensor) -> Tensor:
        """`sum |w|` of one tensor, differentiable; shape ()."""
        return self.magnitudes(weight).sum()

    def law(self, statistics: Magnitudes) -> Law:
        """psi and its gradient's coefficients, per tensor."""
        mean = statistics.mean
        return Law(statistics.number * mean, torch.ones_like(mean), torch.zeros_like(mean))

    @torch.no_grad()
    def add_gradient_(self, params: Source) -> None:
        """Add `strength * sign(w)` to the gradients, in place: no statistics and no communication needed.

        Where the gradient is sparse (COO), only the entries that it holds get the penalty's: the others are left alone in
        this step, as the optimizer leaves them alone, and the gradient stays sparse [ours].

        Raises:
            ValueError: the rule chooses no tensor.
            TypeError: a chosen tensor's gradient is sparse in another layout.
        """
        with self.with_gradients(params) as groups:
            for group in groups:
                for entry in group:
                    assert entry.parameter.grad is not None
                    if is_sparse(entry.parameter):
                        values = stored_values(entry.parameter)
                        weight = entry.parameter[stored_places(entry.parameter)]
                        values.add_(weight.sign(), alpha=self.strength)
                    else:
                        refuse_sparse(self, entry.name, entry.parameter.grad)
                dense = [entry.parameter for entry in group if not is_sparse(entry.parameter)]
                if dense:
                    MagnitudePass(dense, 0.0, gradients=True).add_signs_(self.strength)
