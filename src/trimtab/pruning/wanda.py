"""Wanda: weights by magnitude times the size of their inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from trimtab.checks import flag, one_of
from trimtab.parameters import Entry
from trimtab.pruning.calibration import Calibration
from trimtab.pruning.data_scores import DataScore
from trimtab.pruning.layer_inputs import (
    as_matrix,
    from_matrix,
    groups_of,
    input_rows,
    reason_against,
)
from trimtab.tensors.passes import working_dtype


class Wanda(DataScore):
    """Score `|W_ij| ||X_j||_2`: a weight's magnitude times the norm of the input that it multiplies, over all calibration data.

    Compared inside each output row (scope "row", unless told otherwise): exactly `floor(sparsity * n + 0.5)` of a row's n
    weights go. With a pattern such as "2:4" inside each group. A linear layer's X are its tokens; a convolution's are its
    unfolded patches [ours]. Other weights (embeddings, recurrent and attention modules that are one call) stay dense, with
    the reason.

    Args:
        loader: calibration batches, as for `recalibrate`; 128 sequences in the paper. Training data.
        batches: use only the first so many; default all.
        propagate: score every layer by the inputs that the layers before it give once pruned (default, as in the published
            code); False takes all scores from one pass through the dense network.
        by: steps of `propagate`. "block" (default, published): weights of one transformer block together, one pass for each
            block; "layer": one pass for each layer. A pass ends where its step ends.
        forward: runs the model on a batch of another form, `forward(model, batch)`.

    Raises:
        ValueError: the loader is empty; when pruning: data that never reach a layer (named), inputs with NaN, `propagate`
            with scope "global", which compares layers that are not pruned yet.

    Reference:
        Sun, Liu, Bair, Kolter: A Simple and Effective Pruning Approach for Large Language Models, arXiv 2306.11695.

    Example:
        >>> from trimtab.pruning import one_shot
        >>> net = nn.Sequential(nn.Linear(2, 1, bias=False))
        >>> _ = net[0].weight.data.copy_(torch.tensor([[1.0, -2.0]]))
        >>> pruned = one_shot(net, 0.5, score=Wanda([torch.tensor([[10.0, 0.1]])]))  # 1 x 10 against 2 x 0.1
        >>> net[0].weight.tolist(), pruned.scope
        ([[1.0, 0.0]], 'row')
    """

    scope: ClassVar[str] = "row"

    def __init__(
        self,
        loader: Iterable[Any],
        *,
        batches: int | None = None,
        propagate: bool = True,
        by: str = "block",
        forward: Callable[[nn.Module, Any], object] | None = None,
    ) -> None:
        self.propagate = flag("propagate", propagate)
        self.by = one_of("by", by, ("layer", "block"))
        self.calibration = Calibration(loader, batches, forward)

    def settings(self) -> dict[str, object]:
        """What changes the scores."""
        return {"propagate": self.propagate, **({"by": self.by} if self.propagate else {})}

    def reason_against(self, entry: Entry) -> str | None:
        """Why no inputs of the entry are seen, or None."""
        return reason_against(entry)

    def of(self, model: nn.Module, chosen: Sequence[Entry], *, early: bool = False) -> list[Tensor]:
        """`|W| ||X||` of each weight's shape."""
        norms = self.norms(model, chosen, early=early)
        return [self.scored(entry, norms[id(entry)]) for entry in chosen]

    def norms(self, model: nn.Module, chosen: Sequence[Entry], *, early: bool = False) -> dict[int, Tensor]:
        """`||X_j||_2` of each weight's columns, (groups, columns) in float64, by the entry's id."""
        squares: dict[int, Tensor] = {}

        def take(entry: Entry, owner: nn.Module, inputs: Tensor) -> None:
            found = input_rows(owner, inputs).square().sum(1, dtype=torch.float64)
            squares[id(entry)] = squares[id(entry)].add_(found) if id(entry) in squares else found

        self.calibration.see(model, chosen, take, early=early)
        for entry in chosen:
            if not bool(squares[id(entry)].sqrt_().isfinite().all()):
                raise ValueError(
                    f"the inputs of {entry.name} hold NaN or infinite values: its scores would mean nothing"
                )
        return squares

    @torch.no_grad()
    def scored(self, entry: Entry, norms: Tensor) -> Tensor:
        """`|W| ||X||` of one weight."""
        matrix = as_matrix(entry, entry.parameter.detach())
        wide = working_dtype(matrix)
        rows = matrix.to(wide).abs().reshape(groups_of(entry.owners[0]), -1, matrix.shape[1])
        return from_matrix(entry, (rows * norms.to(wide).unsqueeze(1)).flatten(0, 1))
