"""A penalty whose balance with weight decay is known: its clock in a run, what it foretells, what it leaves in the record."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from trimtab.checks import below_one, non_negative
from trimtab.parameters import Entry, Rule, Source
from trimtab.penalties.balance import Equilibrium, LayerBalance, pull, time_to_come, variance_at_rest
from trimtab.penalties.base import by_device_and_dtype
from trimtab.penalties.clock import Clock, Ticking, pace
from trimtab.penalties.magnitude import Law, MagnitudePenalty
from trimtab.penalties.magnitude_pass import MagnitudePass, Magnitudes


class BalancedPenalty(MagnitudePenalty):
    """`psi = sum of 1 / (V + eps)`: its growth and weight decay come to rest at one V, see `balance`.

    Attributes:
        clock: T of each layer so far, counted while attached to torch.optim.SGD.
        balances: whether the form is the one of which the balance is known.
    """

    eps: float
    balances: bool

    def __init__(self, strength: float, rule: Rule | None = None) -> None:
        super().__init__(strength, rule)
        self.clock = Clock()
        self._ticking: Ticking | None = None
        self._entries: Sequence[Entry] = ()
        self._stepping = self._ended = False

    def bind(self, optimizer: torch.optim.Optimizer, model: nn.Module | None, parameters: Sequence[Entry]) -> None:
        """Remember whose learning rates and decay count; called by `trimtab.attach`."""
        self._ticking, self._entries = Ticking(optimizer), parameters

    def unbind(self) -> None:
        """Let the optimizer go; the clock stays. Called by `Handle.remove`."""
        self._ticking, self._entries = None, ()

    def before_step(self, parameters: Sequence[Entry]) -> None:
        """Add the gradient to the parameters about to be stepped, and let the clock run; called by `trimtab.attach`."""
        self._entries, self._stepping, self._ended = parameters, True, False
        try:
            super().before_step(parameters)
        finally:
            self._stepping = False

    def acted(self, group: Sequence[Entry], statistics: Magnitudes, law: Law, strength: Tensor | float) -> None:
        """The clock of a step with SGD: `lr c / (1 - momentum)` of each layer, from the sums that the gradient needs."""
        if not self._stepping or self._ticking is None or not self.balances:
            return
        found = [
            (at, entry.name, group_of) for at, entry in enumerate(group) if (group_of := self._ticking.group(entry))
        ]
        if not found:
            return
        times, variances = law.slope * -strength, statistics.variance
        if len(found) < len(group):
            index = torch.tensor([at for at, *_ in found], device=times.device)
            times, variances = times[index], variances[index]
        paces = [pace(group_of) for *_, group_of in found]
        same = len(set(paces)) == 1
        times = times * (paces[0] if same else torch.tensor(paces, dtype=times.dtype, device=times.device))
        taus = [each * group_of["weight_decay"] for each, (*_, group_of) in zip(paces, found, strict=True)]
        self.clock.add(tuple(name for _, name, _ in found), times, variances, taus)

    @torch.no_grad()
    def equilibrium(
        self, model: Source, weight_decay: float, remaining: float = 0.0, momentum: float = 0.0
    ) -> Equilibrium:
        """Where each layer stands between this penalty and weight decay, and how far it will come [ours].

        V settles at `V* = sqrt(2 strength / (n d))`; from then on the two together are an L1 pull of strength d m. The shape of
        a layer moves by `T = sum of lr c / (1 - momentum)` with `c = 2 strength / (n (V + eps)^2)`; once V = V* this equals
        `tau = sum of lr d / (1 - momentum)`. Derived in docs/methods/var.md, for SGD and the decay of torch.optim.SGD.

        Args:
            model: as for `value`.
            weight_decay: d, above 0.
            remaining: sum of the learning rates of the steps to come. Default 0: only what has been.
            momentum: of the optimizer. Default 0.

        Returns:
            The layers and the whole; `str` of it is one line, with a warning where the predicted T is below 0.5.

        Raises:
            ValueError: no decay, without which there is neither V* nor tau; a form other than "variance"; a value out of range.

        Example:
            >>> from torch import nn
            >>> _ = torch.manual_seed(0)
            >>> net = nn.Linear(400, 250)  # 100,000 weights between -0.05 and 0.05: V is 0.05^2 / 12
            >>> from trimtab.penalties import VarianceAmplifier
            >>> balance = VarianceAmplifier(1e-5).equilibrium(net, weight_decay=5e-4, remaining=36, momentum=0.9)
            >>> print(balance)
            predicted T 0.59 (tau 0.18, V0/V* 0.33)
        """
        decay = non_negative("weight_decay", weight_decay)
        if not decay:
            raise ValueError("weight_decay must be above 0, got 0: without decay there is no balance V* and no tau")
        to_come = non_negative("remaining", remaining) / (1 - below_one("momentum", momentum))
        return self._balance([(entry, decay, to_come) for entry in self.chosen(model)])

    def _balance(self, layers: Sequence[tuple[Entry, float, float]]) -> Equilibrium:
        """Of entries with their decay and the sum of lr / (1 - momentum) that is to come."""
        if not self.balances:
            raise ValueError(f'the balance with weight decay is that of form="variance", not that of {self!r}')
        times, starts, found = self.clock.times(), self.clock.starts(), []
        by_name = {entry.name: (decay, to_come) for entry, decay, to_come in layers}
        for group in by_device_and_dtype([entry for entry, *_ in layers]):
            moments = MagnitudePass([entry.parameter for entry in group], self.smoothing).moments()
            for entry, number, mean, variance in zip(group, *(column.tolist() for column in moments), strict=True):
                (decay, to_come), so_far = by_name[entry.name], times.get(entry.name, 0.0)
                c = pull(variance + self.eps, number, self.strength)
                found.append(
                    LayerBalance(
                        entry.name,
                        int(number),
                        starts.get(entry.name, variance),
                        variance,
                        variance_at_rest(number, self.strength, decay),
                        math.sqrt(variance) / mean,
                        c,
                        so_far,
                        so_far + time_to_come(c, decay, to_come),
                        self.clock.taus.get(entry.name, 0.0) + decay * to_come,
                    )
                )
        return Equilibrium(tuple(found))

    def _own_balance(self, remaining: float = 0.0) -> Equilibrium | None:
        """By the groups of the optimizer it is attached to, `remaining` in initial learning rates; None where there is none."""
        if self._ticking is None or not self.balances or not self.strength:
            return None
        layers = []
        for entry in self.chosen(self._entries):
            group = self._ticking.group(entry)
            if group is not None and group["weight_decay"] > 0 and entry.parameter.numel() > 1:
                rate = float(group.get("initial_lr", group["lr"])) * remaining
                layers.append((entry, float(group["weight_decay"]), pace({**group, "lr": rate})))
        return self._balance(layers) if layers else None

    @torch.no_grad()
    def outlook(self, remaining: float) -> str:
        """What to expect of a run whose learning rates to come sum to `remaining` initial ones; empty where it is not known."""
        balance = self._own_balance(remaining)
        return "" if balance is None else str(balance)

    def finish(self, parameters: Sequence[Entry]) -> None:
        """The run has ended: from now on `describe` tells of every layer."""
        self._entries, self._ended = parameters, True

    @torch.no_grad()
    def describe(self) -> dict[str, float]:
        """For a run's record: T, tau, V0 / V*, V / V* and the coefficient of variation; at its end those of every layer too."""
        balance = self._own_balance()
        if balance is None:
            return {}
        told = {
            "T": balance.time,
            "tau": balance.tau,
            "V0/V*": balance.start_ratio,
            "V/V*": balance.ratio,
            "CV": balance.variation,
        }
        for layer in balance.layers if self._ended else ():
            told[f"T {layer.name}"] = layer.time
            told[f"V0/V* {layer.name}"] = layer.start / layer.at_rest
            told[f"V/V* {layer.name}"] = layer.variance / layer.at_rest
            told[f"CV {layer.name}"] = layer.variation
        return told

    def state_dict(self) -> dict[str, Any]:
        """Strength, settings and the clock."""
        return {**super().state_dict(), "clock": self.clock.state_dict(), "ended": self._ended}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what was saved; ValueError when the saved settings are not this object's."""
        super().load_state_dict({name: value for name, value in state.items() if name not in ("clock", "ended")})
        if "clock" in state:  # states of before there was a clock hold none
            self.clock.load_state_dict(state["clock"])
            self._ended = bool(state["ended"])
