"""What makes a weight small: one number per weight."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from trimtab.checks import hint
from trimtab.parameters import Entry
from trimtab.pruning.data_scores import DataScore

Score = str | Callable[[Entry], Tensor] | DataScore
SCORES = ("magnitude", "layer_magnitude", "random")


def checked_score(score: Score) -> Score:
    """`score` itself when it is known or callable; ValueError with the nearest name otherwise."""
    if isinstance(score, DataScore) or callable(score) or score in SCORES:
        return score
    raise ValueError(
        f"unknown score {score!r}; {hint(score, SCORES, 'scores')}; "
        "a callable (entry -> tensor) works too, and Wanda, Snip, Taylor, GraSP"
    )


def _layer_magnitude(name: str, weight: Tensor) -> Tensor:
    wide = weight.detach().to(torch.float64 if weight.dtype == torch.float64 else torch.float32)
    norm = torch.linalg.vector_norm(wide, dtype=torch.float64)
    if not bool(norm.isfinite()):
        raise ValueError(f"layer_magnitude needs finite weights; {name} has the norm {float(norm)}")
    return wide.abs().div_(norm) if norm > 0 else wide.abs()


def scores_of(
    model: nn.Module, entries: Sequence[Entry], weights: Sequence[Tensor], score: Score, seed: int | torch.Generator
) -> tuple[list[Tensor], bool]:
    """Scores of every weight; the second value says whether they are to be read by magnitude.

    * `"magnitude"`: |w|; no copy is made, the weights themselves are returned and read by magnitude.
    * `"layer_magnitude"`: |w| / ||w||_2 of its tensor: small layers and large ones are pruned alike.
    * `"random"`: uniform numbers from `seed`, the control that any method must beat.
    * a callable: `score(entry)` returns a tensor of the weight's shape; the smallest go, negative ones first.
    * a `DataScore`: from calibration data.

    Raises:
        ValueError: a callable returns another shape or NaN; a norm is infinite.
    """
    if score == "magnitude":
        return [weight.detach() for weight in weights], True
    if score == "layer_magnitude":
        named = zip(entries, weights, strict=True)
        return [_layer_magnitude(entry.name, weight) for entry, weight in named], False
    if score == "random":
        generator = seed if isinstance(seed, torch.Generator) else torch.Generator().manual_seed(seed)
        return [torch.rand(weight.shape, generator=generator).to(weight.device) for weight in weights], False
    if isinstance(score, DataScore):
        found = score.of(model, entries)
    else:
        assert callable(score)
        found = [score(entry).detach() for entry in entries]
    check_scores(entries, found)
    return found, False


def check_scores(entries: Sequence[Entry], found: Sequence[Tensor]) -> None:
    """ValueError, with the weight's name, for a score of another shape or with NaN."""
    for entry, value in zip(entries, found, strict=True):
        if value.shape != entry.parameter.shape:
            raise ValueError(
                f"the score of {entry.name} has shape {tuple(value.shape)}, its weight {tuple(entry.parameter.shape)}"
            )
        if bool(value.isnan().any()):
            raise ValueError(
                f"the score of {entry.name} holds NaN in {int(value.isnan().sum())} of {value.numel()} places"
            )
