"""Directions through the weights, scaled so that sections of different networks can be compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from trimtab.checks import one_of, whole
from trimtab.observe.curvature.objective import Objective
from trimtab.observe.curvature.results import Eigenvalues
from trimtab.parameters import Entry, no_axis
from trimtab.parameters.layouts import NO_WEIGHT

SCALES = ("filter", "tensor", "none")
ONE_DIMENSIONAL = ("zero", "scaled")


@dataclass(frozen=True)
class Directions:
    """One or two directions in the space of an objective's parameters.

    Attributes:
        vectors: shape (1 or 2, n), in the objective's dtype.
        kind: "random" or "eigenvector".
        scale: "filter", "tensor", "none", or "weights" (the whole direction has the norm of the weights).
        one_dimensional: what happens to biases and norm layers: "zero" (they stay) or "scaled".
        cosine: between the two directions, None for a single one.
        seed: of random directions, else None.
        left_out: with scale "filter", parameters of two dimensions or more whose filters their owner does not tell, each with
            the reason: they are treated as `one_dimensional` says.
    """

    vectors: Tensor = field(repr=False, compare=False)
    kind: str
    scale: str
    one_dimensional: str
    cosine: float | None
    seed: int | None
    left_out: tuple[tuple[str, str], ...] = ()


def random_directions(
    objective: Objective, count: int = 2, *, scale: str = "filter", one_dimensional: str = "zero", seed: int = 0
) -> Directions:
    """Gaussian directions, filter-normalized: `d_f <- d_f ||w_f|| / ||d_f||` for each filter f.

    A filter is the part of a tensor that makes one output unit (a row of a Linear layer, a column of transformers' Conv1D, one
    of these of one expert), as the owner says. With this scale, rescaling
    filters in front of a normalization changes nothing in the picture, and a filter of zeros stays zero.

    Args:
        objective: gives the parameters.
        count: 1 for a curve, 2 for a surface.
        scale: "filter" (default), "tensor" (the same with whole tensors) or "none" (standard normal).
        one_dimensional: tensors with fewer than two dimensions, and with scale "filter" others without filters: "zero"
            (default: they stay where they are) or "scaled"
            (like one filter; as drawn when scale is "none").
        seed: the same directions on every device.

    Raises:
        ValueError: an unknown choice, or directions that are zero everywhere.

    Reference: Li et al. 2018, arXiv 1712.09913.

    Example:
        >>> net = torch.nn.Linear(3, 2)
        >>> objective = Objective(net, torch.nn.functional.mse_loss, (torch.ones(1, 3), torch.zeros(1, 2)))
        >>> weight, bias = objective.split(random_directions(objective, 1).vectors[0])
        >>> torch.allclose(weight.norm(dim=1), net.weight.norm(dim=1)), bias.tolist()
        (True, [0.0, 0.0])
    """
    whole("count", count, 1, 2)
    one_of("scale", scale, SCALES)
    one_of("one_dimensional", one_dimensional, ONE_DIMENSIONAL)
    generator = torch.Generator().manual_seed(seed)
    vectors = []
    for _ in range(count):
        drawn = [torch.randn(w.shape, generator=generator, dtype=torch.float64).to(w) for w in objective.weights]
        vectors.append(objective.flat(_scaled(objective, drawn, scale, one_dimensional)))
    found = _directions(vectors, "random", scale, one_dimensional, seed)
    if scale != "filter":
        return found
    reasons = [
        (entry.name, no_axis(entry) or NO_WEIGHT[entry.role]) for entry in objective.entries if _without_filters(entry)
    ]
    return replace(found, left_out=tuple(reasons))


def eigenvector_directions(objective: Objective, found: Eigenvalues) -> Directions:
    """The first one or two eigenvectors, each as long as the weights are: `d = v ||w||`.

    They are not filter-normalized, which would turn them away from the eigenvectors, and they move biases and norm
    layers too. The sign is ours: the component of largest modulus is positive.

    Args:
        objective: the one whose Hessian was measured.
        found: from `top_eigenvalues(..., vectors=True)`.

    Raises:
        ValueError: the result holds no vectors, or not of this objective's size.

    Example:
        >>> from trimtab.observe.curvature import Hessian, top_eigenvalues
        >>> net = torch.nn.Linear(2, 1, bias=False)
        >>> objective = Objective(net, torch.nn.functional.mse_loss, (torch.tensor([[1.0, 0.0]]), torch.zeros(1, 1)))
        >>> found = eigenvector_directions(objective, top_eigenvalues(Hessian(objective), vectors=True)).vectors
        >>> torch.allclose(found, torch.tensor([[net.weight.norm().item(), 0.0]]), atol=1e-6)
        True
    """
    if found.vectors is None:
        raise ValueError("the eigenvalues come without vectors; call top_eigenvalues(..., vectors=True)")
    if found.vectors.shape[1] != objective.size:
        raise ValueError(f"the eigenvectors have {found.vectors.shape[1]} components, the objective {objective.size}")
    norm = torch.linalg.vector_norm(objective.flat(objective.weights))
    vectors = [vector * vector[vector.abs().argmax()].sign() * norm for vector in found.vectors[:2]]
    return _directions(vectors, "eigenvector", "weights", "scaled", None)


def _scaled(objective: Objective, drawn: Sequence[Tensor], scale: str, one_dimensional: str) -> list[Tensor]:
    result = []
    for entry, weight, direction in zip(objective.entries, objective.weights, drawn, strict=True):
        single = weight.ndim < 2 or (scale == "filter" and _without_filters(entry))
        if single and one_dimensional == "zero":
            result.append(torch.zeros_like(weight))
        elif scale == "none":
            result.append(direction)
        else:
            axes = (entry.output_axis, entry.stack_axis) if scale == "filter" and not single else ()
            result.append(direction * (_norm(weight, axes) / _norm(direction, axes)))
    return result


def _without_filters(entry: Entry) -> bool:
    """Whether a tensor of two dimensions or more has no output dimension by its owner's word."""
    return entry.parameter.ndim > 1 and entry.output_axis is None


def _norm(tensor: Tensor, axes: Sequence[int | None]) -> Tensor:
    dims = [dim for dim in range(tensor.ndim) if dim not in axes]
    return torch.linalg.vector_norm(tensor, dim=dims, keepdim=True) if tensor.ndim else tensor.abs()


def _directions(vectors: list[Tensor], kind: str, scale: str, one_dimensional: str, seed: int | None) -> Directions:
    norms = [float(torch.linalg.vector_norm(vector.double())) for vector in vectors]
    if min(norms) == 0:
        raise ValueError(
            "a direction is zero everywhere: the chosen weights are zero, or all have fewer than two dimensions"
        )
    cosine = None
    if len(vectors) == 2:
        cosine = float(torch.dot(vectors[0].double(), vectors[1].double())) / (norms[0] * norms[1])
    return Directions(torch.stack(vectors), kind, scale, one_dimensional, cosine, seed)
