"""ConvergenceRadius: no step further than the Taylor series of softmax converges."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call, jvp
from torch.nn.attention import SDPBackend, sdpa_kernel

from trimtab.checks import flag, one_of, positive, whole
from trimtab.collectives import is_distributed, max_over_ranks
from trimtab.parameters import Entry, unwrapped
from trimtab.parameters.modes import modes_kept
from trimtab.tensors.passes import refuse_sharded

Mode = Literal["cap", "set", "observe"]
MODES = ("cap", "set", "observe")
Product = Literal["jvp", "difference"]
PRODUCTS = ("jvp", "difference")
SHARE = 1e-3
"""Of the finite difference: its step's length over that of the weights [ours]."""


def radius_share(logits: Tensor, change: Tensor, *, binary: bool) -> Tensor:
    """Of each example the length of a step over the radius in which its cross-entropy equals its Taylor series.

    Args:
        logits, change: z and `J_z p`, shape (examples, classes, ...).
        binary: two classes, exact: `|a_1 - a_0| / sqrt((z_1 - z_0)^2 + pi^2)`; else `(max_k a_k - min_k a_k) / pi`, which is
            never less.

    Returns:
        Shape (examples, ...), float64.
    """
    along = change.double()
    spread = along.amax(1) - along.amin(1)
    if not binary:
        return spread / math.pi
    margin = (logits[:, 1] - logits[:, 0]).double()
    return spread / torch.hypot(margin, torch.full_like(margin, math.pi))


class ConvergenceRadius:
    """Every step is kept within the radius in which cross-entropy equals its Taylor series along the step.

    With p the step that the optimizer has taken (momentum, decay and all), z the logits and `a = J_z p` their change to first
    order: `r = max over examples (max_k a_k - min_k a_k) / pi`, the step's length over the radius. Where `r > target` the step
    is shortened by `target / r`. A spike of the learning rate so moves the weights no further than a safe step.

    Args:
        mode: "cap" (default) shortens what is too long, "set" brings every step to the target, "observe" changes nothing.
        target: r that is allowed; above 0. Default 1 (paper: safe below 1).
        samples: examples of the step that are looked at, the first ones; 1 or more. Default 256.
        product: "jvp" (default, exact) or "difference", two forward passes, for layers without forward derivatives.
        every: steps between looks; 1 or more. Default 1. Steps in between are not shortened.
        binary: take the exact radius of two classes, `r = max |a_1 - a_0| / sqrt((z_1 - z_0)^2 + pi^2)`, which lets confident
            examples move further, in place of the bound for any number of them. Default False.

    Raises:
        ValueError: a number is out of range or a word unknown; (at attach) there is no model, or its weights are sharded; (at a
            step) no forward pass was seen, the outputs are no logits of two or more classes, or not of two with `binary`.
        TypeError: (at attach) a parameter is complex.

    The inputs are those of the model's forward passes that take gradients; classes lie along axis 1. The derivative is taken
    in eval mode (no dropout, running statistics as they are), so batches are not mixed. On several ranks the greatest r counts.

    Reference: Ghosts of Softmax, arXiv 2603.13552.

    Example:
        >>> import trimtab
        >>> net = nn.Linear(1, 2, bias=False)
        >>> _ = net.weight.data.fill_(0.0)
        >>> optimizer, radius = torch.optim.SGD(net.parameters(), lr=1000.0), ConvergenceRadius()
        >>> handle = trimtab.attach(optimizer, radius, model=net)
        >>> nn.functional.cross_entropy(net(torch.ones(1, 1)), torch.tensor([0])).backward()
        >>> optimizer.step()
        >>> net.weight.flatten()  # the logits now differ by pi
        tensor([ 1.5708, -1.5708], grad_fn=...)
    """

    one_optimizer = "it shortens the step of all weights together; make one for each"

    def __init__(
        self,
        mode: Mode = "cap",
        target: float = 1.0,
        samples: int = 256,
        product: Product = "jvp",
        every: int = 1,
        *,
        binary: bool = False,
    ) -> None:
        self.mode = one_of("mode", mode, MODES)
        self.target = positive("target", target)
        self.samples = whole("samples", samples, least=1)
        self.product = one_of("product", product, PRODUCTS)
        self.every = whole("every", every, least=1)
        self.binary = flag("binary", binary)
        self.step = 0
        self._model: nn.Module | None = None
        self._hook: Any = None
        self._inputs: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
        self._left = 0
        self._before: dict[str, tuple[nn.Parameter, Tensor]] = {}
        self._signals: dict[str, Tensor] = {}

    def bind(self, optimizer: torch.optim.Optimizer, model: nn.Module | None, parameters: Sequence[Entry]) -> None:
        """Listen to the model's forward passes; called by `trimtab.attach`."""
        if model is None:
            raise ValueError("ConvergenceRadius needs the network: trimtab.attach(optimizer, lever, model=network)")
        for entry in parameters:
            if entry.parameter.is_complex():
                raise TypeError(f"ConvergenceRadius acts on real weights, {entry.name} is {entry.parameter.dtype}")
        refuse_sharded("ConvergenceRadius needs", parameters)
        self._model = unwrapped(model)
        self._hook = self._model.register_forward_pre_hook(self._listen, with_kwargs=True)
        self._left = self.samples

    def unbind(self) -> None:
        """Listen no more; called by `Handle.remove`."""
        if self._hook is not None:
            self._hook.remove()
        self._hook = self._model = None

    def _listen(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Keep the first examples of the step to come."""
        sizes = [one.shape[0] for one in (*args, *kwargs.values()) if isinstance(one, Tensor) and one.ndim]
        if not torch.is_grad_enabled() or self._left <= 0 or not sizes:
            return
        number = min(self._left, sizes[0])
        self._left -= number

        def some(one: Any) -> Any:
            whole_batch = isinstance(one, Tensor) and one.ndim and one.shape[0] == sizes[0]
            return one.detach()[:number].clone() if whole_batch else one

        self._inputs.append((tuple(map(some, args)), {key: some(one) for key, one in kwargs.items()}))

    @torch.no_grad()
    def before_step(self, parameters: Sequence[Entry]) -> None:
        """Keep the weights; called by `trimtab.attach`."""
        self._before = {}
        if self._model is not None and self.step % self.every == 0:
            stepped = {id(entry.parameter) for entry in parameters if entry.parameter.grad is not None}
            named = self._model.named_parameters()
            self._before = {name: (one, one.detach().clone()) for name, one in named if id(one) in stepped}

    @torch.no_grad()
    def after_step(self, parameters: Sequence[Entry]) -> None:
        """Shorten the step that was taken; called by `trimtab.attach`."""
        before, inputs = self._before, self._inputs
        self._before, self._inputs, self._left = {}, [], self.samples
        self.step += 1
        self._signals = {}
        if not before:
            return
        if not inputs:
            raise ValueError(
                "ConvergenceRadius saw no forward pass of the model before this step; call the model itself, with its batch "
                "first, before optimizer.step()"
            )
        places: list[Tensor] = [one for one, _ in before.values()]
        kept = [old for _, old in before.values()]
        change = torch._foreach_add(places, kept, alpha=-1)
        ratio = self._ratio(dict(zip(before, kept, strict=True)), dict(zip(before, change, strict=True)), inputs)
        factor = torch.where(ratio.isfinite() & (ratio > 0), self.target / ratio, 1.0)
        if self.mode == "cap":
            factor = factor.clamp(max=1.0)
        self._signals = {"radius": ratio, "radius_factor": factor}
        if self.mode == "observe" or float(factor) == 1.0:
            return
        for place, old, moved in zip(places, kept, change, strict=True):
            place.copy_(old + factor.to(moved) * moved)

    def _ratio(self, weights: dict[str, Tensor], change: dict[str, Tensor], inputs: Sequence[Any]) -> Tensor:
        """r of this change, shape (), float64; the same on every rank."""
        assert self._model is not None
        with modes_kept(self._model):
            self._model.eval()
            with sdpa_kernel(SDPBackend.MATH):  # the only one with forward derivatives
                ratio = torch.stack([self._share(weights, change, *one) for one in inputs]).amax()
        if is_distributed():
            ratio = max_over_ranks(ratio.nan_to_num(math.inf))
        return ratio

    def _share(self, weights: dict[str, Tensor], change: dict[str, Tensor], args: Any, kwargs: Any) -> Tensor:
        """The greatest r among these examples."""

        def logits(held: dict[str, Tensor]) -> Tensor:
            outputs = functional_call(self._model, held, args, kwargs)  # type: ignore[arg-type]
            found: Tensor = getattr(outputs, "logits", outputs)
            if not isinstance(found, Tensor) or found.ndim < 2 or found.shape[1] < 2:
                what = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
                raise ValueError(
                    f"ConvergenceRadius needs logits of shape (examples, classes, ...), the model gives {what}"
                )
            if self.binary and found.shape[1] != 2:
                raise ValueError(
                    f"ConvergenceRadius(binary=True) is for two classes, the model gives logits of shape {tuple(found.shape)}"
                )
            return found

        if self.product == "jvp":
            at, along = jvp(logits, (weights,), (change,))[:2]
        else:
            lengths = [torch.stack(torch._foreach_norm(list(of.values()))).norm() for of in (weights, change)]
            share = torch.where(lengths[1] > 0, SHARE * lengths[0] / lengths[1], 1.0)
            ends = [
                logits({name: old + sign * share * change[name] for name, old in weights.items()}) for sign in (1, -1)
            ]
            along = (ends[0] - ends[1]) / (2 * share)
            at = logits(weights) if self.binary else ends[0]
        return radius_share(at, along, binary=self.binary).amax()

    def signals(self) -> dict[str, Tensor]:
        """`radius`: r of the step as the optimizer took it; `radius_factor`: what it was multiplied by."""
        return dict(self._signals)

    def settings(self) -> dict[str, Any]:
        """All that decides."""
        return {name: getattr(self, name) for name in ("mode", "target", "samples", "product", "every", "binary")}

    def state_dict(self) -> dict[str, Any]:
        """Settings and steps counted."""
        return {"settings": self.settings(), "step": self.step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved state; ValueError when its settings are others."""
        if state.get("settings") != self.settings():
            raise ValueError(f"the saved settings {state.get('settings')} do not fit {self!r}")
        self.step = int(state["step"])

    def __repr__(self) -> str:
        return f"ConvergenceRadius({', '.join(f'{name}={value!r}' for name, value in self.settings().items())})"
