"""Mask tuning (R-AMT; Zheng et al. 2023, arXiv 2307.15049): a network learns a task by leaving weights out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from trimtab.checks import non_negative, number, whole
from trimtab.collectives import is_sharded
from trimtab.parameters import Entry, Rule, select, unwrapped
from trimtab.pruning.gradient_scores import Loss, Snip
from trimtab.pruning.mask_file import load_masks, save_masks
from trimtab.pruning.masks import check_mask
from trimtab.tensors.passes import working_dtype

ATTENTION = ("*attn*", "*attention*")


class _Masked(torch.autograd.Function):
    """`weight * (scores > threshold)`; the gradient by the mask goes to the scores as it is."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, scores: Tensor, threshold: float) -> Tensor:
        ctx.save_for_backward(weight)
        return torch.where(scores > threshold, weight, 0)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor, None]:
        (weight,) = ctx.saved_tensors
        wide = working_dtype(weight)
        return None, gradients[0].to(wide) * weight.to(wide), None


class MaskTuning(nn.Module):
    """Learn which weights of a frozen network to leave out for a task; what is learned takes one bit for each weight.

    Formula: the network computes with `W * (S > threshold)`, W frozen, S real scores, one for each weight. The gradient passes
    the step straight: `dS = dL/dW_masked * W`. Loss: `L + strength sum |S|` (`penalty()`).

    The network keeps its modules, parameters and names; while a layer runs its weight is the masked one. Train
    `tuning.parameters()` (Adam, learning rate 8e-5 in the paper), beside a new head where there is one.

    Args:
        model: its chosen weights are frozen (`requires_grad=False`) until `finalize` or `remove`.
        init: of all scores. Default 1e-2 (paper).
        threshold: below or at it a weight is left out. Default 5e-3 (paper). No weight goes before its score has moved by the
            difference: about 60 steps of Adam at 8e-5.
        include: shell patterns of the weights. Default "*attn*", "*attention*" (paper: attention).
        exclude: shell patterns.
        strength: of the L1 penalty on the scores. Default 1e-4 (paper).

    Attributes:
        masks: per weight a bool tensor, True where it stays.
        left_out: weights of products without a mask, each with the reason.

    Raises:
        ValueError: a number out of range, init at or below the threshold (everything would be gone), no weight matches, or one
            that is tied, sharded, or computed from others (named).

    Source: arXiv 2307.15049.

    Example:
        >>> net = nn.Linear(3, 1, bias=False)
        >>> tuning = MaskTuning(net, include=("*",))
        >>> net(torch.ones(1, 3)).sum().backward()
        >>> bool((tuning.scores["weight"].grad == net.weight).all()), net.weight.grad
        (True, None)
    """

    def __init__(
        self,
        model: nn.Module,
        init: float = 1e-2,
        threshold: float = 5e-3,
        include: Sequence[str] = ATTENTION,
        exclude: Sequence[str] = (),
        strength: float = 1e-4,
    ) -> None:
        super().__init__()
        self.threshold, self.init = number("threshold", threshold), number("init", init)
        if self.init <= self.threshold:
            raise ValueError(f"init must be above the threshold {threshold:g}, got {init:g}: all weights would be gone")
        self.strength = non_negative("strength", strength)
        self._network = (unwrapped(model),)  # in a tuple: no submodule
        chosen, self.left_out = _chosen(self._network[0], include, exclude)
        self._chosen = {entry.name: entry for entry in chosen}
        self._scores = nn.ParameterDict(
            {
                _key(name): torch.full_like(entry.parameter, self.init, dtype=working_dtype(entry.parameter))
                for name, entry in self._chosen.items()
            }
        )
        self._trained = {name: entry.parameter.requires_grad for name, entry in self._chosen.items()}
        self._hooks: list[Any] = []
        for name, entry in self._chosen.items():
            entry.parameter.requires_grad = False
            owner, label = entry.owner, name.rpartition(".")[2]
            assert owner is not None
            caller = self._caller(owner)
            self._hooks.append(caller.register_forward_pre_hook(self._masking(name, owner, label)))
            self._hooks.append(caller.register_forward_hook(_unmasking(owner, label), always_call=True))

    def _caller(self, owner: nn.Module) -> nn.Module:
        """The module whose call multiplies by a weight of `owner`."""
        for module in self._network[0].modules():
            if isinstance(module, nn.MultiheadAttention) and module.out_proj is owner:
                return module  # which never calls it
        return owner

    def _masking(self, name: str, owner: nn.Module, label: str) -> Callable[..., None]:
        def mask(*_: Any) -> None:  # found before the parameter of that name, which stays where it is
            owner.__dict__[label] = _Masked.apply(owner._parameters[label], self.scores[name], self.threshold)  # type: ignore[no-untyped-call]

        return mask

    @property
    def scores(self) -> dict[str, Tensor]:
        """S of each weight."""
        return {name: self._scores[_key(name)] for name in self._chosen}

    @property
    def masks(self) -> dict[str, Tensor]:
        """Per weight a bool tensor, True where it stays."""
        return {name: scores.detach() > self.threshold for name, scores in self.scores.items()}

    @property
    def sparsity(self) -> float:
        """Fraction of the chosen weights that is left out."""
        masks = self.masks.values()
        return 1 - sum(int(mask.count_nonzero()) for mask in masks) / sum(mask.numel() for mask in masks)

    def penalty(self) -> Tensor:
        """`strength sum |S|`, shape ()."""
        return self.strength * torch.stack([scores.abs().sum() for scores in self.scores.values()]).sum()

    def save(self, path: str | Path) -> int:
        """Write the masks, one bit for each weight (`save_masks`); returns the file's size in bytes."""
        return save_masks(self.masks, path)

    def load(self, path: str | Path) -> None:
        """Put on the masks of a file that `save` wrote; raises as `load_masks` and `put_on`."""
        self.put_on(load_masks(path))

    @torch.no_grad()
    def put_on(self, masks: Mapping[str, Tensor]) -> None:
        """Take these masks: scores are `init` where a weight stays and `2 threshold - init` where not.

        Raises:
            ValueError: names or shapes are not those of the chosen weights; nothing is changed then.
            TypeError: a mask is not bool.
        """
        if masks.keys() != self._chosen.keys():
            raise ValueError(f"the masks are of {sorted(masks)[:5]}, the chosen weights are {sorted(self._chosen)[:5]}")
        for name, mask in masks.items():
            check_mask(name, mask, self._chosen[name].parameter)
        for name, mask in masks.items():
            scores = self.scores[name]
            scores.copy_(torch.where(mask.to(scores.device), self.init, 2 * self.threshold - self.init))

    @torch.no_grad()
    def finalize(self) -> dict[str, Tensor]:
        """Set what is left out to zero in the weights, let the network go, and return the masks."""
        if not self._hooks:
            raise ValueError("this mask tuning was finalized or removed before")
        masks = self.masks
        for name, mask in masks.items():
            self._chosen[name].parameter.masked_fill_(~mask, 0)
        self.remove()
        return masks

    def remove(self) -> None:
        """Let the network go as it was before: without masks, with the frozen weights trainable again where they were."""
        for hook in self._hooks:
            hook.remove()
        if self._hooks:
            for name, entry in self._chosen.items():
                entry.parameter.requires_grad = self._trained[name]
        self._hooks = []

    def extra_repr(self) -> str:
        """Numbers and weights."""
        weights = sum(entry.parameter.numel() for entry in self._chosen.values())
        return f"{weights:,} weights in {len(self._chosen)} tensors, init={self.init:g}, threshold={self.threshold:g}"


def _key(name: str) -> str:
    return name.replace(".", "/")


def _unmasking(owner: nn.Module, label: str) -> Callable[..., None]:
    def unmask(*_: Any) -> None:
        owner.__dict__.pop(label, None)

    return unmask


def _chosen(
    model: nn.Module, include: Sequence[str], exclude: Sequence[str]
) -> tuple[list[Entry], list[tuple[Entry, str]]]:
    found = select(model, Rule(exclude=tuple(exclude), frozen=True))
    chosen, left_out = [], list(found.left_out)
    for entry in found.chosen:
        if any(fnmatchcase(entry.name, pattern) for pattern in include):
            chosen.append(entry)
        else:
            left_out.append((entry, f"name matches no include pattern of {tuple(include)}"))
    if not chosen:
        raise ValueError(
            f"{type(model).__name__} has no weight that matches {', '.join(map(repr, include))}; its weights are "
            f"{', '.join([entry.name for entry in found.chosen][:8]) or 'none'}"
        )
    for entry in chosen:
        if entry.aliases:
            raise ValueError(
                f"a mask on a tied weight: {entry.name} is also {', '.join(entry.aliases)}, which would lose the same weights; "
                "untie it, or exclude it"
            )
        if entry.computed is not None:
            raise ValueError(f"{entry.name} is part of a weight that is computed from others; exclude it")
        if is_sharded(entry.parameter):
            raise ValueError(f"{entry.name} is sharded (DTensor); masks are tuned of whole weights")
        if entry.owner is None:
            raise ValueError(f"{entry.name} belongs to no module that multiplies by it; exclude it")
    return chosen, left_out


def layers_by_mask_gradient(
    model: nn.Module,
    batches: Iterable[Any],
    loss: Loss,
    top: int = 3,
    include: Sequence[str] = ATTENTION,
) -> tuple[str, ...]:
    """The weights whose masks matter most to a task: those with the largest mean magnitude of `dL/dW * W`.

    For `MaskTuning(model, include=...)`; the paper's form "A".

    Args:
        model: stays as it is.
        batches: `(inputs, targets)` or mappings.
        loss: `loss(outputs, targets)`, a scalar; of a mapping `loss(outputs, batch)`.
        top: how many weights. Default 3 [ours].
        include: shell patterns of the weights to choose from. Default attention.

    Raises:
        ValueError: no weight matches, fewer than `top` do, or the loss depends on one of them not (named).

    Source: arXiv 2307.15049.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
        >>> data = [(torch.ones(3, 4), torch.ones(3, 2))]
        >>> len(layers_by_mask_gradient(net, data, nn.functional.mse_loss, 1, include=("*",)))
        1
    """
    chosen, _ = _chosen(unwrapped(model), include, ())
    whole("top", top, 1, len(chosen))
    means = [float(score.mean()) for score in Snip(batches, loss).of(model, chosen)]
    ranked = sorted(range(len(chosen)), key=lambda at: (-means[at], at))
    return tuple(chosen[at].name for at in ranked[:top])
