"""SubspaceHistory: estimates of a gradient kept to the directions in which the parameters have moved."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from trimtab.checks import number, whole
from trimtab.collectives import is_sharded
from trimtab.parameters import Entry


class SubspaceHistory:
    """The subspace projection of ZOODiP (arXiv 2503.14868): `g <- V V' g`, V the directions that hold most of the movement.

    After every `every` iterates of a tensor, V becomes the fewest leading principal directions of these iterates that hold at
    least `keep` of their variance [ours; the share that is kept was not found]. Until the first are there, g stays; iterates
    that are all the same leave V as it was, and those with inf or NaN do not count [ours]. Noise in the other directions, which
    a zeroth-order estimate has in all, is taken away; so is what of the gradient lies there.

    A lever that projects gradients before the step and remembers weights after it, for any optimizer whose gradients are
    estimates; `QuantizedZeroOrder` takes one as `subspace`.

    Args:
        every: iterates in a history, at least 2; default 128 (the authors' code). It takes `every` times the tensor.
        keep: share of the variance in (0, 1]; default 0.9 [ours].
        standardise: iterates are divided by each coordinate's deviation before the directions are found, and V is used as it is
            (as published). Default False [ours]: plain principal directions.
        dim_limit: largest tensor, default 100,000 [ours]; larger ones are refused.

    Raises:
        ValueError: a number out of range; (when attached, or given to `QuantizedZeroOrder`) a tensor above the limit.
        TypeError: sharded, complex or sparse gradients.

    Example:
        >>> history = SubspaceHistory(every=3)
        >>> for place in (0.0, 1.0, 2.0):
        ...     history.remember("w", torch.tensor([place, 0.0]))
        >>> history.project("w", torch.tensor([3.0, 4.0]))
        tensor([3., 0.])
    """

    def __init__(
        self, every: int = 128, keep: float = 0.9, *, standardise: bool = False, dim_limit: int = 100_000
    ) -> None:
        self.every = whole("every", every, 2)
        self.keep = number("keep", keep, above=0.0, most=1.0)
        self.standardise, self.dim_limit = standardise, whole("dim_limit", dim_limit, 1)
        self._history: dict[str, list[Tensor]] = {}
        self._directions: dict[str, Tensor] = {}

    def bind(self, optimizer: torch.optim.Optimizer, model: nn.Module | None, parameters: Sequence[Entry]) -> None:
        """Refuse what is too large; called by `trimtab.attach`."""
        for entry in parameters:
            if entry.parameter.requires_grad and not is_lazy(entry.parameter):
                self.check(entry.name, entry.parameter)

    def check(self, name: str, tensor: Tensor) -> None:
        """ValueError where a tensor is too large, TypeError where it is complex or sharded."""
        if is_sharded(tensor) or tensor.is_complex():
            raise TypeError(
                f"SubspaceHistory acts on whole, dense, real tensors, {name} is "
                f"{'sharded' if is_sharded(tensor) else tensor.dtype}"
            )
        if tensor.numel() > self.dim_limit:
            raise ValueError(
                f"{name} has {tensor.numel()} entries, and its history would take {self.every} times that; SubspaceHistory "
                f"takes at most dim_limit={self.dim_limit}"
            )

    def project(self, name: str, gradient: Tensor) -> Tensor:
        """The gradient of the tensor of that name, within its directions; as it is where there are none yet."""
        directions = self._directions.get(name)
        if directions is None:
            return gradient
        if directions.device != gradient.device:  # resumed ones may come from elsewhere
            directions = self._directions[name] = directions.to(gradient.device)
        flat = gradient.reshape(-1).to(directions.dtype)
        return (directions @ (directions.T @ flat)).view(gradient.shape).to(gradient.dtype)

    @torch.no_grad()
    def remember(self, name: str, iterate: Tensor) -> None:
        """One more iterate; every so many the directions are found anew."""
        self.check(name, iterate)
        kept = self._history.setdefault(name, [])
        wide = torch.float64 if iterate.dtype == torch.float64 else torch.float32
        kept.append(iterate.detach().reshape(-1).to(wide, copy=True))
        if len(kept) >= self.every:
            together = torch.stack([one.to(iterate.device) for one in kept])
            found = self._principal(together[together.isfinite().all(1)])
            if found.shape[1]:  # what stood still tells nothing, and without directions it would stand for ever
                self._directions[name] = found
            kept.clear()

    def _principal(self, iterates: Tensor) -> Tensor:
        """Orthonormal columns, none where nothing moved."""
        if len(iterates) < 2:
            return iterates.new_zeros((iterates.shape[1], 0))
        centred = iterates - iterates.mean(0)
        if self.standardise:
            deviation = centred.std(0, correction=0)
            centred = centred / torch.where(deviation > 0, deviation, 1.0)
        _, sizes, directions = torch.linalg.svd(centred, full_matrices=False)
        share = sizes.square().cumsum(0) / sizes.square().sum()
        rank = int((share < self.keep * (1 - 1e-6)).sum()) + 1
        kept: Tensor = directions[: rank if bool(sizes[0] > 0) else 0].T.contiguous()
        return kept

    def rank(self, name: str) -> int | None:
        """How many directions are kept; None before the first are found."""
        return self._directions[name].shape[1] if name in self._directions else None

    @torch.no_grad()
    def before_step(self, parameters: Sequence[Entry]) -> None:
        """Project every gradient; called by `trimtab.attach`."""
        for entry in parameters:
            gradient = entry.parameter.grad
            if gradient is None:
                continue
            if is_sharded(gradient) or gradient.layout is not torch.strided or gradient.is_complex():
                raise TypeError(f"SubspaceHistory acts on whole, dense, real gradients, got that of {entry.name}")
            gradient.copy_(self.project(entry.name, gradient))

    def after_step(self, parameters: Sequence[Entry]) -> None:
        """Remember the weights; called by `trimtab.attach`."""
        for entry in parameters:
            if entry.parameter.requires_grad:
                self.remember(entry.name, entry.parameter)

    def settings(self) -> dict[str, Any]:
        """What changes the result."""
        return {"every": self.every, "keep": self.keep, "standardise": self.standardise}

    def state_dict(self) -> dict[str, Any]:
        """Settings, iterates so far, and directions."""
        return {
            "settings": self.settings(),
            "history": {name: torch.stack(kept) for name, kept in self._history.items() if kept},
            "directions": {name: directions.clone() for name, directions in self._directions.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved state; ValueError when its settings are others."""
        if state.get("settings") != self.settings():
            raise ValueError(f"the saved settings {state.get('settings')} are not those of {self!r}")
        self._history = {name: list(kept.clone().unbind()) for name, kept in state["history"].items()}
        self._directions = {name: directions.clone() for name, directions in state["directions"].items()}

    def __repr__(self) -> str:
        return f"SubspaceHistory({', '.join(f'{name}={value!r}' for name, value in self.settings().items())})"
