"""Soft threshold reparametrisation (STR; Kusupati et al. 2020, arXiv 2002.03231)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from trimtab.checks import non_negative, number, positive
from trimtab.parameters import Entry, Rule
from trimtab.pruning.along_training import AlongTraining
from trimtab.pruning.masks import Pairs
from trimtab.tensors.passes import working_dtype


class SoftThreshold(AlongTraining):
    """Learn a threshold for each layer: the network computes with weights that are shrunk by it, and zero below it.

    Formula: `W' = sign(W) max(|W| - sigmoid(s), 0)`, one s for each tensor. W gets the gradient of W' where it is not zero; s
    gets `ds = -sigmoid'(s) sum sign(W) dL/dW'` over the same, and decays towards 0, which raises the threshold:
    `v <- momentum v + ds + decay s`, `s <- s - lr v`. The sparsity comes out; it is not asked for.

    Parameters hold W' between steps, so what is evaluated or saved is the sparse network; W lies in the lever's state.

    Args:
        init: s at the start. Default -10 [ours]: a threshold of 4.5e-5, below the weights of any common start. The paper has
            -3200 to -200 on ImageNet, with long runs.
        decay: weight decay of s; the larger, the sparser. Default 5e-3 [ours].
        lr: learning rate of s. Default: that of the optimizer's group, now (paper).
        momentum: of s. Default 0.9.
        rule: which weights take part. Default: what `one_shot` prunes and the optimizer trains.

    A weight that is computed from others (weight_norm) is in `left_out`. SAM and its kin perturb the weights that are not zero.

    Attributes:
        thresholds: sigmoid(s) of each weight by name.
        sparsities: fraction of zeros of each weight by name.

    Raises:
        ValueError: a number out of range, no weight, sharded weights, an optimizer that needs a closure (LBFGS).
        TypeError: a value of the wrong kind, or (in training) a sparse gradient.

    Source: arXiv 2002.03231.

    Example:
        >>> import trimtab
        >>> net = torch.nn.Linear(8, 8)
        >>> optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        >>> lever = SoftThreshold(init=-2.0)
        >>> handle = trimtab.attach(optimizer, lever, model=net)
        >>> round(lever.thresholds["weight"], 3), int((net.weight == 0).sum()) > 0
        (0.119, True)
    """

    behind = True

    def __init__(
        self,
        init: float = -10.0,
        decay: float = 5e-3,
        lr: float | None = None,
        momentum: float = 0.9,
        *,
        rule: Rule | None = None,
    ) -> None:
        super().__init__(rule)
        self.init = number("init", init)
        self.decay = non_negative("decay", decay)
        self.lr = None if lr is None else positive("lr", lr)
        self.momentum = number("momentum", momentum, least=0, below=1)
        self._s: dict[str, Tensor] = {}
        self._velocity: dict[str, Tensor] = {}
        self._slopes: dict[str, Tensor] = {}
        """ds of the step that is being taken."""

    def settings(self) -> dict[str, Any]:
        """Start, decay, rate and momentum of s."""
        return {name: getattr(self, name) for name in ("init", "decay", "lr", "momentum")}

    @property
    def thresholds(self) -> dict[str, float]:
        """sigmoid(s) of each weight."""
        return {name: float(s.sigmoid()) for name, s in self._s.items()}

    @property
    def sparsities(self) -> dict[str, float]:
        """Fraction of zeros of each weight."""
        return {name: int(gone.count_nonzero()) / gone.numel() for name, gone in self._gone.items()}

    def _due_at_start(self) -> bool:
        return True

    def removed(self) -> Pairs:
        """Each weight with a bool tensor that is True where the network computes with zero."""
        return self._pairs()

    def _to_dense(self, chosen: list[Entry]) -> None:
        for entry in chosen:
            if (dense := self._dense.get(entry.name)) is not None:
                entry.parameter.copy_(dense)

    def _on_gradients(self, chosen: list[Entry]) -> None:
        self._slopes = {}
        for entry in chosen:
            gradient, gone = entry.parameter.grad, self._gone.get(entry.name)
            if gradient is None or gone is None:
                continue
            gradient.masked_fill_(gone, 0)
            s = self._s[entry.name]
            share = s.sigmoid()
            pull = (entry.parameter.sign().to(s.dtype) * gradient.to(s.dtype)).sum()
            self._slopes[entry.name] = -pull * share * (1 - share)

    def _rate(self, entry: Entry) -> float:
        for group in () if self.lr is not None or self._optimizer is None else self._optimizer.param_groups:
            if any(parameter is entry.parameter for parameter in group["params"]):
                return float(group["lr"])
        return self.lr or 0.0

    def _keep(self, chosen: list[Entry]) -> None:
        """Move the thresholds by the step that was taken."""
        for entry in chosen:
            if (slope := self._slopes.get(entry.name)) is not None:
                s, velocity = self._s[entry.name], self._velocity[entry.name]
                velocity.mul_(self.momentum).add_(slope + self.decay * s)
                s.sub_(self._rate(entry) * velocity)
        self._slopes = {}

    def _act(self, chosen: list[Entry]) -> None:
        for entry in chosen:
            weight = entry.parameter.detach()
            if entry.name not in self._s:
                dtype = working_dtype(weight)
                self._s[entry.name] = torch.full((), self.init, dtype=dtype, device=weight.device)
                self._velocity[entry.name] = torch.zeros((), dtype=dtype, device=weight.device)
                self._dense[entry.name] = torch.empty_like(weight)
                self._gone[entry.name] = torch.empty_like(weight, dtype=torch.bool)
            wide = weight.to(working_dtype(weight))
            self._dense[entry.name].copy_(weight)
            weight.copy_(wide.sign() * (wide.abs() - self._s[entry.name].sigmoid()).clamp_(min=0))
            torch.eq(weight, 0, out=self._gone[entry.name])

    def describe(self) -> dict[str, float]:
        """For a run's record: the sparsity now, and the largest threshold."""
        return {"sparsity": self.sparsity_now, "threshold": max(self.thresholds.values(), default=0.0)}

    def state_dict(self) -> dict[str, Any]:
        """Steps, trained values, thresholds and what moves them, and the settings."""
        s, velocity = ({name: kept.clone() for name, kept in of.items()} for of in (self._s, self._velocity))
        return {**super().state_dict(), "s": s, "velocity": velocity}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take a saved state over; ValueError when its settings are not this object's."""
        super().load_state_dict(state)
        places = self._places()
        for own, name in ((self._s, "s"), (self._velocity, "velocity")):
            own.clear()
            for label, kept in state[name].items():
                where = places[label].device if label in places else kept.device
                own[label] = kept.to(where, copy=True)

    @torch.no_grad()
    def finish(self, parameters: Sequence[Entry]) -> None:
        """Nothing: parameters hold the sparse weights already."""
