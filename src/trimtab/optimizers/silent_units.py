"""Units that learn no more: output rows of a weight whose gradient stays zero, as behind a ReLU that no example passes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from trimtab.collectives import is_sharded
from trimtab.parameters import Entry, Judged, Rule
from trimtab.tensors.units import channel_axis, items_of, rows_of


class SilentUnits:
    """Of each weight the share of units whose gradient, once not zero, was zero everywhere at the last looks.

    Weights of products with known outputs count; tables of embeddings, whose rows are silent until their word comes, and
    sharded weights do not.

    Args:
        looks: in a row, from which a unit is silent.

    Example:
        >>> from trimtab.parameters import entries
        >>> net, units = nn.Linear(2, 4, bias=False), SilentUnits(looks=2)
        >>> shares = []
        >>> for rows in ([1.0, 1.0, 1.0, 0.0], [1.0, 0.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0]):
        ...     net.weight.grad = torch.tensor(rows).unsqueeze(1).expand(4, 2).clone()
        ...     shares.append(units.look(entries(net))[1].tolist())
        >>> shares  # the last unit was never heard
        [[0.0], [0.0], [0.5]]
    """

    def __init__(self, looks: int) -> None:
        self.looks = looks
        self._zeros: dict[str, Tensor] = {}
        """Looks in a row at which each unit was zero; -1 for one that never had a gradient."""
        self._said: dict[str, float] = {}
        self._judged: Judged[list[Entry]] = Judged()

    def _picked(self, parameters: Sequence[Entry]) -> list[Entry]:
        rule = Rule(role="weight", frozen=True)
        tables = (nn.Embedding, nn.EmbeddingBag)
        return [
            one
            for one in parameters
            if rule.reason_against(one) is None
            and channel_axis(one) is not None
            and not isinstance(one.owner, tables)
            and not is_sharded(one.parameter)
        ]

    @torch.no_grad()
    def look(self, parameters: Sequence[Entry]) -> tuple[list[str], Tensor]:
        """Names and shares, the latter still on the device."""
        names, shares = [], []
        for entry in self._judged(parameters, self._picked):
            gradient = entry.parameter.grad
            if gradient is None or gradient.layout is not torch.strided or not gradient.numel():
                continue
            parts = [rows_of(*item) for item in items_of(entry, gradient)]
            heard = torch.cat([part.flatten(1).any(1) for part in parts])
            zeros = self._zeros.get(entry.name)
            if zeros is None or zeros.shape != heard.shape:
                zeros = torch.full(heard.shape, -1, dtype=torch.int32, device=heard.device)
            zeros = zeros.to(heard.device)
            zeros = torch.where(heard, 0, torch.where(zeros < 0, zeros, zeros + 1))
            self._zeros[entry.name] = zeros
            names.append(entry.name)
            shares.append((zeros >= self.looks).double().mean())
        return names, torch.stack(shares) if shares else torch.zeros(0, dtype=torch.float64)

    def news(self, names: Sequence[str], shares: Sequence[float], by: float) -> list[tuple[str, float]]:
        """Weights whose share has grown by `by` or more since it was last said; without those that are silent as a whole."""
        grown = [
            (name, share) for name, share in zip(names, shares, strict=True) if share - self._said.get(name, 0.0) >= by
        ]
        self._said |= dict(grown)
        return [(name, share) for name, share in grown if share < 1]

    def state_dict(self) -> dict[str, Any]:
        """What was seen so far."""
        return {"zeros": dict(self._zeros), "said": dict(self._said)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take it over."""
        self._zeros, self._said = dict(state["zeros"]), dict(state["said"])
