"""Weights that a module computes from other parameters: weight_norm, spectral_norm, orthogonal, torch's pruning.

Such a weight is not its parts. A gain is no weight, and a direction of zeros gives NaN; what counts is the weight that the
product uses. It is read here without a side effect and set to zero so that it stays finite.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.nn.utils.parametrize import ParametrizationList
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from trimtab.parameters.modes import modes_kept

Undo = list[tuple[Tensor, Tensor]]
"""Tensors, each with the values it had."""


class Kept(nn.Module):
    """A parametrization that sets weights to zero: `w` where `mask`, else 0.

    Example:
        >>> Kept(torch.tensor([True, False]))(torch.tensor([2.0, 3.0]))
        tensor([2., 0.])
    """

    mask: Tensor

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", mask.clone())

    def forward(self, weight: Tensor) -> Tensor:
        """The weight with its zeros."""
        return torch.where(self.mask, weight, torch.zeros((), dtype=weight.dtype, device=weight.device))

    def right_inverse(self, weight: Tensor) -> Tensor:
        """The weight itself: assigning to a masked weight keeps the mask."""
        return weight


class KeptHook:
    """The same as a forward pre-hook, behind one that computes the weight as an attribute."""

    def __init__(self, label: str) -> None:
        self.label = label

    def __call__(self, module: nn.Module, inputs: object) -> None:
        """Put the zeros into the weight just computed."""
        setattr(module, self.label, self.masked(module, getattr(module, self.label)))

    def masked(self, module: nn.Module, weight: Tensor) -> Tensor:
        """The weight with its zeros."""
        mask = getattr(module, f"{self.label}_kept")
        return torch.where(mask, weight, torch.zeros((), dtype=weight.dtype, device=weight.device))


def _copies(tensors: list[Tensor]) -> Undo:
    return [(tensor, tensor.detach().clone()) for tensor in tensors]


class Reparametrised:
    """One weight that `module` computes under the attribute `label` from `parts`.

    Attributes:
        parts: names of the attributes' parameters as `named_parameters` gives them below the module, with the tensors.
        how: what computes it, in words.
    """

    how: str

    def __init__(self, module: nn.Module, label: str, parts: dict[str, Tensor]) -> None:
        self.module, self.label, self.parts = module, label, parts

    known = True
    """Whether it can be read and pruned."""

    def weight(self) -> Tensor:
        """The weight that the product uses, differentiable by the parts; nothing changes by reading it."""
        raise NotImplementedError

    def prune_(self, mask: Tensor) -> Undo:
        """Set the weight to zero where `mask` is False; the others keep their values. What `restore_` needs comes back."""
        raise NotImplementedError

    def keep_(self, mask: Tensor) -> None:
        """Set the weight to zero again where `mask` is False, after an optimizer moved the parts."""

    def gone(self, mask: Tensor) -> Undo:
        """The parts that zeros of the weight lie in, each with a bool tensor that is True there."""
        return []

    def restore_(self, undo: Undo) -> None:
        """Put the parts back."""
        with torch.no_grad():
            for tensor, values in undo:
                tensor.copy_(values)
        self.refresh()

    def refresh(self) -> None:
        """Make the attribute that a hook computed agree with the parts."""

    def add_gradient_(self, weight: Tensor, gradient: Tensor) -> None:
        """Add what a gradient of the weight that `weight()` gave means for the parts, to those that have a gradient."""
        parts = [part for part in self.parts.values() if part.requires_grad and part.grad is not None]
        found = torch.autograd.grad(weight, parts, gradient.to(weight.dtype)) if parts else ()
        for part, own in zip(parts, found, strict=True):
            assert part.grad is not None
            part.grad.add_(own)

    def role_of(self, label: str) -> str:
        """What the part is by itself: "weight" where it is laid out as the weight is."""
        return "weight"


class _WeightNormed(Reparametrised):
    """`w = g v / ||v||`. Zeros go into v, and g shrinks with the norm, so that the others stay; a row without weights
    has g = 0 and keeps its v, since the direction of nothing is NaN."""

    how = "weight_norm"

    def __init__(self, module: nn.Module, label: str, parts: dict[str, Tensor], dim: int, *, hook: bool) -> None:
        super().__init__(module, label, parts)
        (self.gain, self.direction), self.dim, self.hook = parts.values(), dim, hook

    def weight(self) -> Tensor:
        return torch._weight_norm(self.direction, self.gain, self.dim)

    def role_of(self, label: str) -> str:
        return "scale" if self.parts[label] is self.gain else "weight"

    @torch.no_grad()
    def prune_(self, mask: Tensor) -> Undo:
        undo = _copies([self.gain, self.direction])
        before = torch.norm_except_dim(self.direction, 2, self.dim)
        self._zero_(mask)
        after = torch.norm_except_dim(self.direction, 2, self.dim)
        self.gain.copy_(self.gain.to(after.dtype) * after / before)
        self.refresh()
        return undo

    @torch.no_grad()
    def keep_(self, mask: Tensor) -> None:
        self._zero_(mask)
        self.refresh()

    def _alive(self, mask: Tensor) -> Tensor:
        return torch.norm_except_dim(mask.to(torch.float32), 2, self.dim) > 0

    def gone(self, mask: Tensor) -> Undo:
        return [(self.gain, ~self._alive(mask)), (self.direction, ~mask)]

    def _zero_(self, mask: Tensor) -> None:
        alive = self._alive(mask)
        self.gain.masked_fill_(~alive, 0)
        self.direction.masked_fill_(alive & ~mask, 0)

    def refresh(self) -> None:
        if self.hook:
            with torch.enable_grad():
                setattr(self.module, self.label, self.weight())


class _Parametrised(Reparametrised):
    """Any known chain of `torch.nn.utils.parametrize`. The zeros are a further parametrization, `Kept`: an orthogonal
    matrix with zeros is none, and a matrix divided by its norm would grow."""

    def __init__(self, module: nn.Module, label: str, parts: dict[str, Tensor], chain: ParametrizationList) -> None:
        super().__init__(module, label, parts)
        self.chain = chain
        self.how = " and ".join(type(link).__name__.lstrip("_") for link in chain)

    def weight(self) -> Tensor:
        with modes_kept(self.chain, training=False):  # where spectral_norm's power iteration stands still
            weight: Tensor = self.chain()
            return weight

    @torch.no_grad()
    def prune_(self, mask: Tensor) -> Undo:
        undo = _copies(list(self.parts.values()))
        last = self.chain[-1]
        if isinstance(last, Kept):
            undo.append((last.mask, last.mask.clone()))
            last.mask.logical_and_(mask)
        else:
            kept = Kept(mask)
            kept.train(self.chain.training)
            self.chain.append(kept)
        return undo

    def restore_(self, undo: Undo) -> None:
        last = self.chain[-1]
        if isinstance(last, Kept) and not any(tensor is last.mask for tensor, _ in undo):
            del self.chain[-1]
        super().restore_(undo)


class _SpectralHook(Reparametrised):
    """The older `torch.nn.utils.spectral_norm`; the zeros are a hook behind it."""

    how = "spectral_norm"

    def __init__(self, module: nn.Module, label: str, parts: dict[str, Tensor], hook: SpectralNorm) -> None:
        super().__init__(module, label, parts)
        self.hook = hook

    def _kept(self) -> tuple[int, KeptHook] | None:
        hooks = self.module._forward_pre_hooks.items()
        return next(
            ((key, hook) for key, hook in hooks if isinstance(hook, KeptHook) and hook.label == self.label), None
        )

    def weight(self) -> Tensor:
        weight: Tensor = self.hook.compute_weight(self.module, do_power_iteration=False)
        found = self._kept()
        return weight if found is None else found[1].masked(self.module, weight)

    @torch.no_grad()
    def prune_(self, mask: Tensor) -> Undo:
        undo = _copies(list(self.parts.values()))
        if self._kept() is not None:
            buffer = getattr(self.module, f"{self.label}_kept")
            undo.append((buffer, buffer.clone()))
            buffer.logical_and_(mask)
        else:
            self.module.register_buffer(f"{self.label}_kept", mask.clone())
            self.module.register_forward_pre_hook(KeptHook(self.label))
        self.refresh()
        return undo

    def restore_(self, undo: Undo) -> None:
        found = self._kept()
        if found is not None and not any(tensor is getattr(self.module, f"{self.label}_kept") for tensor, _ in undo):
            del self.module._forward_pre_hooks[found[0]]
            delattr(self.module, f"{self.label}_kept")
        super().restore_(undo)

    def refresh(self) -> None:
        with torch.enable_grad():
            setattr(self.module, self.label, self.weight())


class _Pruned(Reparametrised):
    """What `torch.nn.utils.prune` leaves: a parameter and a mask."""

    how = "torch's pruning"

    def weight(self) -> Tensor:
        (original,) = self.parts.values()
        mask: Tensor = getattr(self.module, f"{self.label}_mask")
        return original * mask.to(original.dtype)

    @torch.no_grad()
    def prune_(self, mask: Tensor) -> Undo:
        undo = _copies(list(self.parts.values()))
        self.keep_(mask)
        return undo

    def gone(self, mask: Tensor) -> Undo:
        return [(original, ~mask) for original in self.parts.values()]

    @torch.no_grad()
    def keep_(self, mask: Tensor) -> None:
        (original,) = self.parts.values()
        original.masked_fill_(~mask, 0)
        self.refresh()

    def refresh(self) -> None:
        with torch.enable_grad():
            setattr(self.module, self.label, self.weight())


class _Unknown(Reparametrised):
    """A parametrization whose formula is not known: left out by name."""

    known = False

    def __init__(self, module: nn.Module, label: str, parts: dict[str, Tensor], chain: ParametrizationList) -> None:
        super().__init__(module, label, parts)
        self.how = ", ".join(type(link).__name__ for link in chain)

    def weight(self) -> Tensor:
        raise TypeError(f"{self.label} of {type(self.module).__name__} lies under {self.how}, which is not known")

    def prune_(self, mask: Tensor) -> Undo:
        raise TypeError(f"{self.label} of {type(self.module).__name__} lies under {self.how}, which is not known")

    def role_of(self, label: str) -> str:
        return "other"


_KNOWN = (parametrizations._WeightNorm, parametrizations._SpectralNorm, parametrizations._Orthogonal, Kept)


def found_in(module: nn.Module) -> Iterator[Reparametrised]:
    """The weights that `module` itself computes from other parameters."""
    chains = module._modules.get("parametrizations")
    for label, chain in chains.items() if isinstance(chains, nn.ModuleDict) else ():
        if not isinstance(chain, ParametrizationList):
            continue
        parts: dict[str, Tensor] = {
            f"parametrizations.{label}.{name}": part for name, part in chain.named_parameters(recurse=False)
        }
        links = list(chain)
        if len(links) == 1 and type(links[0]) is parametrizations._WeightNorm:
            yield _WeightNormed(module, label, parts, links[0].dim, hook=False)
        elif links and all(type(link) in _KNOWN for link in links):
            yield _Parametrised(module, label, parts, chain)
        else:
            yield _Unknown(module, label, parts, chain)
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, WeightNorm):
            names = (f"{hook.name}_g", f"{hook.name}_v")
            yield _WeightNormed(module, hook.name, {n: module._parameters[n] for n in names}, hook.dim, hook=True)  # type: ignore[misc]
        elif isinstance(hook, SpectralNorm):
            name = f"{hook.name}_orig"
            yield _SpectralHook(module, hook.name, {name: module._parameters[name]}, hook)  # type: ignore[dict-item]
        elif isinstance(hook, BasePruningMethod):
            name = f"{hook._tensor_name}_orig"
            if module._parameters.get(name) is not None:
                yield _Pruned(module, hook._tensor_name, {name: module._parameters[name]})  # type: ignore[dict-item]
