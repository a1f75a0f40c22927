"""QuantizedZeroOrder: training by two forward passes, on the scales of weights that are whole numbers."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from trimtab.checks import flag, non_negative, one_of, positive, whole
from trimtab.collectives import is_distributed, is_sharded
from trimtab.levers import CopiedWhole
from trimtab.parameters import Entry
from trimtab.parameters.modes import modes_kept
from trimtab.precision.frozen_codes import FrozenCodes
from trimtab.precision.randomness import Generators
from trimtab.precision.subspace_history import SubspaceHistory

PATIENCE = 10
"""Steps in a row without a finite loss before it is an error."""


class QuantizedZeroOrder(CopiedWhole):
    """QZO (arXiv 2505.13430): no backward pass; scales move along a random direction by the difference of two losses.

        z ~ N(0, 1) like the scales D, from a seed        d = (L(D + eps z) - L(D - eps z)) / (2 eps)
        d <- clip(d, -clip, clip)                         D <- max(D - lr d z, floor)

    `step(closure)`: the closure gives the loss of the batch, without a gradient; it is called twice for each sample, with the
    same random numbers for dropout both times. z is drawn anew from seed, step, sample and tensor and never stored; scales
    are put back from a copy, so that a step of rate 0 leaves every bit. With a model given, it is in evaluation mode during
    both passes [ours] (BatchNorm's statistics would be updated twice). A loss that is no number: no step, counted in `skipped`;
    an error after 10 in a row [ours]. No GradScaler is needed.

    On several processes every rank draws the same z, and the two losses are averaged: exact, for two numbers.

    Args:
        scales: a model with `FrozenCodes` layers, or the scales themselves.
        lr: default 1e-6 (paper: 1e-5 to 1e-7).
        eps: default 1e-3 (paper). Scales are often of that size; see `relative`.
        clip: of d, default 100 (paper).
        floor: least scale, default 1e-7 (paper).
        samples: directions, whose steps are averaged. Default 1.
        seed: default 0; the same on every rank.
        relative: scales move as D (1 + eps z) and D (1 - lr d z) [ours]; default False.
        unquantized: what happens to the model's other trainable parameters: "frozen" (default), or "mezo", moved likewise,
            added and without floor (arXiv 2305.17333). With "mezo" the model needs no `FrozenCodes`: without them it is MeZO.
        subspace: a `SubspaceHistory` that the estimate passes before it is used. Default None.

    Raises:
        ValueError: a number out of range, a model without `FrozenCodes`, no parameters.
        TypeError: sharded parameters.
        FloatingPointError: (at the step) ten losses in a row were no numbers.

    Example:
        >>> net = nn.Sequential(FrozenCodes(nn.Linear(4, 1)))
        >>> optimizer = QuantizedZeroOrder(net, lr=1e-3)
        >>> x = torch.ones(2, 4)
        >>> before = net(x).square().sum().item()
        >>> for _ in range(200):
        ...     _ = optimizer.step(lambda: net(x).square().sum())
        >>> net(x).square().sum().item() < before
        True
    """

    def __init__(
        self,
        scales: nn.Module | Iterable[Tensor],
        lr: float = 1e-6,
        eps: float = 1e-3,
        clip: float = 100.0,
        floor: float = 1e-7,
        samples: int = 1,
        seed: int = 0,
        *,
        relative: bool = False,
        unquantized: Literal["frozen", "mezo"] = "frozen",
        subspace: SubspaceHistory | None = None,
    ) -> None:
        one_of("unquantized", unquantized, ("frozen", "mezo"))
        if subspace is not None and not isinstance(subspace, SubspaceHistory):
            raise TypeError(f"subspace must be a SubspaceHistory or None, got {subspace!r}")
        self.model = scales if isinstance(scales, nn.Module) else None
        if isinstance(scales, nn.Module):
            own: list[tuple[str, Tensor]] = [
                (f"{name}.scales".lstrip("."), m.scales)
                for name, m in scales.named_modules()
                if isinstance(m, FrozenCodes)
            ]
            if not own and unquantized != "mezo":
                raise ValueError(
                    f"{type(scales).__name__} has no FrozenCodes; make them with trimtab.precision.freeze_codes, or move its "
                    "parameters as they are with unquantized='mezo'"
                )
            known = {id(scale) for _, scale in own}
            rest: list[tuple[str, Tensor]] = [
                (n, p) for n, p in scales.named_parameters() if id(p) not in known and p.requires_grad
            ]
        else:
            if unquantized == "mezo":
                raise ValueError("unquantized='mezo' is about the other parameters of a model; give the model")
            own, rest = [(f"scale {place}", scale) for place, scale in enumerate(scales)], []
        if not own and not rest:
            raise ValueError("QuantizedZeroOrder has nothing to move: no scales, no trainable parameters")
        groups: list[dict[str, Any]] = []
        if own:
            groups.append({"params": [scale for _, scale in own], "quantized": True})
        if unquantized == "mezo" and rest:
            groups.append({"params": [parameter for _, parameter in rest], "quantized": False})
        defaults = {
            "lr": non_negative("lr", lr), "eps": positive("eps", eps), "clip": positive("clip", clip),
            "floor": positive("floor", floor),
        }  # fmt: skip
        self.samples, self.seed = whole("samples", samples, 1), whole("seed", seed)
        self.relative, self.unquantized = flag("relative", relative), unquantized
        self.subspace = subspace
        self._names = {tensor: name for name, tensor in [*own, *rest]}
        self._entries: list[Entry] = []
        super().__init__(groups, defaults)
        self.taken, self.skipped, self._in_a_row = 0, 0, 0
        self.derivative = math.nan
        self._random = Generators(seed)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; `quantized=True` (default: scales) or False (moved as with unquantized="mezo")."""
        super().add_param_group({"quantized": True, **param_group})
        group, place = self.param_groups[-1], len(self._entries)
        found = [
            Entry(self._names.get(tensor, f"scale {place + at}"), tensor, None)
            for at, tensor in enumerate(group["params"])
        ]
        try:
            for entry in found:
                if is_sharded(entry.parameter):
                    raise TypeError(f"QuantizedZeroOrder holds whole tensors on every rank, {entry.name} is sharded")
                if not entry.parameter.is_floating_point():
                    raise TypeError(f"QuantizedZeroOrder moves real numbers, {entry.name} is {entry.parameter.dtype}")
                if self.subspace is not None:
                    self.subspace.check(entry.name, entry.parameter)
        except BaseException:
            self.param_groups.pop()
            raise
        self._entries += found

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> float:  # type: ignore[override]
        """One step; the mean of the two losses (of the last sample). `derivative` is then the clipped d of that sample."""
        if closure is None:
            raise TypeError("QuantizedZeroOrder.step needs a closure that gives the loss, twice for each sample")
        saved = [entry.parameter.detach().clone() for entry in self._entries]
        groups = [group for group in self.param_groups for _ in group["params"]]
        slopes, loss = [], math.nan
        try:
            with self._evaluating():
                for sample in range(self.samples):
                    up, down = self._losses(closure, saved, groups, sample)
                    loss = (up + down) / 2
                    eps, clip = (self.param_groups[0][name] for name in ("eps", "clip"))
                    slope = (up - down) / (2 * eps)
                    slopes.append(max(-clip, min(clip, slope)) if math.isfinite(slope) else slope)
        finally:
            for entry, kept in zip(self._entries, saved, strict=True):
                entry.parameter.copy_(kept)
        self.taken += 1
        if not all(map(math.isfinite, slopes)):
            self.skipped, self._in_a_row = self.skipped + 1, self._in_a_row + 1
            if self._in_a_row >= PATIENCE:
                raise FloatingPointError(f"{PATIENCE} losses in a row were no numbers, the last at step {self.taken}")
            return loss
        self._in_a_row, self.derivative = 0, slopes[-1]
        self._move(slopes, groups)
        return loss

    def _losses(
        self, closure: Callable[[], Any], saved: list[Tensor], groups: list[dict[str, Any]], sample: int
    ) -> tuple[float, float]:
        devices = sorted({kept.get_device() for kept in saved if kept.is_cuda})
        found = []
        for sign in (1.0, -1.0):
            for place, (entry, kept, group) in enumerate(zip(self._entries, saved, groups, strict=True)):
                z = self._direction(place, sample, kept)
                size = kept if self.relative and group["quantized"] else 1.0
                entry.parameter.copy_(kept + z.mul_(sign * group["eps"]) * size)
            with torch.random.fork_rng(
                devices, enabled=sign > 0
            ):  # the second pass draws the same, and goes on from it
                found.append(float(closure()))
        if is_distributed():
            both = torch.tensor(found, dtype=torch.float64, device=saved[0].device)
            dist.all_reduce(both)
            found = (both / dist.get_world_size()).tolist()
        return found[0], found[1]

    def _move(self, slopes: list[float], groups: list[dict[str, Any]]) -> None:
        for place, (entry, group) in enumerate(zip(self._entries, groups, strict=True)):
            parameter = entry.parameter
            estimate = torch.zeros_like(parameter)
            for sample, slope in enumerate(slopes):
                estimate.add_(self._direction_at(place, sample, parameter, self.taken - 1), alpha=slope / len(slopes))
            if self.subspace is not None:
                estimate = self.subspace.project(entry.name, estimate)
            step = estimate.mul_(group["lr"])
            parameter.sub_(step * parameter if self.relative and group["quantized"] else step)
            if group["quantized"]:
                parameter.clamp_(min=group["floor"])
            if self.subspace is not None:
                self.subspace.remember(entry.name, parameter)

    def _direction(self, place: int, sample: int, like: Tensor) -> Tensor:
        return self._direction_at(place, sample, like, self.taken)

    def _direction_at(self, place: int, sample: int, like: Tensor, step: int) -> Tensor:
        generator = self._random.begin(like.device, step, sample, place)
        return torch.randn(like.shape, generator=generator, device=like.device, dtype=torch.float32).to(like.dtype)

    def _evaluating(self) -> AbstractContextManager[None]:
        return nullcontext() if self.model is None else modes_kept(self.model, training=False)

    def settings(self) -> dict[str, Any]:
        """What changes the result, beside the settings of the groups; a saved state fits only where these agree."""
        return {"seed": self.seed, "samples": self.samples, "relative": self.relative, "unquantized": self.unquantized}

    def state_dict(self) -> dict[str, Any]:
        """torch's, the settings, and what draws the directions."""
        own = {"settings": self.settings(), "taken": self.taken, "skipped": self.skipped, "in_a_row": self._in_a_row}
        subspace = None if self.subspace is None else self.subspace.state_dict()
        return {**super().state_dict(), "zero_order": own, "subspace": subspace}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a saved state; ValueError when its settings are others, or one of the two has a subspace and one none."""
        own = state_dict["zero_order"]
        if own.get("settings") != self.settings():
            raise ValueError(f"the saved state has the settings {own.get('settings')}, this one {self.settings()}")
        subspace = state_dict.get("subspace")
        if (subspace is None) != (self.subspace is None):
            words = "no subspace, this one has" if subspace is None else "a subspace, this one none"
            raise ValueError(f"the saved state has {words}")
        if self.subspace is not None and subspace is not None:
            copy.copy(self.subspace).load_state_dict(subspace)  # refused before anything is changed
        super().load_state_dict({name: state_dict[name] for name in ("state", "param_groups")})
        self.taken, self.skipped, self._in_a_row = own["taken"], own["skipped"], own["in_a_row"]
        if self.subspace is not None and subspace is not None:
            self.subspace.load_state_dict(subspace)
