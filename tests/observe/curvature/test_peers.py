"""Held against curvlinops, an independent implementation, where it is installed (`pip install -e '.[peers]'`)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from tests.observe.curvature.networks import CROSS_ENTROPY, labels, network
from trimtab.observe.curvature import GaussNewton, Hessian, LossOperator, Objective, top_eigenvalues, trace

curvlinops = pytest.importorskip("curvlinops", reason="curvlinops is in the extra 'peers', not in 'dev'")


def theirs(kind: str, net: nn.Module, batches: list[tuple[torch.Tensor, torch.Tensor]]) -> Any:
    return getattr(curvlinops, kind)(
        net.eval(), nn.CrossEntropyLoss(), list(net.parameters()), batches, check_deterministic=False
    )


@pytest.mark.parametrize("kind", ["relu", "tanh", "batch norm"])
@pytest.mark.parametrize(
    ("matrix", "name"), [(Hessian, "HessianLinearOperator"), (GaussNewton, "GGNLinearOperator")], ids=["hessian", "ggn"]
)
def test_products_are_those_of_curvlinops(kind: str, matrix: type[LossOperator], name: str) -> None:
    net, inputs = network(kind)
    batches = [(inputs[:7], labels()[:7]), (inputs[7:], labels()[7:])]  # of unequal size
    own = matrix(Objective(net, CROSS_ENTROPY, batches))
    vectors = torch.randn(own.size, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(own @ vectors, theirs(name, net, batches) @ vectors, rtol=1e-10, atol=1e-12)


def test_eigenvalues_and_trace_are_those_of_curvlinops() -> None:
    from scipy.sparse.linalg import eigsh

    net, inputs = network("tanh")
    own = Hessian(Objective(net, CROSS_ENTROPY, (inputs, labels())))
    other = theirs("HessianLinearOperator", net, [(inputs, labels())])
    expected = sorted(eigsh(other.to_scipy(), k=3, which="LA", return_eigenvectors=False), reverse=True)
    found = top_eigenvalues(own, 3, tolerance=1e-8)
    assert found.values == pytest.approx(expected, rel=1e-8)
    exact = float((other @ torch.eye(own.size, dtype=torch.float64)).trace())
    estimate = trace(own, 30)
    assert abs(estimate.value - exact) <= 4 * estimate.standard_error
