"""Cross-entropy with a weight per token."""

from __future__ import annotations

from torch import Tensor, nn

from trimtab.curricula.spans import IGNORED


def row_losses(logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """Weighted cross-entropy of each row: `L_b = sum_t w_bt CE(logits_{b, t-1}, label_bt)`; float32, shape (rows,).

    Position t is predicted from the logits of t - 1, as causal language models do. With weights from `SpanWeights` this is the
    sum over spans of weight times mean cross-entropy. Only positions that count are turned to float32, so half logits of a
    large vocabulary stay half elsewhere.

    Args:
        logits: (rows, tokens, vocabulary), any floating type.
        labels: (rows, tokens), int64; -100 where nothing is learnt (prompt, image, padding).
        weights: (rows, tokens), 0 or more; what stands at a label of -100 is not used.

    Raises:
        ValueError: shapes differ, or a row has no label with a weight: its loss would be NaN or would teach nothing.

    Example:
        >>> import torch
        >>> logits, labels = torch.zeros(1, 3, 4), torch.tensor([[-100, 2, 3]])
        >>> row_losses(logits, labels, torch.tensor([[0.0, 0.25, 0.75]]))      # log 4 each
        tensor([1.3863])
    """
    if logits.shape[:2] != labels.shape or labels.shape != weights.shape:
        raise ValueError(
            f"logits {tuple(logits.shape)}, labels {tuple(labels.shape)}, weights {tuple(weights.shape)}: "
            "(rows, tokens, vocabulary), (rows, tokens), (rows, tokens) are needed"
        )
    following = labels[:, 1:]
    factors = weights[:, 1:].float() * (following != IGNORED)
    counted = factors > 0
    if not bool(counted.any(dim=1).all()):
        empty = (~counted.any(dim=1)).nonzero().flatten().tolist()
        raise ValueError(f"rows {empty} of the batch have no label with a weight: the labels must cover the answer")
    losses = nn.functional.cross_entropy(logits[:, :-1][counted].float(), following[counted], reduction="none")
    rows = counted.nonzero()[:, 0]
    return losses.new_zeros(labels.shape[0]).index_add(0, rows, losses * factors[counted])


def weighted_cross_entropy(logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """Mean over the rows of `row_losses`; float32, shape ().

    Raises:
        ValueError: as `row_losses`.
    """
    return row_losses(logits, labels, weights).mean()
