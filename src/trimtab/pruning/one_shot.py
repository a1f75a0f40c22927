"""Prune once, without retraining."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from trimtab.parameters import Rule
from trimtab.pruning.pruned import Pruned
from trimtab.pruning.scores import Score
from trimtab.pruning.selection_plan import Removal, SelectionPlan


def _result(plan: SelectionPlan, removal: Removal, saved: Sequence[Tensor] | None) -> Pruned:
    """Zero the weights in place and say what was done; `saved` holds the whole weights when the caller has a copy."""
    weights = plan.weights
    kept_values: list[Tensor] = []
    with torch.no_grad():
        for weight, mask in zip(weights, removal.masks, strict=True):
            if saved is None:
                kept_values.append(weight[mask])
            weight.masked_fill_(mask, 0)
            mask.logical_not_()  # from "goes" to "stays"
    counts = [mask.numel() - int(mask.count_nonzero()) for mask in removal.masks]

    def restore() -> None:
        with torch.no_grad():
            for position, (weight, mask) in enumerate(zip(weights, removal.masks, strict=True)):
                gone = ~mask
                weight[gone] = kept_values[position] if saved is None else saved[position][gone]

    names = [entry.name for entry in plan.chosen]
    return Pruned(
        masks=dict(zip(names, removal.masks, strict=True)),
        thresholds=dict(zip(names, removal.thresholds, strict=True)),
        removed=dict(zip(names, counts, strict=True)),
        prunable=plan.prunable,
        total=plan.total,
        left_out=plan.left_out,
        score=plan.score if isinstance(plan.score, str) else getattr(plan.score, "__name__", repr(plan.score)),
        scope=plan.scope,
        pattern=plan.pattern,
        _restore=restore,
    )


def one_shot(
    model: nn.Module,
    sparsity: float | None = None,
    *,
    score: Score = "magnitude",
    scope: str = "global",
    pattern: str = "unstructured",
    rule: Rule | None = None,
    seed: int = 0,
    keep_first: bool = False,
    keep_last: bool = False,
) -> Pruned:
    """Zero the least important weights of `model` in place; exactly `floor(sparsity * n + 0.5)` of the n prunable ones.

    Equal scores are removed by position, first ones first, in the order of the model's parameters; tied weights count and
    go once. The module gets no hooks, buffers or new parameters: `state_dict` keys, `deepcopy`, `torch.export` and
    `torch.compile` see an ordinary model. First and last layers are pruned by default, as in CrAM's protocol.

    Args:
        model: weights of any float dtype, on any device.
        sparsity: fraction of the prunable weights to remove, in [0, 1). None with an N:M pattern, which fixes it.
        score: "magnitude", "layer_magnitude", "random", or a callable (entry -> tensor of scores, 0 or more).
        scope: "global", "layer" or "erk": where scores are compared.
        pattern: "unstructured", or "N:M": N of every M consecutive weights along the input axis stay.
        rule: which parameters are prunable; default two dimensions or more without class tokens and position embeddings.
        seed: of score "random".
        keep_first, keep_last: leave the first or last prunable tensor out.

    Returns:
        A `Pruned`: masks, counts, thresholds, what was left out and why, `undo()`.

    Raises:
        ValueError: sparsity out of range, NaN weights, nothing to prune, an unknown name, sharded weights. Nothing is
            changed then.

    Example:
        >>> net = nn.Linear(4, 2)
        >>> pruned = one_shot(net, 0.5)
        >>> int((net.weight == 0).sum()), pruned.sparsity, round(pruned.sparsity_total, 2)
        (4, 0.5, 0.4)
        >>> pruned.undo()
        >>> int((net.weight == 0).sum())
        0
    """
    plan = SelectionPlan(
        model,
        score=score,
        scope=scope,
        pattern=pattern,
        rule=rule,
        seed=seed,
        keep_first=keep_first,
        keep_last=keep_last,
    )
    wanted = plan.check_sparsity(sparsity)
    removal = plan.removals([wanted], plan.weights).at(0)
    return _result(plan, removal, saved=None)


def sweep(
    model: nn.Module,
    sparsities: Sequence[float | None],
    *,
    score: Score = "magnitude",
    scope: str = "global",
    pattern: str = "unstructured",
    rule: Rule | None = None,
    seed: int = 0,
    keep_first: bool = False,
    keep_last: bool = False,
) -> Iterator[Pruned]:
    """Put `model` into one pruned state after the other, each from the dense weights; leave it as it was.

    The thresholds of all sparsities come from the same two passes over the weights. When the loop ends, breaks or raises,
    the weights are put back bit for bit. The model must not be trained inside the loop.

    Args:
        model: as in `one_shot`, as are the options.
        sparsities: in any order; 0 gives the dense network. `(None,)` with an N:M pattern.

    Yields:
        A `Pruned` for each sparsity, valid until the next one.

    Raises:
        ValueError: as `one_shot`, at once and not at the first iteration; or no sparsity is given.

    Example:
        >>> net = nn.Linear(10, 1)
        >>> [int((net.weight == 0).sum()) for pruned in sweep(net, (0.5, 0.9))]
        [5, 9]
    """
    plan = SelectionPlan(
        model,
        score=score,
        scope=scope,
        pattern=pattern,
        rule=rule,
        seed=seed,
        keep_first=keep_first,
        keep_last=keep_last,
    )
    if not sparsities:
        raise ValueError("sparsities is empty: name at least one")
    wanted = [plan.check_sparsity(sparsity) for sparsity in sparsities]
    saved = [weight.detach().clone() for weight in plan.weights]
    sequence = plan.removals(wanted, saved)

    def states() -> Iterator[Pruned]:
        def put_back() -> None:
            with torch.no_grad():
                for weight, value in zip(plan.weights, saved, strict=True):
                    weight.copy_(value)

        try:
            for number in range(len(wanted)):
                yield _result(plan, sequence.at(number if plan.groups is None else 0), saved=saved)
                put_back()
        finally:
            put_back()

    return states()
