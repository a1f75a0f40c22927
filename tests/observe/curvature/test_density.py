"""Stochastic Lanczos quadrature against known spectra."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.observe.curvature.networks import CROSS_ENTROPY, dense_hessian, labels, network
from tests.observe.curvature.test_lanczos import SPECTRA, with_spectrum
from trimtab.observe.curvature import Hessian, MatrixOperator, Objective, spectral_density


@pytest.mark.parametrize("name", SPECTRA)
def test_moments_and_integral(name: str) -> None:
    spectrum = SPECTRA[name].double()
    found = spectral_density(with_spectrum(spectrum), probes=12, steps=20)
    floor = 1e-9 * float(spectrum.abs().max())
    assert abs(found.mean - float(spectrum.mean())) <= 3 * found.mean_error + floor
    assert abs(found.second_moment - float(spectrum.square().mean())) <= 3 * found.second_moment_error + floor
    assert np.trapezoid(found.density, found.grid) == pytest.approx(1, abs=1e-6)
    assert found.mass() == pytest.approx(1)
    assert min(found.density) >= 0


def test_moments_are_those_of_the_start_vectors() -> None:
    """2 steps - 1 moments are exact for each probe: with 4 steps, up to the seventh."""
    spectrum = torch.linspace(-1, 2, 60).double()
    operator = with_spectrum(spectrum)
    found = spectral_density(operator, probes=3, steps=4, seed=5)
    generator = torch.Generator().manual_seed(5)
    dense = operator @ torch.eye(60, dtype=torch.float64)
    for nodes, weights in zip(found.nodes, found.weights, strict=True):
        start = torch.randn(60, generator=generator, dtype=torch.float64)
        start /= start.norm()
        for power in range(8):
            quadrature = sum(w * n**power for n, w in zip(nodes, weights, strict=True))
            assert quadrature == pytest.approx(float(start @ torch.linalg.matrix_power(dense, power) @ start), abs=1e-9)


def test_the_density_has_the_shape_of_the_spectrum() -> None:
    spectrum = torch.cat([torch.full((300,), -1.0), torch.full((100,), 2.0)])
    found = spectral_density(with_spectrum(spectrum), probes=40, width=0.05)
    density, grid = np.array(found.density), np.array(found.grid)
    assert found.mass(high=0.0) == pytest.approx(0.75, abs=0.03)
    assert grid[density.argmax()] == pytest.approx(-1, abs=0.02)
    assert density.max() == pytest.approx(0.75 / (0.05 * np.sqrt(2 * np.pi)), rel=0.05)
    assert density[(grid > -0.5) & (grid < 1.5)].max() < 1e-6


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 8), st.integers(0, 999), st.floats(1e-3, 10))
def test_integrates_to_one(n: int, seed: int, width: float) -> None:
    square = torch.randn(n, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    found = spectral_density(MatrixOperator(square + square.T), probes=2, width=width, points=10)
    assert np.trapezoid(found.density, found.grid) == pytest.approx(1, abs=1e-6)
    assert all(sum(weights) == pytest.approx(1) for weights in found.weights)


def test_zero_matrix() -> None:
    found = spectral_density(MatrixOperator(torch.zeros(5, 5)))
    assert (found.mean, found.second_moment, found.products) == (0.0, 0.0, 10)
    assert np.trapezoid(found.density, found.grid) == pytest.approx(1, abs=1e-6)


def test_a_network() -> None:
    net, inputs = network("batch norm")
    hessian = Hessian(Objective(net, CROSS_ENTROPY, (inputs, labels())))
    exact = torch.linalg.eigvalsh(dense_hessian(net.eval(), inputs, labels()))
    found = spectral_density(hessian, probes=8, steps=40)
    assert abs(found.mean - float(exact.mean())) < 3 * found.mean_error
    assert abs(found.second_moment - float(exact.square().mean())) < 3 * found.second_moment_error
    ends = (min(map(min, found.nodes)), max(map(max, found.nodes)))
    assert ends == pytest.approx((float(exact[0]), float(exact[-1])), rel=1e-3)
    assert found.products <= 8 * 40
    assert found == spectral_density(hessian, probes=8, steps=40)


def test_bad_arguments() -> None:
    operator = MatrixOperator(torch.eye(3))
    with pytest.raises(ValueError, match="probes must be a whole number of 2 or more"):
        spectral_density(operator, probes=1)
    with pytest.raises(ValueError, match="width must be finite and above 0"):
        spectral_density(operator, width=-1.0)
