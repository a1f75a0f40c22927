"""How far a step's forward passes move the running statistics of normalisation layers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


def running_statistics(model: nn.Module | None) -> list[tuple[Tensor, Tensor]]:
    """Running mean and variance of every layer that is training and keeps them."""
    found = []
    for module in model.modules() if model is not None else ():
        mean, variance = getattr(module, "running_mean", None), getattr(module, "running_var", None)
        if module.training and isinstance(mean, Tensor) and isinstance(variance, Tensor):
            found.append((mean, variance))
    return found


@torch.no_grad()
def running_change(now: Sequence[tuple[Tensor, Tensor]], before: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """Root of the mean, over the layers, of `||m' - m||^2 / sum v + ||v' - v||^2 / ||v||^2`; shape (), float64.

    Each layer's means move by a share `momentum` of the distance to the batch's, so that a momentum which is wrong shows here
    at once, whatever the scale of the activations.

    Example:
        >>> mean, variance = torch.tensor([0.0, 0.0]), torch.tensor([1.0, 3.0])
        >>> round(running_change([(mean + 1, variance)], [(mean, variance)]).item() ** 2, 6)  # 2 / 4
        0.5
    """
    means, variances = [list(of) for of in zip(*now, strict=True)]
    kept_means, kept_variances = [list(of) for of in zip(*before, strict=True)]
    moved = [torch._foreach_add(of, kept, alpha=-1) for of, kept in ((means, kept_means), (variances, kept_variances))]
    device = means[0].device

    def norms(tensors: Sequence[Tensor], order: int = 2) -> Tensor:
        return torch.stack([one.to(device) for one in torch._foreach_norm(list(tensors), order)]).double()

    total, size = norms(kept_variances, 1), norms(kept_variances)
    return (norms(moved[0]).square() / total + norms(moved[1]).square() / size.square()).mean().sqrt()
