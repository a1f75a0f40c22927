"""Softmax collapse: examples whose loss is exactly zero in the number format, and which teach nothing any more."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from trimtab.collectives import sum_over_ranks
from trimtab.observe.meters.meter import Meter
from trimtab.parameters import Entry

IGNORED = -100
"""Targets that do not count, as in torch's cross-entropy."""


def _counts(logits: Tensor, targets: Tensor, dtype: torch.dtype | None) -> Tensor:
    """Collapsed examples and examples, float64."""
    if logits.ndim < 2 or targets.shape != logits.shape[:1] + logits.shape[2:]:
        raise ValueError(
            f"logits must be of shape (examples, classes, ...) and targets of the same without classes, got "
            f"{tuple(logits.shape)} and {tuple(targets.shape)}"
        )
    kept = targets != IGNORED
    found = torch.log_softmax(logits.detach(), 1, dtype=dtype)
    own = found.gather(1, targets.clamp(min=0).unsqueeze(1)).squeeze(1)
    return torch.stack([((own == 0) & kept).sum(), kept.sum()]).double()


def softmax_collapse(logits: Tensor, targets: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Share of examples with `-log softmax(z)_y = 0` exactly: the other classes are absorbed, the gradient is zero.

    In float32 from a gap of about 17 between the logits on, in bfloat16 of about 6.

    Args:
        logits: shape (examples, classes, ...).
        targets: classes, shape (examples, ...); those of -100 do not count.
        dtype: of the softmax. Default that of the logits.

    Returns:
        Shape (), float64; NaN for no example.

    Raises:
        ValueError: the shapes do not fit.

    Reference: Prieto et al., arXiv 2501.04697.

    Example:
        >>> softmax_collapse(torch.tensor([[200.0, 0.0], [5.0, 0.0]]), torch.tensor([0, 0]))
        tensor(0.5000, dtype=torch.float64)
    """
    collapsed, number = _counts(logits, targets, dtype).unbind()
    return collapsed / number


class SoftmaxCollapse(Meter):
    """The share of collapsed examples of each step, over its micro-batches and ranks.

    Signals: `softmax_collapse`. Tell it of each batch: `meter.see_outputs(logits, targets)`; `trimtab train` does.

    Args:
        every: as of `Meter`.

    Reference: Prieto et al., arXiv 2501.04697.

    Example:
        >>> meter = SoftmaxCollapse()
        >>> meter.see_outputs(torch.tensor([[200.0, 0.0], [5.0, 0.0]]), torch.tensor([0, 0]))
        >>> meter.before_step([])
        >>> meter.signals()
        {'softmax_collapse': tensor(0.5000, dtype=torch.float64)}
    """

    def __init__(self, every: int | Callable[[int], bool] = 1) -> None:
        super().__init__(every)
        self._seen: Tensor | None = None

    def see_outputs(self, logits: Tensor, targets: Tensor) -> None:
        """The outputs of a batch of the step to come."""
        if self.due:
            found = _counts(logits, targets, None)
            self._seen = found if self._seen is None else self._seen + found

    def measure(self, parameters: Sequence[Entry]) -> dict[str, Tensor]:
        """The share."""
        seen, self._seen = self._seen, None
        if seen is None:
            return {}
        collapsed, number = sum_over_ranks(seen).unbind()
        return {"softmax_collapse": collapsed / number}
