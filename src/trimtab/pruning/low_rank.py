"""Trained rank pruning (TRP; Xu et al. 2018, arXiv 1812.02402)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from trimtab.checks import non_negative, number, one_of, whole
from trimtab.collectives import first_ranks_, from_first_rank
from trimtab.parameters import Entry, Rule
from trimtab.pruning.along_training import AlongTraining
from trimtab.pruning.layer_inputs import groups_of
from trimtab.tensors.passes import working_dtype
from trimtab.tensors.zeros import laid_like, refuse_nan

Scheme = Literal["channel", "spatial", "depthwise"]
FirstLayer = Literal["whole", "low_rank"]


def as_matrix(weight: Tensor, scheme: Scheme, output_axis: int = 0) -> Tensor:
    """The matrix whose rank counts, in its working precision: (outputs, rest), or of a convolution for "spatial" and 4
    dimensions (inputs kh, outputs kw), for "depthwise" one for each output, (outputs, inputs, places of the kernel)."""
    wide = weight.detach().to(working_dtype(weight)).movedim(output_axis, 0)
    if scheme == "spatial" and wide.ndim == 4:
        outputs, inputs, high, across = wide.shape
        return wide.permute(1, 2, 0, 3).reshape(inputs * high, outputs * across)
    if scheme == "depthwise" and wide[0, 0].numel() > 1:
        return wide.flatten(2)
    return wide.flatten(1)


def from_matrix(matrix: Tensor, like: Tensor, scheme: Scheme, output_axis: int = 0) -> Tensor:
    """The way back from `as_matrix`, in the shape of `like`."""
    outputs, *rest = like.movedim(output_axis, 0).shape
    if scheme == "spatial" and like.ndim == 4:
        inputs, high, across = rest
        return matrix.reshape(inputs, high, outputs, across).permute(2, 0, 1, 3).movedim(0, output_axis)
    return matrix.reshape(outputs, *rest).movedim(0, output_axis)


def truncated(matrix: Tensor, energy: float) -> tuple[Tensor, Tensor, Tensor]:
    """U, S and V' of the smallest rank (at least 1) whose squared singular values sum to `energy` of all.

    Example:
        >>> [part.shape for part in truncated(torch.diag(torch.tensor([3.0, 1.0, 0.1])), 0.9)]
        [torch.Size([3, 2]), torch.Size([2]), torch.Size([2, 3])]
    """
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    squares = values.double().square().cumsum(0)
    # a hair below the whole, so that energy 1 does not count rounding as rank
    rank = min(len(values), 1 + int((squares < energy * squares[-1] * (1 - 1e-12)).sum()))
    return left[:, :rank], values[:rank], right[:rank]


def of_low_rank(matrix: Tensor, energy: float) -> tuple[Tensor, Tensor, int]:
    """`U_r S_r V_r'`, `U_r V_r'` and r; of several matrices each with a rank of its own, and the largest.

    Example:
        >>> of_low_rank(torch.diag(torch.tensor([3.0, 1.0])), 0.9)
        (tensor([[3., 0.],
                [0., 0.]]), tensor([[1., 0.],
                [0., 0.]]), 1)
    """
    if matrix.ndim == 2:
        left, values, right = truncated(matrix, energy)
        return (left * values) @ right, left @ right, len(values)
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    squares = values.double().square().cumsum(-1)
    below = squares < energy * squares[:, -1:] * (1 - 1e-12)
    kept = torch.cat([torch.ones_like(below[:, :1]), below[:, :-1]], 1)
    left = left * kept.to(left.dtype).unsqueeze(1)
    return (left * values.unsqueeze(1)) @ right, left @ right, int(kept.sum(1).max())


class LowRankProjection(AlongTraining):
    """Train towards low rank: now and then every weight is replaced by its truncated singular value decomposition.

    Formula: after each `every` steps `W <- U_r S_r V_r'`, r the smallest rank with `sum_{i <= r} s_i^2 >= energy sum s_i^2`;
    to the next gradient `nuclear U_r V_r'` is added, the sub-gradient of the nuclear norm at the projected weight. At the end
    the weights are projected once more, and `decompose` makes two layers of each.

    Args:
        energy: of the squared singular values that stays, in (0, 1]. Default 0.9 (paper).
        every: steps between projections. Default 20 (paper).
        scheme: "channel" (default): rank of (outputs, inputs kh kw); "spatial": of (inputs kh, outputs kw), for convolutions in
            two dimensions; "depthwise": of (inputs, kh kw) for each output by itself, for convolutions of kernels above 1. What
            a scheme is not for goes by channel.
        nuclear: strength of the nuclear norm. Default 3e-4 (authors).
        first_layer: "whole" (default, authors) leaves the first layer alone; "low_rank".
        rule: which weights take part. Default: what `one_shot` prunes and the optimizer trains.

    Of several processes all take the projection of the first. A weight that is computed from others (weight_norm) is in
    `left_out`, and so is that of a depthwise or grouped convolution,
    which `decompose` leaves whole.

    Attributes:
        ranks: rank of each weight at the last projection, by name; of "depthwise" the largest of its outputs.

    Raises:
        ValueError: a number out of range, no weight, sharded weights; in training a weight that is NaN or infinite when it is
            time.
        TypeError: a value of the wrong kind, or (in training) a sparse gradient.

    Source: arXiv 1812.02402.

    Example:
        >>> import trimtab
        >>> net = torch.nn.Linear(8, 8)
        >>> optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        >>> lever = LowRankProjection(0.5, every=1, first_layer="low_rank")
        >>> handle = trimtab.attach(optimizer, lever, model=net)
        >>> net(torch.ones(1, 8)).sum().backward()
        >>> optimizer.step()
        >>> int(torch.linalg.matrix_rank(net.weight)) == lever.ranks["weight"] < 8
        True
    """

    def __init__(
        self,
        energy: float = 0.9,
        every: int = 20,
        scheme: Scheme = "channel",
        nuclear: float = 3e-4,
        first_layer: FirstLayer = "whole",
        *,
        rule: Rule | None = None,
    ) -> None:
        super().__init__(rule)
        self.energy = number("energy", energy, above=0, most=1)
        self.every = whole("every", every, 1)
        self.scheme: Scheme = one_of("scheme", scheme, get_args(Scheme))  # type: ignore[assignment]
        self.nuclear = non_negative("nuclear", nuclear)
        self.first_layer: FirstLayer = one_of("first_layer", first_layer, ("whole", "low_rank"))  # type: ignore[assignment]
        self.ranks: dict[str, int] = {}
        self._pull: dict[str, Tensor] = {}
        """U_r V_r' of each weight, for the next gradient."""

    def settings(self) -> dict[str, Any]:
        """Energy, scheme, and how often."""
        return {name: getattr(self, name) for name in ("energy", "every", "scheme", "nuclear", "first_layer")}

    def _reason_against(self, entry: Entry) -> str | None:
        if entry.computed is not None:
            return "computed from other parameters: a projection would not reach them"
        groups = max((groups_of(owner) for owner in entry.owners), default=1)
        if groups > 1:
            return f"a convolution of {groups} groups, which no two layers of low rank stand for"
        return None

    def _find(self, parameters: Sequence[Entry]) -> list[Entry]:
        chosen = super()._find(parameters)
        if self.first_layer == "low_rank":
            return chosen
        return self._without_first(chosen, "whole")

    @torch.no_grad()
    def before_step(self, parameters: Sequence[Entry]) -> None:
        """After a projection add `nuclear U_r V_r'` to the gradients; called by `trimtab.attach`."""
        for entry in self._dense_ones(parameters):
            pull, gradient = self._pull.get(entry.name), entry.parameter.grad
            if pull is not None and gradient is not None:
                gradient.copy_(gradient + self.nuclear * pull)  # rounded once

    def _keep(self, chosen: list[Entry]) -> None:
        self._pull = {}  # it was of the step that was taken

    def _act(self, chosen: list[Entry]) -> None:
        if self.steps % self.every == 0:
            self._project(chosen)

    def _project(self, chosen: list[Entry]) -> None:
        refuse_nan(self, self.steps, chosen, [entry.parameter.detach() for entry in chosen])
        for entry in chosen:
            weight, axis = entry.parameter.detach(), entry.output_axis or 0
            if not bool(weight.isfinite().all()):
                raise ValueError(
                    f"{entry.name} holds infinite values after {self.steps} steps: {self!r} cannot decompose it"
                )
            product, pull, rank = of_low_rank(as_matrix(weight, self.scheme, axis), self.energy)
            product, pull = first_ranks_(torch.stack([product, pull]))  # machines of other kinds round otherwise
            weight.copy_(from_matrix(product, weight, self.scheme, axis))
            self.ranks[entry.name] = from_first_rank(rank, weight.device)
            if self.nuclear:
                self._pull[entry.name] = laid_like(from_matrix(pull, weight, self.scheme, axis), weight)

    @torch.no_grad()
    def finish(self, parameters: Sequence[Entry]) -> None:
        """Project once more, unless the last step ended with it; called by `Handle.finish`."""
        self.needs_recalibration = self.steps % self.every != 0 or not self.ranks
        if self.needs_recalibration:
            self._project(self._chosen(parameters))

    def describe(self) -> dict[str, float]:
        """For a run's record: the mean rank at the last projection."""
        return {"rank": sum(self.ranks.values()) / len(self.ranks)} if self.ranks else {}

    def state_dict(self) -> dict[str, Any]:
        """Steps, ranks, what is due for the next gradient, and the settings."""
        pull = {name: kept.clone() for name, kept in self._pull.items()}
        return {**super().state_dict(), "ranks": dict(self.ranks), "pull": pull}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take a saved state over; ValueError when its settings are not this object's."""
        super().load_state_dict(state)
        self.ranks, self._pull = dict(state["ranks"]), self._laid(state["pull"])
