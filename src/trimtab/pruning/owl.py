"""OWL: layers with many outlying weights stay denser."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from trimtab.checks import below_one, non_negative, one_of, positive
from trimtab.parameters import PRUNABLE, Rule, select
from trimtab.parameters.kinds import check_has_values, check_no_nan
from trimtab.pruning.calibration import stages
from trimtab.pruning.wanda import Wanda


def owl(
    model: nn.Module,
    loader: Iterable[Any],
    sparsity: float,
    *,
    outlier: float = 5.0,
    spread: float = 0.08,
    by: str = "block",
    rule: Rule | None = None,
    batches: int | None = None,
    forward: Callable[[nn.Module, Any], object] | None = None,
) -> dict[str, float]:
    """A sparsity for each layer by its share of outliers, for `one_shot`, `sweep` and `sparse_gpt`.

    With `A_ij = |W_ij| ||X_j||_2` (Wanda's score in the dense network) and `r` the share of a block's A above `outlier` times
    its mean, `s = sparsity + c - 2 spread (r - min r) / (max r - min r)`, c such that the sparsities, each by the number of
    its weights, have the mean `sparsity`. The published code takes the plain mean over blocks, which are of one size there.

    Args:
        model: the network, left as it is.
        loader: calibration batches, as for `recalibrate`. Training data.
        sparsity: fraction of all weights that are to go.
        outlier: from how many times the mean a weight is an outlier (M); 5 [code], the paper tries 3 to 10.
        spread: half of how far sparsities may lie apart (lambda); 0.08 as published.
        by: "block" (default, as published): one sparsity for each transformer block; "layer": one for each weight.
        rule: which weights; default as in `one_shot`. Those that show no inputs are left out and stay dense.
        batches: use only the first so many; default all.
        forward: runs the model on a batch of another form, `forward(model, batch)`.

    Returns:
        Per name of a weight the fraction that is to go, in the order of the model's parameters.

    Raises:
        ValueError: a value out of range; a sparsity that leaves [0, 1) (smaller `spread`); data that never reach a layer; a
            weight that is NaN or on the meta device (named); nothing to prune.

    Reference:
        Yin et al.: Outlier Weighed Layerwise Sparsity (OWL), arXiv 2310.05175.

    Example:
        >>> net = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
        >>> shares = owl(net, [torch.randn(16, 8)], 0.5, by="layer")
        >>> list(shares), round(sum(shares.values()), 6)
        (['0.weight', '1.weight'], 1.0)
    """
    below_one("sparsity", sparsity)
    positive("outlier", outlier)
    non_negative("spread", spread)
    one_of("by", by, ("layer", "block"))
    score = Wanda(loader, batches=batches, propagate=False, forward=forward)
    selection = select(model, PRUNABLE if rule is None else rule, computed=True)
    chosen = [entry for entry in selection.chosen if score.reason_against(entry) is None]
    if not chosen:
        raise ValueError(f"{type(model).__name__} has no weights of linear layers or convolutions to prune")
    for entry in chosen:
        check_has_values(entry.name, entry.parameter)
        check_no_nan(entry.name, entry.parameter)
    norms = score.norms(model, chosen)
    ratios: dict[int, float] = {}
    for step in stages(model, chosen, by):
        scores = torch.cat([score.scored(entry, norms[id(entry)]).flatten() for entry in step])
        ratio = float((scores > outlier * scores.mean(dtype=torch.float64)).double().mean())
        ratios |= {id(entry): ratio for entry in step}
    low, high = min(ratios.values()), max(ratios.values())
    denser = {key: 2 * spread * (ratio - low) / (high - low) if high > low else 0.0 for key, ratio in ratios.items()}
    sizes = {id(entry): entry.parameter.numel() for entry in chosen}
    mean = sum(denser[key] * size for key, size in sizes.items()) / sum(sizes.values())
    found = {entry.name: sparsity + mean - denser[id(entry)] for entry in chosen}
    for name, share in found.items():
        if not 0 <= share < 1:
            raise ValueError(
                f"{name} would get the sparsity {share:.3f}, outside [0, 1): give a smaller spread than {spread:g}"
            )
    return found
