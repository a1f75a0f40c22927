"""Extreme eigenvalues against matrices whose spectra are known."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.observe.curvature.networks import CROSS_ENTROPY, dense_hessian, labels, network
from trimtab.observe.curvature import Hessian, MatrixOperator, Objective, normalized, top_eigenvalues
from trimtab.observe.curvature.krylov import Krylov
from trimtab.observe.curvature.operator import SymmetricOperator


def with_spectrum(spectrum: Tensor, seed: int = 0, dtype: torch.dtype = torch.float64) -> MatrixOperator:
    generator = torch.Generator().manual_seed(seed)
    q, _ = torch.linalg.qr(torch.randn(len(spectrum), len(spectrum), generator=generator, dtype=torch.float64))
    matrix = (q * spectrum.double()) @ q.T
    return MatrixOperator(((matrix + matrix.T) / 2).to(dtype))


SPECTRA = {
    "outliers and a bulk at zero": torch.cat([torch.tensor([100.0, 50.0, 20.0, -10.0]), torch.zeros(146)]),
    "noise around zero": torch.cat(
        [torch.tensor([30.0, 29.0, 9.0, -12.0]), 0.1 * torch.randn(146, generator=torch.Generator().manual_seed(1))]
    ),
    "clustered at the top": torch.cat([torch.tensor([10.0, 9.999, 9.99, 9.9]), torch.linspace(-4, 5, 146)]),
    "negative": -torch.logspace(-3, 2, 120),
    "uniform": torch.linspace(-1, 1, 120),
}


@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize("which", ["largest", "smallest", "magnitude"])
def test_known_spectra(name: str, which: str) -> None:
    spectrum = SPECTRA[name].double()
    keys = {"largest": -spectrum, "smallest": spectrum, "magnitude": -spectrum.abs()}[which]
    expected = spectrum[torch.argsort(keys)][:4]
    found = top_eigenvalues(with_spectrum(spectrum), 4, which, tolerance=1e-6, max_products=400)
    scale = float(spectrum.abs().max())
    errors = (torch.tensor(found.values).double().abs() - expected.abs()).abs()
    assert found.converged
    assert found.which == which
    assert (errors <= torch.tensor(found.residuals) + 1e-12 * scale).all()
    assert errors.max() < 1e-5 * scale
    if which != "magnitude":  # +1 and -1 tie in modulus
        torch.testing.assert_close(torch.tensor(found.values).double(), expected, rtol=1e-6, atol=1e-6 * scale)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_ghosts_at_a_hundred_products(dtype: torch.dtype) -> None:
    """Lanczos without reorthogonalization repeats the top value here; the recurrence below shows it."""
    spectrum = torch.cat([torch.tensor([100.0, 10.0]), torch.linspace(0, 1, 598)])
    operator = with_spectrum(spectrum, dtype=dtype)
    krylov = Krylov(operator)
    krylov.start(torch.randn(600, generator=torch.Generator().manual_seed(0)).to(dtype))
    for _ in range(100):
        krylov.step()
    ritz = torch.linalg.eigvalsh(krylov.projection()[0]).flip(0)
    assert (ritz > 1.01).sum() == 2
    torch.testing.assert_close(ritz[:2], spectrum[:2].double(), rtol=1e-5, atol=0)
    basis = krylov.combine(torch.eye(100, dtype=torch.float64))
    assert (basis @ basis.T - torch.eye(100, dtype=dtype)).abs().max() < 100 * torch.finfo(dtype).eps

    before, here, beta = torch.zeros(600, dtype=dtype), basis[0], 0.0
    tri = torch.zeros(100, 100, dtype=torch.float64)
    for step in range(100):  # the textbook's three terms, and nothing more
        product = operator @ here - beta * before
        alpha = torch.dot(product, here)
        product -= alpha * here
        tri[step, step] = alpha
        before, beta = here, float(torch.linalg.vector_norm(product))
        here = product / beta
        if step < 99:
            tri[step, step + 1] = tri[step + 1, step] = beta
    assert (torch.linalg.eigvalsh(tri) > 1.01).sum() > 2


def test_a_hundred_products_of_top_k_have_no_ghosts_or_gaps() -> None:
    spectrum = torch.cat([torch.tensor([50.0, 40.0, 40.0 - 1e-4, 30.0, 20.0]), torch.linspace(-1, 1, 595)])
    found = top_eigenvalues(with_spectrum(spectrum), 6, tolerance=1e-9, max_products=100)
    torch.testing.assert_close(torch.tensor(found.values[:5]), spectrum[:5], rtol=1e-9, atol=0)
    assert found.values[5] < 1.01


def test_multiple_eigenvalues_appear_as_often_as_there_are_start_vectors() -> None:
    spectrum = torch.cat([torch.tensor([5.0, 5.0, 3.0]), torch.linspace(0, 1, 97)])
    found = top_eigenvalues(with_spectrum(spectrum), 3)
    assert found.block == 2
    torch.testing.assert_close(torch.tensor(found.values), spectrum[:3], rtol=1e-5, atol=0)
    identity = MatrixOperator(torch.eye(7))
    assert top_eigenvalues(identity, 7).values == pytest.approx([1.0] * 7)
    assert top_eigenvalues(MatrixOperator(torch.zeros(5, 5)), 3).values == (0.0, 0.0, 0.0)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 12), st.integers(0, 10_000), st.sampled_from(["largest", "smallest", "magnitude"]))
def test_whole_spectrum_of_small_matrices(n: int, seed: int, which: str) -> None:
    generator = torch.Generator().manual_seed(seed)
    square = torch.randn(n, n, generator=generator, dtype=torch.float64)
    square = square + square.T
    found = top_eigenvalues(MatrixOperator(square), n, which, seed=seed, tolerance=1e-8, vectors=True)
    values = torch.tensor(found.values, dtype=torch.float64)
    torch.testing.assert_close(values.sort().values, torch.linalg.eigvalsh(square), rtol=0, atol=1e-9 * max(1, n))
    keys = {"largest": -values, "smallest": values, "magnitude": -values.abs()}[which]
    assert (keys.diff() >= 0).all()
    assert found.products == n
    assert found.converged
    torch.testing.assert_close(square @ found.vectors.T, found.vectors.T * values, rtol=0, atol=1e-8 * max(1, n))


def test_residuals_are_those_of_the_vectors_and_bound_the_error() -> None:
    spectrum = torch.cat([torch.linspace(5, 10, 50), torch.linspace(-1, 1, 250)])
    operator = with_spectrum(spectrum)
    found = top_eigenvalues(operator, 3, max_products=20, tolerance=1e-9, vectors=True)
    assert not found.converged
    assert found.products == 20
    for value, residual, vector in zip(found.values, found.residuals, found.vectors, strict=True):
        assert torch.linalg.vector_norm(operator @ vector - value * vector) == pytest.approx(residual, rel=1e-6)
        assert (spectrum.double() - value).abs().min() <= residual


def test_seed_repeats_and_products_are_counted() -> None:
    operator = with_spectrum(torch.linspace(0, 1, 200))
    one, two, other = (top_eigenvalues(operator, 2, seed=seed) for seed in (4, 4, 5))
    assert one == two
    assert one != other
    assert operator.products == one.products + two.products + other.products
    assert one.seed == 4


def test_half_the_products_of_power_iteration() -> None:
    spectrum = torch.cat([torch.tensor([10.0]), torch.linspace(0, 9.8, 299)])
    operator = with_spectrum(spectrum)
    vector = torch.randn(300, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    taken = 0
    while True:
        vector = vector / vector.norm()
        product = operator @ vector
        taken += 1
        if abs(float(vector @ product) - 10) < 1e-2:
            break
        vector = product
    found = top_eigenvalues(operator, tolerance=1e-9, max_products=taken // 2)
    assert found.products == taken // 2
    assert abs(found.values[0] - 10) < 1e-2


def test_a_network() -> None:
    net, inputs = network("batch norm")
    hessian = Hessian(Objective(net, CROSS_ENTROPY, (inputs, labels())))
    exact = torch.linalg.eigvalsh(dense_hessian(net.eval(), inputs, labels()))
    found = top_eigenvalues(hessian, 3, tolerance=1e-6)
    torch.testing.assert_close(torch.tensor(found.values).double(), exact.flip(0)[:3], rtol=1e-6, atol=0)
    least = top_eigenvalues(hessian, which="smallest", tolerance=1e-6)
    assert least.values[0] == pytest.approx(float(exact[0]), rel=1e-6)
    assert found.setting == hessian.setting
    assert found.setting.parameters == hessian.size


def test_normalized_eigenvalue_does_not_see_the_scale_that_normalization_takes_out() -> None:
    from trimtab.parameters import Rule

    net, inputs = network("batch norm")
    rule, measured = Rule(include=("0.weight",)), []
    net[0].bias.data.zero_()
    net[1].eps = 1e-12
    for factor in (1.0, 3.0):
        net[0].weight.data.mul_(factor)
        hessian = Hessian(Objective(net, CROSS_ENTROPY, (inputs, labels()), rule=rule, batch_norm="batch"))
        measured.append(normalized(top_eigenvalues(hessian, tolerance=1e-6), hessian.weights))
    assert measured[0].value == pytest.approx(measured[1].value, rel=1e-6)
    assert measured[0].eigenvalue == pytest.approx(9 * measured[1].eigenvalue, rel=1e-6)
    assert measured[0].residual / measured[0].value < 1e-6


def test_a_random_loss_is_refused() -> None:
    class Noisy(SymmetricOperator):
        def _product(self, vector: Tensor) -> Tensor:
            return vector + torch.randn_like(vector)

    with pytest.raises(ValueError, match="the operator is not symmetric"):
        top_eigenvalues(Noisy(50, torch.float32, torch.device("cpu")))


def test_bad_arguments() -> None:
    operator = MatrixOperator(torch.eye(3))
    with pytest.raises(ValueError, match=r"which must be one of .* got 'top'"):
        top_eigenvalues(operator, which="top")
    with pytest.raises(ValueError, match=r"k must be a whole number in 1\.\.3"):
        top_eigenvalues(operator, 4)
    with pytest.raises(ValueError, match="tolerance must lie in"):
        top_eigenvalues(operator, tolerance=0)
    with pytest.raises(ValueError, match="max_products must be a whole number of 3 or more"):
        top_eigenvalues(operator, 3, max_products=2)
    with pytest.raises(ValueError, match="symmetric matrix"):
        MatrixOperator(torch.tensor([[0.0, 1.0], [0.0, 0.0]]))
    with pytest.raises(ValueError, match="not finite"):
        MatrixOperator(torch.diag(torch.tensor([1e38, 1e38]))) @ torch.full((2,), 1e10)
