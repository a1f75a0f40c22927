"""SparseGPT: prune layer by layer, the weights that stay making up for those that go."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from trimtab.checks import one_of, positive, whole
from trimtab.parameters import Entry, Rule
from trimtab.pruning.calibration import Calibration, stages
from trimtab.pruning.grams import Gram, grams_of
from trimtab.pruning.layer_inputs import as_matrix, from_matrix, groups_of, reason_against
from trimtab.pruning.layer_sparsity import Sparsity
from trimtab.pruning.obs_solver import inverse_factor, solve_
from trimtab.pruning.patterns import Indivisible
from trimtab.pruning.pruned import Pruned
from trimtab.pruning.selection_plan import SelectionPlan
from trimtab.pruning.undo import Saved, Undo, put_back


def _reason(entry: Entry) -> str | None:
    """Why SparseGPT leaves the entry as it is, or None."""
    if (reason := reason_against(entry)) is not None:
        return reason
    if entry.computed is not None:
        return "computed from other parameters: only plain weights are changed"
    return "a grouped convolution: each group has inputs of its own" if groups_of(entry.owners[0]) > 1 else None


def sparse_gpt(
    model: nn.Module,
    loader: Iterable[Any],
    sparsity: Sparsity | None = None,
    *,
    pattern: str = "unstructured",
    damping: float = 0.01,
    block: int = 128,
    quantize: int | Callable[[Tensor], Tensor] | None = None,
    by: str = "block",
    rule: Rule | None = None,
    keep_first: bool = False,
    keep_last: bool = False,
    indivisible: Indivisible = "refuse",
    batches: int | None = None,
    forward: Callable[[nn.Module, Any], object] | None = None,
) -> Pruned:
    """Prune linear layers and convolutions in place by SparseGPT; the weights that stay change too.

    For each layer, with `H = X'X + damping mean(diag X'X) I` of its inputs X and U the upper Cholesky factor of `H^-1`,
    columns are taken from left to right: `e = (w_i - q_i) / U_ii`, q_i the column with its zeros, and every column to the
    right loses `e U_i`. Which weights go is decided by `w^2 / U_ii^2`, the smallest ones of each block of columns, or of each
    group of M just before it is reached. Exactly `floor(sparsity * n + 0.5)` of a layer's n weights go. Layers are taken in
    the order in which the data reach them, with inputs that the pruned ones before give.

    Args:
        model: the network; its embeddings, recurrent layers, `nn.MultiheadAttention`, grouped and transposed convolutions
            stay as they are, with the reason (`Pruned.left_out`).
        loader: calibration batches, as for `recalibrate`; 128 sequences of 2,048 tokens in the paper. Training data.
        sparsity: fraction of each layer's weights that goes, or one for each layer by name as in `one_shot`. None with an
            N:M pattern.
        pattern: "unstructured", or "N:M": N of every M consecutive weights along the input axis stay.
        damping: 0.01, as published. Raised tenfold up to three times, with a warning, where float32 does not reach.
        block: columns decided together; 128, as published.
        quantize: also round the weights that stay, in the same pass, so that later columns make up for the rounding too:
            a number of bits (an even grid per output row, as published), or a function that rounds a tensor of weights, such
            as a partial of `trimtab.precision.quantize`.
        by: "block" (default, as published): the layers of one transformer block share a pass through the data; "layer": a
            pass for each layer, and no more than one Gram matrix at a time. Linear layers of a block that get the same tensor
            (queries, keys and values) share one Gram matrix [ours].
        rule, keep_first, keep_last, indivisible: as in `one_shot`.
        batches: use only the first so many; default all.
        forward: runs the model on a batch of another form, `forward(model, batch)`.

    Returns:
        A `Pruned` as of `one_shot`; `undo()` puts every weight back as it was.

    Raises:
        ValueError: sparsity or another value out of range, NaN weights or inputs, data that never reach a layer (named), an
            empty loader, nothing to prune, a Gram matrix that cannot be inverted. The model is as it was then.

    Reference:
        Frantar, Alistarh: SparseGPT: Massive Language Models Can Be Accurately Pruned in One-Shot, arXiv 2301.00774.

    Example:
        >>> net = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> pruned = sparse_gpt(net, [torch.randn(32, 8)], 0.5)
        >>> pruned.removed, int((net[0].weight == 0).sum())
        ({'0.weight': 16, '2.weight': 4}, 16)
    """
    positive("damping", damping)
    whole("block", block, 1)
    if not callable(quantize) and quantize is not None:
        whole("quantize", quantize, 1, 16)
    one_of("by", by, ("layer", "block"))
    calibration = Calibration(loader, batches, forward)
    plan = SelectionPlan(
        model,
        score="magnitude",
        scope="layer",
        pattern=pattern,
        rule=rule,
        seed=0,
        keep_first=keep_first,
        keep_last=keep_last,
        indivisible=indivisible,
        reason_against=_reason,
    )
    wanted = plan.check_sparsity(sparsity)
    ordered, once = calibration.order(model, plan.chosen)
    share = dict(zip(map(id, plan.chosen), wanted, strict=True)) if isinstance(wanted, list) else {}
    masks: dict[str, Tensor] = {}
    saved: Saved = [(entry.parameter, entry.parameter.detach().clone()) for entry in plan.chosen]
    try:
        for step in stages(model, ordered, by):
            grams = grams_of(calibration, model, step, early=once)
            while grams:
                masks |= _solved(
                    grams.pop(0), plan.groups, share, wanted, damping=damping, block=block, quantize=quantize
                )
    except BaseException:
        put_back(saved)
        raise
    names = [entry.name for entry in plan.chosen]
    return Pruned(
        masks={name: masks[name] for name in names},
        thresholds=dict.fromkeys(names, float("nan")),
        removed={name: masks[name].numel() - int(masks[name].count_nonzero()) for name in names},
        prunable=plan.prunable,
        total=plan.total,
        left_out=plan.left_out,
        score="sparse_gpt",
        scope=plan.scope,
        pattern=plan.pattern,
        record=Undo(plan.model, {id(entry.parameter): entry.name for entry in plan.chosen}, saved, []),
    )


def _solved(
    gram: Gram,
    groups: tuple[int, int] | None,
    share: Mapping[int, float],
    wanted: object,
    *,
    damping: float,
    block: int,
    quantize: int | Callable[[Tensor], Tensor] | None,
) -> dict[str, Tensor]:
    """Change the weights of one Gram matrix, which is used up; by name where they stay."""
    order = _order(gram.entries[0], groups)
    if order is not None:  # a convolution, alone
        gram.matrix = gram.matrix[order][:, order]
    inverse = inverse_factor(gram.matrix, damping, gram.names)
    even = wanted if isinstance(wanted, float) else 0.0
    return {
        entry.name: ~_prune_(
            entry, inverse, order, groups, share.get(id(entry), even), block=block, quantize=quantize
        )
        for entry in gram.entries
    }  # fmt: skip


def _order(entry: Entry, groups: tuple[int, int] | None) -> Tensor | None:
    """The columns of a convolution as groups want them, over its input channels; None where they lie so already."""
    if groups is None or entry.parameter.ndim < 3:
        return None
    channels, places = entry.parameter.shape[1], entry.parameter[0, 0].numel()
    return torch.arange(channels * places, device=entry.parameter.device).view(channels, -1).T.flatten()


@torch.no_grad()
def _prune_(
    entry: Entry,
    inverse: tuple[Tensor, Tensor],
    order: Tensor | None,
    groups: tuple[int, int] | None,
    sparsity: float,
    *,
    block: int,
    quantize: int | Callable[[Tensor], Tensor] | None,
) -> Tensor:
    """Change the weight in place; True where it went.

    A weight of the factor's dtype that lies as a matrix is worked on where it is; others are copied.
    """
    weight = entry.parameter.detach()
    matrix = as_matrix(entry, weight)
    dtype = inverse[0].dtype
    placed = matrix.dtype == dtype and matrix.is_contiguous() and matrix.data_ptr() == weight.data_ptr()
    matrix = matrix if placed else matrix.to(dtype, copy=True)
    if order is not None:
        matrix, placed = matrix[:, order], False
    gone = solve_(matrix, *inverse, sparsity=sparsity, groups=groups, block=block, quantize=quantize)
    if not bool(matrix.sum().isfinite()) and not bool(matrix.isfinite().all()):  # a finite sum proves it without memory
        raise ValueError(f"{entry.name} holds NaN or infinite values after its columns were made up for")
    if order is not None:
        back = order.argsort()
        matrix, gone = matrix[:, back], gone[:, back]
    if not placed:
        weight.copy_(from_matrix(entry, matrix))
    return from_matrix(entry, gone)
