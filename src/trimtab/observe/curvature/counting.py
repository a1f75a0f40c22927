"""What a mean loss divides by: the weights with which batches of unequal size add up to the mean over all of them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from trimtab.checks import one_of

OVER_CLASSES = (nn.CrossEntropyLoss, nn.NLLLoss)
OVER_ELEMENTS = (
    nn.MSELoss, nn.L1Loss, nn.SmoothL1Loss, nn.HuberLoss, nn.BCELoss, nn.BCEWithLogitsLoss, nn.KLDivLoss,
    nn.PoissonNLLLoss, nn.SoftMarginLoss, nn.HingeEmbeddingLoss,
)  # fmt: skip
OVER_SAMPLES = (nn.MultiMarginLoss, nn.MultiLabelMarginLoss, nn.MultiLabelSoftMarginLoss)
FUNCTIONS: dict[Callable[..., Tensor], tuple[type[nn.Module], ...]] = {
    F.cross_entropy: OVER_CLASSES,
    F.nll_loss: OVER_CLASSES,
    **dict.fromkeys((F.mse_loss, F.l1_loss, F.smooth_l1_loss, F.huber_loss), OVER_ELEMENTS),
    **dict.fromkeys((F.binary_cross_entropy, F.binary_cross_entropy_with_logits, F.kl_div), OVER_ELEMENTS),
    **dict.fromkeys((F.poisson_nll_loss, F.soft_margin_loss, F.hinge_embedding_loss), OVER_ELEMENTS),
    **dict.fromkeys((F.multi_margin_loss, F.multilabel_margin_loss, F.multilabel_soft_margin_loss), OVER_SAMPLES),
}
NORMALIZED_BY_WEIGHT = (F.mse_loss, F.l1_loss, F.smooth_l1_loss, F.huber_loss)  # their weight= also divides


@dataclass(frozen=True)
class Counted:
    """One batch.

    Attributes:
        divisor: what a mean loss divides by.
        samples: what is reported as the batch's samples: for class indices the divisor, else the number of samples.
        known: the divisor follows from the loss; else it is the number of samples, right for what divides by it or by
            elements of which each sample has as many.
        shapes: of the targets (of the inputs where these hold no tensor), without the first dimension.
        ignored: some targets are negative integers, as an ignore index is.
    """

    divisor: float
    samples: float
    known: bool
    shapes: tuple[tuple[int, ...], ...] = ()
    ignored: bool = False


def settings_of(loss: Any) -> tuple[tuple[type[nn.Module], ...], dict[str, Any]]:
    """The kind of the loss, () when it is unknown, and its settings; sees through `functools.partial`."""
    if isinstance(loss, functools.partial):
        kind, settings = settings_of(loss.func)
        settings = {**settings, **loss.keywords}
        by_weight = loss.func in NORMALIZED_BY_WEIGHT and settings.get("weight") is not None
        return (() if loss.args or by_weight else kind), settings
    if isinstance(loss, nn.Module):
        for kind in (OVER_CLASSES, OVER_ELEMENTS, OVER_SAMPLES):
            for known in kind:
                if isinstance(loss, known) and type(loss).forward is known.forward:
                    return kind, vars(loss) | loss._buffers
        return (), vars(loss)
    reduction = getattr(loss, "reduction", None)
    kind = next((kind for function, kind in FUNCTIONS.items() if function is loss), ())
    return kind, {} if reduction is None else {"reduction": reduction}


def reduction_of(loss: Any, given: str | None) -> str:
    """ "mean" or "sum": as given, else the loss's own `reduction`, else "mean"."""
    reduction = given if given is not None else settings_of(loss)[1].get("reduction", "mean")
    if given is None and reduction == "batchmean":
        return "mean"
    return one_of("reduction", str(reduction), ("mean", "sum"))


def counted(loss: Any, inputs: Any, target: Any) -> Counted:
    """What the mean loss divides by on this batch, and what is known of that.

    Cross-entropy with class indices: the weights of the targets that are not ignored; with probabilities: the targets'
    entries over the classes; element-wise losses: the targets' entries; else the samples.

    Raises:
        ValueError: neither targets nor inputs tell how many samples there are.
    """
    kind, settings = settings_of(loss)
    if isinstance(target, Tensor):
        if kind is OVER_CLASSES and not target.is_floating_point():
            kept = target[target != settings.get("ignore_index", -100)]
            weight = settings.get("weight")
            total = kept.numel() if weight is None else weight.to(kept.device)[kept].double().sum()
            return Counted(float(total), float(total), known=True)
        if kind is OVER_CLASSES and target.ndim:
            return Counted(
                target.numel() / target.shape[min(1, target.ndim - 1)], _samples(inputs, target) or 1.0, known=True
            )
        if kind is OVER_ELEMENTS and settings.get("reduction") != "batchmean":
            return Counted(float(target.numel()), _samples(inputs, target) or 1.0, known=True)
    samples = _samples(inputs, target)
    if samples is None:
        raise ValueError("cannot tell how many samples a batch has: pass count=, a function of the targets")
    told = list(_tensors(target)) or list(_tensors(inputs))
    ignored = any(not (t.is_floating_point() or t.is_complex()) and bool((t < 0).any()) for t in _tensors(target))
    return Counted(samples, samples, bool(kind), tuple(tuple(t.shape[1:]) for t in told), ignored)


def _samples(inputs: Any, target: Any) -> float | None:
    for item in (*_tensors(target), *_tensors(inputs)):
        if item.ndim:
            return float(item.shape[0])
    return None


def _tensors(item: Any) -> Iterable[Tensor]:
    if isinstance(item, Tensor):
        yield item
    elif isinstance(item, Mapping | tuple | list):
        for value in item.values() if isinstance(item, Mapping) else item:
            yield from _tensors(value)
