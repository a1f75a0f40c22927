"""The formulas of example scores, on logits and gradients that are given."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def check_logits(logits: Tensor, targets: Tensor) -> None:
    """Logits (examples, classes) and whole classes (examples,).

    Raises:
        TypeError: targets are no whole numbers.
        ValueError: the shapes do not fit.
    """
    if targets.is_floating_point() or targets.is_complex():
        raise TypeError(f"targets must be classes (whole numbers), got {targets.dtype}")
    if logits.ndim != 2 or targets.shape != logits.shape[:1]:
        raise ValueError(
            f"scores of examples are of logits (examples, classes) and targets (examples,), got {tuple(logits.shape)} and "
            f"{tuple(targets.shape)}"
        )


@torch.no_grad()
def el2n(logits: Tensor, targets: Tensor) -> Tensor:
    """Error L2 norm `||softmax(z) - onehot(y)||`, (examples,): the norm of the cross-entropy's gradient in the logits.

    Args:
        logits: (examples, classes); computed in float32 or wider.
        targets: classes (examples,).

    Raises:
        ValueError, TypeError: the shapes do not fit, or targets are no classes.

    Reference: Paul, Ganguli, Dziugaite, arXiv 2107.07075. A mean over ten seeds or epochs early in training is what they rank
    by.

    Example:
        >>> el2n(torch.zeros(1, 2), torch.tensor([0]))
        tensor([0.7071])
    """
    check_logits(logits, targets)
    wide = logits if logits.dtype == torch.float64 else logits.float()
    error = wide.softmax(1)
    error = error.scatter_add(1, targets.unsqueeze(1), torch.full_like(error[:, :1], -1))
    norms: Tensor = torch.linalg.vector_norm(error, dim=1)
    return norms


def gradient_variance(gradients: Tensor) -> Tensor:
    """Variance of gradients: how much the input gradient of an example changes from checkpoint to checkpoint, (examples,).

    The population's standard deviation over the checkpoints in each pixel, then its mean over the pixels.

    Args:
        gradients: of the right logit in the input, (checkpoints, examples, ...); two checkpoints or more.

    Raises:
        ValueError: fewer than two checkpoints.

    Reference: Agarwal, D'souza, Hooker, VoG, arXiv 2008.11600, with its code (a deviation, in spite of its name).

    Example:
        >>> gradient_variance(torch.tensor([[[1.0, 0.0]], [[3.0, 0.0]]]))
        tensor([0.5000])
    """
    if gradients.ndim < 2 or len(gradients) < 2:
        raise ValueError(
            f"a variance needs two checkpoints or more, got gradients of the shape {tuple(gradients.shape)}"
        )
    return gradients.std(0, correction=0).flatten(1).mean(1)


def within_class(scores: Tensor, targets: Tensor) -> Tensor:
    """Scores in deviations from the mean of their class (population's); 0 in a class whose scores are all alike.

    Args:
        scores: (examples,); NaN where there is none, which stays.
        targets: classes (examples,).

    Example:
        >>> within_class(torch.tensor([1.0, 3.0, 5.0]), torch.tensor([0, 0, 1]))
        tensor([-1.,  1.,  0.])
    """
    found = scores.clone()
    for kind in torch.unique(targets):
        own = (targets == kind) & scores.isfinite()
        values = scores[own]
        if len(values):
            apart = values.std(correction=0)
            found[own] = (values - values.mean()) / apart if float(apart) > 0 else torch.zeros_like(values)
    return found


def influence(train: Sequence[Tensor], test: Sequence[Tensor], rates: Sequence[float]) -> Tensor:
    """TracIn: `sum_k rate_k <g_k(train i), g_k(test j)>`, (train examples, test examples).

    What a step on example i, at every checkpoint, would have taken from the loss of test example j.

    Args:
        train, test: for each checkpoint the gradients of examples (examples, elements).
        rates: learning rate at each checkpoint.

    Raises:
        ValueError: not as many rates as checkpoints.

    Reference: Pruthi et al., arXiv 2002.08484.

    Example:
        >>> influence([torch.tensor([[1.0, 2.0]])], [torch.tensor([[3.0, 0.0]])], [0.1])
        tensor([[0.3000]])
    """
    if not len(train) == len(test) == len(rates) or not rates:
        raise ValueError(
            f"influence needs gradients and a rate of each checkpoint, got {len(train)}, {len(test)} and {len(rates)} rates"
        )
    terms = [rate * (one @ other.T) for one, other, rate in zip(train, test, rates, strict=True)]
    return torch.stack(terms).sum(0)
