"""Prune once, without retraining."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence

import torch
from torch import Tensor, nn

from trimtab.parameters import Rule
from trimtab.parameters.reparametrised import Reparametrised
from trimtab.pruning.layer_sparsity import Sparsity
from trimtab.pruning.patterns import Indivisible
from trimtab.pruning.pruned import Pruned
from trimtab.pruning.scores import Score
from trimtab.pruning.selection_plan import Removal, Removals, SelectionPlan
from trimtab.pruning.undo import Saved, Undo, put_back
from trimtab.tensors.collapse import OnCollapse

INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


@torch.no_grad()
def _copies(tensors: Iterable[Tensor]) -> Saved:
    """Each tensor, once, with a copy of its values."""
    return [(tensor, tensor.clone()) for tensor in {id(tensor): tensor for tensor in tensors}.values()]


@torch.no_grad()
def _keep_(weight: Tensor, mask: Tensor) -> None:
    """Set `weight` to +0 where `mask` is False, in place.

    On a CPU by a bitwise AND with all ones or none, half the time of `masked_fill_`.
    """
    if weight.device.type != "cpu":
        weight.masked_fill_(~mask, 0)
        return
    integers = INTEGERS[weight.element_size()]
    weight.detach().view(integers).bitwise_and_(mask.to(integers).neg_())


@torch.no_grad()
def _result(plan: SelectionPlan, removal: Removal, saved: Saved) -> Pruned:
    """Zero the weights in place and say what was done; `saved` holds the dense values, for `undo`."""
    computed = []
    for entry, mask in zip(plan.chosen, removal.masks, strict=True):
        mask.logical_not_()  # from "goes" to "stays"
        if entry.computed is None:
            _keep_(entry.parameter, mask)
        else:
            computed.append((entry.name, entry.computed, entry.computed.prune_(mask)))
    counts = [mask.numel() - int(mask.count_nonzero()) for mask in removal.masks]
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
        record=Undo(plan.model, {id(entry.parameter): entry.name for entry in plan.chosen}, saved, computed),
    )


def one_shot(
    model: nn.Module,
    sparsity: Sparsity | None = None,
    *,
    score: Score = "magnitude",
    scope: str | None = None,
    pattern: str = "unstructured",
    rule: Rule | None = None,
    seed: int | torch.Generator = 0,
    keep_first: bool = False,
    keep_last: bool = False,
    indivisible: Indivisible = "refuse",
    on_collapse: OnCollapse = "warn",
) -> Pruned:
    """Zero the least important weights of `model` in place; exactly `floor(sparsity * n + 0.5)` of the n prunable ones.

    Equal scores are removed by position, first ones first, in the order of the model's parameters; tied weights count and
    go once. The module gets no hooks, buffers or new parameters: `state_dict` keys, `deepcopy`, `torch.export` and
    `torch.compile` see an ordinary model. First and last layers are pruned by default, as in CrAM's protocol.

    A weight that the module computes from others is scored and pruned as the one that the product uses, and has its plain
    name (`0.weight`). Under `weight_norm` (both forms) the zeros go into the direction and the gain follows, so that no other
    weight changes. `spectral_norm` and `orthogonal` get a mask behind them: a parametrization (for the older spectral_norm a
    hook) with one more buffer, the one exception to the sentence above. Other parametrizations are left out by name.

    Args:
        model: weights of float64, float32, float16 or bfloat16, on any device. Others (float8, complex, quantised layers) are
            left out, with the reason.
        sparsity: fraction of the prunable weights to remove, a number in [0, 1) (NumPy's scalars count as they are: float32
            0.9 is a little less than 0.9). None with an N:M pattern, which fixes it. Or one for each layer by name,
            `{"layers.0.*": 0.5}`: the first pattern that matches holds, weights that none matches stay dense.
        score: "magnitude", "layer_magnitude", "random", a callable (entry -> tensor of scores of either sign), or one with
            calibration data: `Wanda`, `Snip`, `Taylor`, `GraSP`.
        scope: "global", "layer", "erk" or "row" (each output row by itself): where scores are compared. Default: "global";
            "row" for Wanda, "layer" where sparsity is given by name. Without effect on an N:M pattern, which compares inside
            each group of M; `Pruned.scope` is "group" then.
        pattern: "unstructured", or "N:M": N of every M consecutive weights along the input axis stay.
        rule: which parameters are prunable; default: what its owner knows as a weight of a product or the table of an embedding
            (`trimtab.parameters.register_layout` for modules of your own; a name in `include` counts whatever it is).
        seed: of score "random": a number, or a CPU generator.
        keep_first, keep_last: leave the first or last prunable tensor out, in the model's order; a tied one stands at each
            of its names.
        indivisible: "refuse" (default [ours]): a weight whose input axis is no multiple of the pattern's M is an error that
            names it; "leave_out": it stays dense, with the reason in `Pruned.left_out`.
        on_collapse: where scope "global" would take all weights of a layer while others keep some: "warn" (default) names it,
            "raise" refuses, "keep" takes others instead, so that 0.1 % of every tensor stays and at least one weight; the
            count is exact all the same.

    Returns:
        A `Pruned`: masks, counts, thresholds, what was left out and why, `undo()`. It holds a copy of the dense weights
        until `undo()`, and a byte per weight for the masks.

    Raises:
        ValueError: sparsity out of range, NaN weights or scores, nothing to prune, an unknown name, sharded weights, lazy ones
            before the first forward pass, or some on the meta device; weights that the pattern does not divide; calibration
            data that never reach a layer. Nothing is changed then.

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
        indivisible=indivisible,
        on_collapse=on_collapse,
    )
    wanted = plan.check_sparsity(sparsity)
    removal = plan.removals([wanted], plan.weights).at(0)
    return _result(plan, removal, _copies(entry.parameter for entry in plan.chosen if entry.computed is None))


def sweep(
    model: nn.Module,
    sparsities: Sequence[Sparsity | None],
    *,
    score: Score = "magnitude",
    scope: str | None = None,
    pattern: str = "unstructured",
    rule: Rule | None = None,
    seed: int | torch.Generator = 0,
    keep_first: bool = False,
    keep_last: bool = False,
    indivisible: Indivisible = "refuse",
    on_collapse: OnCollapse = "warn",
) -> Generator[Pruned, None, None]:
    """Put `model` into one pruned state after the other, each from the dense weights; leave it as it was.

    The thresholds of all sparsities come from the same two passes over the weights. After each state, and when the loop
    breaks or raises, every parameter and buffer is put back in place, bit for bit: `recalibrate` or fine-tuning inside the
    loop does not leak into the next state. A sweep kept in a variable and not run to its end is put back by its
    `close()`. Needs one copy of the model.

    Args:
        model: as in `one_shot`, as are the options.
        sparsities: in any order; 0 gives the dense network. `(None,)` with an N:M pattern.

    Yields:
        A `Pruned` for each sparsity; its `undo()` works until the loop goes on, its masks stay valid.

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
        indivisible=indivisible,
        on_collapse=on_collapse,
    )
    wanted = [plan.check_sparsity(sparsity) for sparsity in sparsities]
    if not wanted:
        raise ValueError("sparsities is empty: name at least one")
    return _states(model, plan, plan.removals(wanted, plan.weights), len(wanted))


def _states(model: nn.Module, plan: SelectionPlan, sequence: Removals, number: int) -> Generator[Pruned, None, None]:
    saved = _copies([*model.parameters(), *model.buffers()])
    prunable = {id(entry.parameter) for entry in plan.chosen}
    weights = [(tensor, values) for tensor, values in saved if id(tensor) in prunable]
    for position in range(number):
        removal = sequence.at(position)  # the model is dense here
        pruned: Pruned | None = None
        undone: list[tuple[Reparametrised, Saved]] = []
        try:
            pruned = _result(plan, removal, weights)
            undone = [(computed, undo) for _, computed, undo in pruned.record.computed] if pruned.record else []
            yield pruned
        finally:
            for computed, undo in undone:
                computed.restore_(undo)
            put_back(saved)
            for computed, _ in undone:
                computed.refresh()
            if pruned is not None:
                pruned.record = None
