"""SAFE: sparse and flat minima by an augmented Lagrangian (Lee et al. 2025, arXiv 2506.06866)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from trimtab.checks import number, one_of, whole
from trimtab.parameters import Entry, Judged, Rule, Source, entries
from trimtab.parameters.zeros import TRAINED_WEIGHTS, set_zeros_, weight_now
from trimtab.penalties.base import Penalty
from trimtab.sparse import refuse_sparse
from trimtab.tensors.collapse import ON_COLLAPSE, OnCollapse, guarded
from trimtab.tensors.passes import refuse_sharded, working_dtype
from trimtab.tensors.selection import removed_count
from trimtab.tensors.zeros import laid_like, smallest_or_refusal, weights_or_refusal

Ramp = Literal["cosine", "linear", "constant"]


class SAFE(Penalty):
    """Pull the weights to a sparse copy of themselves, ever more strongly, and take that copy in the end.

    Formula: `P(x)` keeps the largest of all weights together and sets exactly `floor(sparsity n + 0.5)` of the n to zero, ties
    by position. At the start `z = P(w)`, `u = 0`. To each gradient `lambda_t (w - z + u)` is added, with
    `lambda_t = strength (1 - cos(pi t / T)) / 2` after t of T steps; after every `every` steps `z <- P(w + u)`,
    `u <- u + w - z`. At the end `w <- P(w)`, and a run re-estimates BatchNorm statistics. The term of the objective is
    `lambda_t / 2 (||w - z + u||^2 - ||u||^2)`, 0 where w = z.

    With `sam` (`method: sam+safe`, rho 0.1) it is SAFE as published: the task's gradient is that at `w + rho g / ||g||`, g the
    task's gradient at w; the penalty acts behind it, at w, on neither g nor its norm, as in the authors' code. Without `sam` it
    is the alternating direction method of multipliers with one gradient (the paper's baseline ADMM).

    Args:
        strength: lambda at the end of the ramp. Default 1e-3 (authors).
        sparsity: of all weights in the end, in (0, 1). Default 0.9 (the paper has 0.7 to 0.995).
        every: steps between projections. Default 32 (authors).
        ramp: "cosine" (paper), "linear" or "constant".
        on_collapse: where the projection would take all weights of a layer while others keep some: "warn" (default) names it,
            "keep" takes others instead, so that 0.1 % of every tensor stays and at least one weight, the count exact all the
            same; "raise" ends the training with an error that names it.
        total_steps: T, optimizer steps of the whole run; `trimtab train` gives it.
        rule: which weights take part. Default: what `one_shot` prunes and the optimizer trains.

    A step that `GradScaler` skips does not count. A weight under weight_norm takes part as the product uses it; under
    spectral_norm and orthogonal it is in `left_out`. One tensor and one mask are kept for each weight: where P keeps an entry,
    z is w + u and u is 0, elsewhere z is 0 and u is w + u, so both fit into one; float32 for halves.

    Raises:
        ValueError: a number out of range, nothing to prune, sharded weights; in training a weight that is NaN when it is time
            for a projection.
        TypeError: a value of the wrong kind, or a sparse gradient.

    Source: arXiv 2506.06866.

    Example:
        >>> import trimtab
        >>> net = torch.nn.Linear(10, 10)
        >>> optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        >>> handle = trimtab.attach(optimizer, SAFE(sparsity=0.8, total_steps=4), model=net)
        >>> for _ in range(4):
        ...     net(torch.ones(1, 10)).sum().backward()
        ...     optimizer.step()
        >>> handle.finish(), int((net.weight == 0).sum())
        (True, 80)
    """

    one_optimizer = "it compares all weights of one optimizer; make one for each optimizer"
    needs_recalibration = True
    default_rule = TRAINED_WEIGHTS

    def __init__(
        self,
        strength: float = 1e-3,
        sparsity: float = 0.9,
        every: int = 32,
        ramp: Ramp = "cosine",
        *,
        on_collapse: OnCollapse = "warn",
        total_steps: int,
        rule: Rule | None = None,
    ) -> None:
        super().__init__(strength, TRAINED_WEIGHTS if rule is None else rule)
        self.sparsity = number("sparsity", sparsity, above=0, below=1)
        self.every = whole("every", every, 1)
        self.ramp: Ramp = one_of("ramp", ramp, ("cosine", "linear", "constant"))  # type: ignore[assignment]
        self.on_collapse: OnCollapse = one_of("on_collapse", on_collapse, ON_COLLAPSE)  # type: ignore[assignment]
        self.total_steps = whole("total_steps", total_steps, 1)
        self.steps = 0
        self._judged: Judged[list[Entry]] = Judged()
        self._anchors: dict[str, Tensor] = {}
        """z - u of each weight."""
        self._gone: dict[str, Tensor] = {}
        """Where z is 0."""
        self._loaded: set[str] = set()

    def settings(self) -> dict[str, Any]:
        """Sparsity, projections and ramp."""
        own = {name: getattr(self, name) for name in ("sparsity", "every", "ramp", "total_steps")}
        return own if self.on_collapse == "warn" else {**own, "on_collapse": self.on_collapse}

    @property
    def strength_now(self) -> float:
        """lambda_t.

        Example:
            >>> safe = SAFE(strength=1.0, total_steps=4)
            >>> safe.steps = 2
            >>> round(safe.strength_now, 6)
            0.5
        """
        done = min(self.steps / self.total_steps, 1.0)
        return (
            self.strength * {"cosine": (1 - math.cos(math.pi * done)) / 2, "linear": done, "constant": 1.0}[self.ramp]
        )

    # which weights, and their projection

    def chosen(self, params: Source) -> list[Entry]:
        """The weights that take part; ValueError when there is none, or one is sharded."""
        listed = isinstance(params, list) and all(isinstance(entry, Entry) for entry in params)
        found = self._judged(params, self._find) if listed else self._find(params)  # type: ignore[arg-type]
        with torch.enable_grad():  # computed weights change with their parts
            return [e if e.computed is None else replace(e, parameter=e.computed.weight()) for e in found]

    def _find(self, parameters: Source) -> list[Entry]:
        found, self.left_out = weights_or_refusal(self, parameters, self.rule)
        refuse_sharded(f"{type(self).__name__} selects over", found)
        return found

    def _smallest(self, named: Sequence[Entry], values: list[Tensor]) -> list[Tensor]:
        """Where P sets to zero."""
        count = removed_count(self.sparsity, sum(value.numel() for value in values))
        found = smallest_or_refusal(self, self.steps, named, values, count)
        return guarded(named, values, found, count, self.on_collapse, absolute=True)

    def _project(self, chosen: list[Entry]) -> None:
        """`z <- P(w + u)`, `u <- u + w - z`; of weights seen for the first time u is 0."""
        values, new = [], []
        for entry in chosen:
            weight = weight_now(entry).to(working_dtype(entry.parameter))
            new.append(entry.name not in self._anchors)
            values.append(weight if new[-1] else weight - self._anchor(entry).masked_fill(~self._gone[entry.name], 0))
        masks = self._smallest(chosen, values)
        for entry, value, mask, first in zip(chosen, values, masks, new, strict=True):
            gone = torch.empty_like(value, dtype=torch.bool).copy_(mask)  # in the weight's own memory order
            self._gone[entry.name] = gone
            self._anchors[entry.name] = value.masked_fill(gone, 0) if first else torch.where(gone, -value, value)

    def _started(self, params: Source) -> list[Entry]:
        chosen = self.chosen(params)
        if any(entry.name not in self._anchors for entry in chosen):
            self._project(chosen)
        return chosen

    def _anchor(self, entry: Entry) -> Tensor:
        """z - u; a loaded one is brought to the weight's device and into its memory order."""
        anchor, weight = self._anchors[entry.name], entry.parameter
        if anchor.shape != weight.shape:
            raise ValueError(
                f"{entry.name} has the shape {tuple(weight.shape)}, what SAFE remembers of it {tuple(anchor.shape)}: it was "
                "replaced, or the saved state is of another network"
            )
        if entry.name in self._loaded or anchor.device != weight.device:
            self._loaded.discard(entry.name)
            for kept in (self._anchors, self._gone):
                kept[entry.name] = laid_like(kept[entry.name], weight)
        return self._anchors[entry.name]

    # the penalty

    def psi(self, weight: Tensor) -> Tensor:
        """Half the squared distance of one tensor to its own projection, as if it were the whole network; shape ()."""
        (gone,) = self._smallest([Entry("weight", weight, None)], [weight.detach()])
        return weight.masked_fill(~gone, 0).square().sum() / 2

    def _distance(self, entry: Entry) -> Tensor:
        weight, anchor = entry.parameter, self._anchor(entry)
        dual = anchor.masked_fill(~self._gone[entry.name], 0).square().sum()
        return ((weight.to(working_dtype(weight)) - anchor).square().sum() - dual) / 2

    def value(self, params: Source) -> Tensor:
        """`lambda_t / 2 (||w - z + u||^2 - ||u||^2)`, differentiable; shape ()."""
        with torch.no_grad():
            chosen = self._started(params)
        total = self._distance(chosen[0])
        for entry in chosen[1:]:
            total = total + self._distance(entry).to(total.device)
        return self.strength_now * total

    @torch.no_grad()
    def per_layer(self, params: Source) -> dict[str, float]:
        """`(||w - z + u||^2 - ||u||^2) / 2` of every weight by name."""
        chosen = self._started(params)
        found = torch.stack([self._distance(entry).double().cpu() for entry in chosen]).tolist()
        return dict(zip([entry.name for entry in chosen], found, strict=True))

    @torch.no_grad()
    def add_gradient_(self, params: Source) -> None:
        """Add `lambda_t (w - z + u)` to the gradients, in place.

        Raises:
            ValueError, TypeError: as the class.
        """
        listed = params if isinstance(params, list) else entries(params)
        strength = self.strength_now
        for entry in self._started(listed):
            for part in (entry.parameter,) if entry.computed is None else entry.computed.parts.values():
                if part.grad is not None:
                    refuse_sparse(self, entry.name, part.grad)
        if strength == 0:
            return
        with self.with_gradients(listed) as groups:
            for group in groups:
                weights = [entry.parameter.detach() for entry in group]
                anchors = [self._anchor(entry) for entry in group]
                gradients = [entry.parameter.grad for entry in group if entry.parameter.grad is not None]
                if all(gradient.dtype == anchor.dtype for gradient, anchor in zip(gradients, anchors, strict=True)):
                    torch._foreach_add_(gradients, weights, alpha=strength)
                    torch._foreach_add_(gradients, anchors, alpha=-strength)
                    continue
                for gradient, weight, anchor in zip(gradients, weights, anchors, strict=True):
                    gradient.copy_(gradient + strength * (weight.to(anchor.dtype) - anchor))  # rounded once

    # what a handle calls

    def bind(self, optimizer: torch.optim.Optimizer, model: nn.Module | None, parameters: Sequence[Entry]) -> None:
        """Refuse sharded weights; called by `trimtab.attach`."""
        refuse_sharded(f"{type(self).__name__} selects over", parameters)

    @torch.no_grad()
    def after_step(self, parameters: Sequence[Entry]) -> None:
        """Count the step, and project where it is time; called by `trimtab.attach`."""
        chosen = self._started(parameters) if (self.steps + 1) % self.every == 0 else []
        self.steps += 1
        if chosen:
            self._project(chosen)

    @torch.no_grad()
    def finish(self, parameters: Sequence[Entry]) -> None:
        """`w <- P(w)`; called by `Handle.finish`."""
        chosen = self.chosen(parameters)
        masks = self._smallest(chosen, [weight_now(entry) for entry in chosen])
        for entry, gone in zip(chosen, masks, strict=True):
            set_zeros_(entry, gone)

    def describe(self) -> dict[str, float]:
        """For a run's record: lambda_t, and the sparsity it goes to."""
        return {"strength": self.strength_now, "sparsity": self.sparsity}

    def state_dict(self) -> dict[str, Any]:
        """Strength and settings, steps taken, and z and u of every weight."""
        anchors, gone = ({name: kept.clone() for name, kept in of.items()} for of in (self._anchors, self._gone))
        return {**super().state_dict(), "steps": self.steps, "anchors": anchors, "gone": gone}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take a saved state over; ValueError when its settings are not this object's."""
        own = ("steps", "anchors", "gone")
        super().load_state_dict({name: value for name, value in state.items() if name not in own})
        self.steps = int(state["steps"])
        self._anchors, self._gone = ({name: kept.clone() for name, kept in state[of].items()} for of in own[1:])
        self._loaded = set(self._anchors)
