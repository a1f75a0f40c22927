"""GroupClip: private gradients, clipped example by example and group by group."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from trimtab.checks import non_negative, number, positive, whole

CHUNK = 32
"""Examples whose gradients are held at once."""


class GroupClip:
    """Per-sample clipping with a bound for each group of parameters, and noise by the group's bound.

    `g_G = (sum_i min(1, C_G / ||g_iG||) g_iG + sigma C_G z) / b` for each group G, i over the b examples. In the metric in
    which every group counts by its bound, one example changes the sum by at most the root of the number of groups.

    Args:
        model: whose trainable parameters get `.grad`; without BatchNorm, which mixes examples.
        groups: names of parameters in each group; every trainable one in exactly one group. `lora_groups(model)` makes them for
            adapters. Default: one group.
        clips: bound C of every group, or one for all; above 0.
        sigma: noise over the bound; 0 or more.
        seed: of the noise. Default 0. For real privacy the noise must come from a secure source, which this is not.

    Raises:
        ValueError: a parameter is in no group or in two, a group without one, an unknown name, a value out of range, a
            BatchNorm; (at a step) no example.

    Bounds that are learnt from the private norms give something away that no accountant here counts.

    Reference: RLDP, arXiv 2507.22565 (A and B of an adapter clipped together); its controller of bounds and noise is left out:
    state and reward are not published.

    Example:
        >>> net = nn.Linear(2, 1)
        >>> private = GroupClip(net, clips=1.0, sigma=0.0)
        >>> private.backward(nn.functional.mse_loss, torch.ones(4, 2), torch.zeros(4, 1))
        >>> net.weight.grad.shape
        torch.Size([1, 2])
    """

    def __init__(
        self,
        model: nn.Module,
        groups: Mapping[str, Sequence[str]] | None = None,
        clips: float | Mapping[str, float] = 1.0,
        sigma: float = 1.0,
        seed: int = 0,
    ) -> None:
        for name, module in model.named_modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                raise ValueError(f"{name or 'the model'} is a BatchNorm, which mixes examples; use GroupNorm")
        self.model = model
        trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        self.groups = {"all": trained} if groups is None else {key: list(names) for key, names in groups.items()}
        placed = [name for names in self.groups.values() for name in names]
        if unknown := [name for name in placed if name not in trained]:
            raise ValueError(f"{unknown[0]} is no trainable parameter of the model")
        if empty := [key for key, names in self.groups.items() if not names]:
            raise ValueError(f"the group {empty[0]!r} holds no trainable parameter")
        for name in trained:
            if placed.count(name) != 1:
                raise ValueError(f"{name} must be in one group, it is in {placed.count(name)}")
        given = clips if isinstance(clips, Mapping) else dict.fromkeys(self.groups, clips)
        if given.keys() != self.groups.keys():
            raise ValueError(f"clips must be of the groups {sorted(self.groups)}, got {sorted(given)}")
        self.clips = {name: positive(f"clip of {name}", given[name]) for name in self.groups}
        self.sigma = non_negative("sigma", sigma)
        self._draws = torch.Generator().manual_seed(whole("seed", seed))
        self._sums: dict[str, Tensor] = {}
        self._count = 0

    @property
    def sensitivity(self) -> float:
        """How far one example can move the sum of the clipped gradients, `sqrt(sum C_G^2)`."""
        return math.sqrt(sum(clip**2 for clip in self.clips.values()))

    @property
    def noise_multiplier(self) -> float:
        """Noise over sensitivity where every group counts by its bound, `sigma / sqrt(groups)`: what an accountant takes."""
        return self.sigma / math.sqrt(len(self.groups))

    def backward(
        self, loss: Callable[[Tensor, Tensor], Tensor], inputs: Tensor, targets: Tensor, *, more: bool = False
    ) -> None:
        """Put the private gradient into `.grad`, where nothing must stand.

        Args:
            loss: of outputs (1, ...) and targets (1, ...) of one example, a single number.
            inputs, targets: (examples, ...).
            more: other micro-batches of this step follow: clipped gradients are added up, noise comes once with the last.
        """
        if not len(inputs) or len(inputs) != len(targets):
            raise ValueError(
                f"there must be a target for each example, and one at least, got {len(inputs)} and {len(targets)}"
            )
        own = dict(self.model.named_parameters())
        learnt = {name: own[name].detach() for names in self.groups.values() for name in names}
        rest: dict[str, Tensor] = {name: one.detach() for name, one in own.items() if name not in learnt}
        rest |= dict(self.model.named_buffers())

        def value(learnt: dict[str, Tensor], one: Tensor, target: Tensor) -> Tensor:
            return loss(functional_call(self.model, {**learnt, **rest}, (one.unsqueeze(0),)), target.unsqueeze(0))

        gradients = vmap(grad(value), in_dims=(None, 0, 0), randomness="different")
        try:
            for part, wanted in zip(torch.split(inputs, CHUNK), torch.split(targets, CHUNK), strict=True):
                self._add(gradients(learnt, part, wanted))
        except BaseException:  # what was added of this step must not come into the next
            self._sums, self._count = {}, 0
            raise
        self._count += len(inputs)
        if not more:
            self._finish(own)

    @torch.no_grad()
    def _add(self, each: Mapping[str, Tensor]) -> None:
        for group, names in self.groups.items():
            norms = torch.stack([torch.linalg.vector_norm(each[name].flatten(1), dim=1) for name in names]).norm(dim=0)
            factors = (self.clips[group] / norms.clamp(min=1e-30)).clamp(max=1)
            for name in names:
                total = torch.tensordot(factors.to(each[name]), each[name], dims=1)
                self._sums[name] = self._sums[name] + total if name in self._sums else total

    @torch.no_grad()
    def _finish(self, own: Mapping[str, nn.Parameter]) -> None:
        for group, names in self.groups.items():
            for name in names:
                total = self._sums[name]
                if self.sigma:
                    noise = torch.randn(total.shape, generator=self._draws, dtype=torch.float64)
                    total = total + self.sigma * self.clips[group] * noise.to(total)
                own[name].grad = total / self._count
        self._sums, self._count = {}, 0

    def epsilon(self, steps: int, sample_rate: float, delta: float) -> float:
        """epsilon at this delta after so many steps on Poisson samples, by the Renyi accountant of opacus.

        Needs opacus: `pip install trimtab[private]`.

        Raises:
            ImportError: opacus is not there.
            ValueError: a value is out of range, or there is no noise.
        """
        whole("steps", steps, least=1)
        number("sample_rate", sample_rate, above=0, most=1)
        number("delta", delta, above=0, below=1)
        if not self.sigma:
            raise ValueError("without noise (sigma 0) there is no epsilon")
        from opacus.accountants import RDPAccountant

        accountant = RDPAccountant()
        accountant.history = [(self.noise_multiplier, sample_rate, steps)]
        return float(accountant.get_epsilon(delta))

    def state_dict(self) -> dict[str, Any]:
        """Where the noise's draws stand."""
        return {"draws": self._draws.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on drawing from there."""
        self._draws.set_state(state["draws"].cpu())

    def __repr__(self) -> str:
        return f"GroupClip({len(self.groups)} groups, clips={self.clips}, sigma={self.sigma})"


def lora_groups(model: nn.Module) -> dict[str, list[str]]:
    """Groups for `GroupClip`: A and B of each adapter together, every other trainable parameter under "rest".

    Example:
        >>> net = nn.ModuleDict({name: nn.Linear(1, 1, bias=False) for name in ("lora_A", "lora_B", "head")})
        >>> lora_groups(net)
        {'': ['lora_A.weight', 'lora_B.weight'], 'rest': ['head.weight']}
    """
    found: dict[str, list[str]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            parts = name.split(".")
            places = [at for at, part in enumerate(parts) if part.startswith(("lora_A", "lora_B"))]
            found.setdefault(".".join(parts[: places[0]]) if places else "rest", []).append(name)
    return found
