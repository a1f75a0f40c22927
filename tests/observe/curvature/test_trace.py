"""Trace estimates against matrices whose traces are known."""

from __future__ import annotations

import math

import pytest
import torch

from tests.observe.curvature.networks import CROSS_ENTROPY, dense_hessian, labels, network
from tests.observe.curvature.test_lanczos import with_spectrum
from trimtab.observe.curvature import Hessian, MatrixOperator, Objective, trace

DECAYING = torch.cat(
    [torch.tensor([100.0, 60.0, 30.0, -20.0]), 0.3 * torch.randn(196, generator=torch.Generator().manual_seed(2))]
)


@pytest.mark.parametrize("method", ["hutchinson", "hutch++"])
def test_standard_errors_are_right(method: str) -> None:
    """Over 60 seeds: z values have mean 0 and unit spread; unbiased; the spread is the standard error."""
    operator, true = with_spectrum(DECAYING), float(DECAYING.double().sum())
    found = [trace(operator, 60, method, seed=seed) for seed in range(60)]
    z = torch.tensor([(f.value - true) / f.standard_error for f in found])
    assert abs(float(z.mean())) < 3 / math.sqrt(60) * 1.1
    assert 0.75 < float(z.std()) < 1.35
    assert all(f.products == 60 and f.converged for f in found)
    assert {(f.probes, f.sketch) for f in found} == ({(60, 0)} if method == "hutchinson" else {(20, 20)})


def test_the_sketch_takes_out_what_dominates() -> None:
    operator = with_spectrum(DECAYING)
    plain, sketched = (trace(operator, 30, method) for method in ("hutchinson", "hutch++"))
    assert sketched.standard_error < plain.standard_error / 5


def test_hutchinson_is_exact_on_a_diagonal_matrix() -> None:
    found = trace(MatrixOperator(torch.diag(torch.tensor([3.0, -1.0, 5.0]))), 4, "hutchinson")
    assert (found.value, found.standard_error) == (7.0, 0.0)


def test_exact_when_the_sketch_spans_everything_or_nothing() -> None:
    low_rank = with_spectrum(torch.cat([torch.tensor([4.0, -3.0]), torch.zeros(48)]))
    found = trace(low_rank, 30)
    assert found.sketch == 2
    assert found.value == pytest.approx(1.0, abs=1e-10)
    assert found.standard_error < 1e-10
    zero = trace(MatrixOperator(torch.zeros(6, 6)), 9)
    assert (zero.value, zero.standard_error, zero.sketch) == (0.0, 0.0, 0)
    whole = trace(with_spectrum(torch.tensor([1.0, 2.0, 3.0])), 30)
    assert (whole.sketch, whole.probes, whole.products) == (3, 0, 6)
    assert whole.value == pytest.approx(6.0)


@pytest.mark.parametrize("method", ["hutchinson", "hutch++"])
def test_target_standard_error(method: str) -> None:
    operator = with_spectrum(torch.linspace(-1, 1, 200))
    loose = trace(operator, method=method, standard_error=2.5)
    tight = trace(operator, method=method, standard_error=1.0, max_products=2000)
    assert tight.probes > loose.probes
    assert tight.standard_error <= 1.0
    assert tight.converged
    short = trace(operator, method=method, standard_error=0.01, max_products=50)
    assert short.products == 50
    assert not short.converged


@pytest.mark.parametrize("method", ["hutchinson", "hutch++"])
def test_a_target_is_met_unless_products_run_out(method: str) -> None:
    """A decaying spectrum, whose samples are skewed; the standard error is honest: over 60 seeds z has unit spread."""
    values = torch.tensor([2.0 / (i + 1) for i in range(45)] + [-0.5 / (i + 1) for i in range(15)])
    operator, true = with_spectrum(values), float(values.double().sum())
    found = [trace(operator, method=method, standard_error=0.25, max_products=3000, seed=seed) for seed in range(60)]
    assert all(f.converged and f.standard_error <= 0.25 for f in found)
    assert len({f.products for f in found}) > 10
    z = torch.tensor([(f.value - true) / f.standard_error for f in found])
    assert 0.75 < float(z.std()) < 1.45


def test_a_target_does_not_bias_the_mean() -> None:
    operator, true = with_spectrum(torch.linspace(-1, 1, 50)), 0.0
    found = torch.tensor(
        [trace(operator, method="hutchinson", standard_error=0.8, seed=seed).value for seed in range(200)]
    )
    assert abs(float(found.mean()) - true) < 3.5 * float(found.std()) / math.sqrt(200)


def test_a_network() -> None:
    net, inputs = network("attention")
    hessian = Hessian(Objective(net, CROSS_ENTROPY, (inputs, labels())))
    true = float(torch.trace(dense_hessian(net.eval(), inputs, labels())))
    for method in ("hutchinson", "hutch++"):
        found = [trace(hessian, 60, method, seed=seed) for seed in range(6)]
        error = math.sqrt(sum(f.standard_error**2 for f in found)) / 6
        assert abs(sum(f.value for f in found) / 6 - true) < 3 * error
        assert found[0].setting.curvature == "hessian"


def test_seed_repeats() -> None:
    operator = with_spectrum(DECAYING)
    assert trace(operator, seed=3) == trace(operator, seed=3) != trace(operator, seed=4)


def test_bad_arguments() -> None:
    operator = MatrixOperator(torch.eye(3))
    with pytest.raises(ValueError, match=r"method must be one of .* got 'xtrace'"):
        trace(operator, method="xtrace")
    with pytest.raises(ValueError, match=r"products must be at least 9 for hutch\+\+, got 8"):
        trace(operator, 8)
    with pytest.raises(ValueError, match="max_products must be at least 10 for hutchinson"):
        trace(operator, method="hutchinson", standard_error=1.0, max_products=9)
    with pytest.raises(ValueError, match="standard_error must be finite and above 0"):
        trace(operator, standard_error=0.0)
