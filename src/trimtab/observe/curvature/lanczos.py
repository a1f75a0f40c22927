"""Extreme eigenvalues by Lanczos with full reorthogonalization."""

from __future__ import annotations

import torch
from torch import Tensor

from trimtab.checks import number, one_of, whole
from trimtab.observe.curvature.krylov import Krylov, gaussian
from trimtab.observe.curvature.operator import SymmetricOperator
from trimtab.observe.curvature.results import Eigenvalues, NormalizedEigenvalue

ENDS = ("largest", "smallest", "magnitude")


def top_eigenvalues(
    operator: SymmetricOperator,
    k: int = 1,
    which: str = "largest",
    *,
    tolerance: float = 1e-3,
    max_products: int = 100,
    block: int | None = None,
    seed: int = 0,
    vectors: bool = False,
) -> Eigenvalues:
    """The k extreme eigenvalues at one end of the spectrum, each with its residual.

    Lanczos: Ritz values theta of the projection onto a Krylov space, from a random start; an eigenvalue lies within
    `||A v - theta v||` of theta, and the error is usually of the order of that residual squared over the gap.

    Args:
        operator: a symmetric operator, float32 or float64.
        k: how many.
        which: "largest" (signed, descending), "smallest" (signed, ascending) or "magnitude" (by modulus, descending,
            with their signs). The three are different questions: a network at a saddle can have its largest modulus below 0.
        tolerance: converged when each residual is at most this times its eigenvalue's modulus. Default 1e-3 [ours].
        max_products: most products taken. Default 100 [ours]. Memory: one vector for each.
        block: start vectors. An eigenvalue that occurs m times is found min(m, block) times for certain. Default 1 for
            k = 1, else 2 [ours].
        seed: of the start vectors; the same numbers on every device.
        vectors: return the eigenvectors too.

    Raises:
        ValueError: k, which, tolerance, block or max_products out of range; an operator that is not symmetric or not finite.

    Reference: Golub and Van Loan, Matrix Computations, chapter 10.

    Example:
        >>> from trimtab.observe.curvature.operator import MatrixOperator
        >>> found = top_eigenvalues(MatrixOperator(torch.diag(torch.tensor([-9.0, 1.0, 5.0]))), which="magnitude")
        >>> round(found.values[0], 4), found.converged, found.products
        (-9.0, True, 3)
    """
    block = (1 if k == 1 else 2) if block is None else block
    one_of("which", which, ENDS)
    whole("k", k, 1, operator.size)
    whole("block", block, 1)
    whole("max_products", max_products, k)
    number("tolerance", tolerance, above=0, below=1)
    generator = torch.Generator().manual_seed(seed)
    krylov = Krylov(operator)
    for _ in range(min(block, operator.size)):
        krylov.start(gaussian(operator.size, generator, operator))
    verified: Tensor | None = None  # wanted values when the space last broke down
    while True:
        krylov.step()
        enough = krylov.multiplied >= min(max_products, operator.size)
        m = krylov.multiplied
        if enough or (m >= k and m % max(1, m // 20) == 0):  # beyond 40 products not after each one
            values, residuals, coefficients, settled, closed = _ritz(krylov, k, which, tolerance, operator.dtype)
            if settled and closed and k > 1 and m < operator.size:  # copies of multiple eigenvalues may lie outside
                settled = verified is not None and bool(
                    (values - verified).abs().max() <= tolerance * values.abs().max()
                )
                verified = values
            if settled or enough:
                break
        while not krylov.pending:  # an invariant subspace: go on in what is orthogonal to it
            krylov.start(gaussian(operator.size, generator, operator))
    return Eigenvalues(
        values=tuple(values.tolist()),
        residuals=tuple(residuals.tolist()),
        converged=settled,
        which=which,
        products=krylov.multiplied,
        block=block,
        tolerance=tolerance,
        seed=seed,
        setting=operator.setting,
        vectors=krylov.combine(coefficients) if vectors else None,
    )


def _ritz(
    krylov: Krylov, k: int, which: str, tolerance: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, bool, bool]:
    """The k wanted Ritz values, their residuals, their coefficients over the basis, whether all have converged, and whether the
    basis spans an invariant subspace to rounding."""
    square, coupling = krylov.projection()
    values, vectors = torch.linalg.eigh(square)
    scale = float(values.abs().max())
    keys = {"largest": -values, "smallest": values, "magnitude": -values.abs()}[which]
    wanted = torch.argsort(keys, stable=True)[:k]
    values, vectors = values[wanted], vectors[:, wanted]
    residuals = torch.linalg.vector_norm(coupling @ vectors, dim=0)
    floor = 10 * torch.finfo(dtype).eps * scale
    settled = bool((residuals <= (tolerance * values.abs()).clamp(min=floor)).all())
    return values, residuals, vectors, settled, bool(torch.linalg.vector_norm(coupling) <= 1000 * floor)


def normalized(found: Eigenvalues, weights: Tensor) -> NormalizedEigenvalue:
    """The first eigenvalue times the squared norm of the weights: `lambda_1 ||w||^2`, in units of the loss.

    Where the loss does not change when the weights are multiplied by one factor (all of them followed by normalization),
    the Hessian scales with 1 / ||w||^2 and this number does not change; elsewhere it is a normalization, not an invariance.

    Args:
        found: from `top_eigenvalues`.
        weights: the parameters where it was measured, for example `hessian.weights`.

    Example:
        >>> from trimtab.observe.curvature.operator import MatrixOperator
        >>> found = top_eigenvalues(MatrixOperator(torch.diag(torch.tensor([1.0, 5.0]))))
        >>> round(normalized(found, torch.tensor([2.0, 0.0])).value, 4)
        20.0
    """
    norm = float(torch.linalg.vector_norm(weights.double()))
    value, residual = found.values[0], found.residuals[0]
    return NormalizedEigenvalue(value * norm**2, residual * norm**2, value, norm, found.converged)
