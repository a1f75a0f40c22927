"""Curvature of the loss without touching the network: eigenvalues, trace, spectral density, sharpness, each with its error."""

from trimtab.observe.curvature.density import spectral_density
from trimtab.observe.curvature.hessian import GaussNewton, Hessian, LossOperator, on_nonzero, relative
from trimtab.observe.curvature.lanczos import normalized, top_eigenvalues
from trimtab.observe.curvature.negativity import Negativity, negativity
from trimtab.observe.curvature.noise import denoised_top
from trimtab.observe.curvature.objective import Objective
from trimtab.observe.curvature.operator import MatrixOperator, Scaled, SymmetricOperator
from trimtab.observe.curvature.results import (
    Eigenvalues,
    NormalizedEigenvalue,
    Setting,
    Sharpness,
    SpectralDensity,
    Trace,
)
from trimtab.observe.curvature.sharpness import sharpness
from trimtab.observe.curvature.trace import trace

__all__ = [
    "Eigenvalues",
    "GaussNewton",
    "Hessian",
    "LossOperator",
    "MatrixOperator",
    "Negativity",
    "NormalizedEigenvalue",
    "Objective",
    "Scaled",
    "Setting",
    "Sharpness",
    "SpectralDensity",
    "SymmetricOperator",
    "Trace",
    "denoised_top",
    "negativity",
    "normalized",
    "on_nonzero",
    "relative",
    "sharpness",
    "spectral_density",
    "top_eigenvalues",
    "trace",
]
