"""RouteByLabel: the label of a batch says which parameters learn from it, so that what is to be forgotten can be cut out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import Any, Literal

import torch
from torch import Tensor, nn

from trimtab.checks import one_of
from trimtab.collectives import is_distributed, max_over_ranks
from trimtab.levers import gradients_stand
from trimtab.parameters import Entry, entries
from trimtab.parameters.arguments import Arguments, layer_input, with_input
from trimtab.tensors.passes import refuse_sharded

Label = Literal["forget", "retain"]
LABELS, MODES = ("forget", "retain"), ("gradient", "freeze")
Index = slice | Sequence[int]
Part = Index | tuple[Index, ...] | None


class RouteByLabel:
    """Gradient routing: batches to be forgotten teach the forget part of a network alone, the others all but that part.

    | label of the batch | its gradient reaches |
    |---|---|
    | `"forget"` | of the parameters named: the forget part alone; all that is not named |
    | `"retain"` | all but the forget part, which is masked out of the forward pass |
    | `None` | everything |

    After training `ablate` sets the forget part to zero, and with it what it has learned.

    Args:
        forget: for each shell pattern of parameter names the part that may learn what is to be forgotten: an index of the first
            axis (a slice or a list of whole numbers), a tuple of one index per axis, or None for a parameter that keeps no
            such part and learns from no forget batch. `forget_units` and `forget_heads` write it for MLPs and attention.
        mode: "gradient" (default, paper): what may not learn gets a gradient of zero, but an optimizer still moves it by its
            momentum and weight decay. "freeze" [ours]: it is put back after the step, bit for bit; the optimizer's moments are
            left as they are.

    Attributes:
        label: of the batches to come, until it is set anew.
        left_out: parameters that no pattern names, which learn from every batch.

    Raises:
        ValueError: (at attach) no model, a pattern that names no parameter, an index out of range or without effect, sharded
            weights; an unknown label; (in the forward pass) gradients of another label wait for their step.
        RuntimeError: (at the step) ranks with different labels, or a layer whose inputs had to be masked and whose forward was
            not called (`nn.MultiheadAttention` uses its output weight itself).

    On retain batches the inputs of a layer are masked where a part of its columns is to be forgotten, which takes the part out
    of forward and backward pass. Give the model to `attach`. Levers that add to gradients (penalties) come before it. A batch
    of both kinds must be split: a step has one label.

    Reference: Cloud et al., SGTM, arXiv 2512.05648.

    Example:
        >>> import trimtab
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> part = trimtab.gradients.forget_units(net, "0", "2", 0.25)
        >>> route = RouteByLabel(part, mode="freeze")
        >>> optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
        >>> handle = trimtab.attach(optimizer, route, model=net)
        >>> with route.batch("forget"):
        ...     net(torch.ones(1, 4)).sum().backward()
        ...     optimizer.step()
        >>> route.ablate(net)
        >>> net[2].weight[:, 6:].abs().sum().item()
        0.0
    """

    one_optimizer = "it masks the forward passes of one model; make one for each"

    def __init__(self, forget: Mapping[str, Part], mode: Literal["gradient", "freeze"] = "gradient") -> None:
        if not isinstance(forget, Mapping) or not forget:
            raise ValueError(f"forget must name parameters and their parts, got {forget!r}")
        self.forget = dict(forget)
        self.mode = one_of("mode", mode, MODES)
        self.left_out: list[tuple[Entry, str]] = []
        self._label: Label | None = None
        self._seen: set[Label | None] = set()
        """Labels of the forward passes since the last step."""
        self._parameters: list[Tensor] = []
        self._masks: dict[str, Tensor] = {}
        self._inputs: dict[nn.Module, Tensor] = {}
        """Of each layer, which of its inputs count on retain batches."""
        self._ran: set[nn.Module] = set()
        self._hooks: list[Any] = []
        self._kept: list[tuple[Tensor, Tensor, Tensor]] = []

    # The label

    @property
    def label(self) -> Label | None:
        """Of the batches to come."""
        return self._label

    @label.setter
    def label(self, label: Label | None) -> None:
        if label is not None:
            one_of("label", label, LABELS)
        self._label = label

    @contextmanager
    def batch(self, label: Label | None) -> Iterator[None]:
        """Passes and the step inside are of a batch with this label."""
        before, self.label = self._label, label
        try:
            yield
        finally:
            self._label = before

    # Its parts

    def bind(self, optimizer: torch.optim.Optimizer, model: nn.Module | None, parameters: Sequence[Entry]) -> None:
        """Find the parts, and the layers to mask; called by `trimtab.attach`."""
        refuse_sharded(f"{type(self).__name__} routes", parameters)
        if model is None:
            raise ValueError(
                f"{type(self).__name__} masks forward passes; use trimtab.attach(optimizer, lever, model=model)"
            )
        self._masks = masks_of(parameters, self.forget)
        self.left_out = [(one, "no pattern names it") for one in parameters if one.name not in self._masks]
        for entry in parameters:
            mask = self._masks.get(entry.name)
            if mask is None or entry.owner is None or entry.input_axis is None or mask.ndim < 2:
                continue
            columns = mask.movedim(entry.input_axis, 0).flatten(1).all(1)
            if not bool(columns.any()):
                continue
            for owner in entry.owners:
                if not isinstance(owner, nn.Linear):
                    self._unhook()
                    raise ValueError(
                        f"{entry.name} belongs to {type(owner).__name__}; only inputs of Linear layers are masked, name "
                        "rows instead"
                    )
                self._inputs[owner] = ~columns
                self._hooks.append(owner.register_forward_pre_hook(self._mask_inputs, with_kwargs=True))
        self._parameters = [one.parameter for one in parameters]
        self._hooks.append(model.register_forward_pre_hook(self._remember))

    def unbind(self) -> None:
        """Mask no more; called by `Handle.remove`."""
        self._unhook()

    def _unhook(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks, self._inputs, self._parameters = [], {}, []

    def _remember(self, module: nn.Module, inputs: Any) -> None:
        if not torch.is_grad_enabled():
            return
        others = self._seen - {self._label}
        if others and not gradients_stand(self._parameters):
            self._seen, others = set(), set()  # a step that was skipped
        if others:
            (other,) = others
            raise ValueError(
                f"a batch of label {self._label!r} while gradients of one of {other!r} wait for their step; a step has one "
                "label: split the batch, and clear the gradients in between"
            )
        self._seen.add(self._label)

    def _mask_inputs(self, module: nn.Module, args: tuple[Any, ...], given: dict[str, Any]) -> Arguments | None:
        self._ran.add(module)
        inputs = layer_input(args, given)
        if self._label != "retain" or not torch.is_grad_enabled() or inputs is None:
            return None
        return with_input(args, given, torch.where(self._inputs[module].to(inputs.device), inputs, 0))

    # The step

    @torch.no_grad()
    def before_step(self, parameters: Sequence[Entry]) -> None:
        """Take the gradients off what may not learn from this batch; called by `trimtab.attach`."""
        label, self._kept = next(iter(self._seen), self._label), []
        self._compare_ranks(label, parameters)
        if label == "retain":
            for layer in self._inputs.keys() - self._ran:
                raise RuntimeError(
                    f"the inputs of a {type(layer).__name__} of {layer.in_features} inputs were to be masked, but its forward "
                    "was not called; nn.MultiheadAttention uses the weight itself: write attention with Linear layers"
                )
        for entry in parameters:
            mask = self._masks.get(entry.name)
            if label is None or mask is None:
                continue
            still = (mask if label == "retain" else ~mask).to(entry.parameter.device)
            if entry.parameter.grad is not None:
                entry.parameter.grad.masked_fill_(still, 0)
            if self.mode == "freeze":
                self._kept.append((entry.parameter, entry.parameter.detach().clone(), still))

    @torch.no_grad()
    def after_step(self, parameters: Sequence[Entry]) -> None:
        """Put back what may not have moved; called by `trimtab.attach`."""
        for weight, before, still in self._kept:
            weight.copy_(torch.where(still, before, weight))
        self._kept = []
        self._seen.clear()
        self._ran.clear()

    def _compare_ranks(self, label: Label | None, parameters: Sequence[Entry]) -> None:
        if not is_distributed() or not parameters:
            return
        code = 0 if label is None else 1 + LABELS.index(label)
        ends = max_over_ranks(torch.tensor([code, -code], device=parameters[0].parameter.device))
        if int(ends[0]) != -int(ends[1]):
            raise RuntimeError(f"the ranks have batches of different labels, this one {label!r}; a step has one label")

    # After training

    @torch.no_grad()
    def ablate(self, model: nn.Module, *, redraw: bool = False, generator: torch.Generator | None = None) -> None:
        """Set the forget part to zero; with `redraw`, where training goes on, to draws with the deviation of the rest.

        Args:
            model: the network, attached or not.
            redraw: draw instead of zeros.
            generator: of the draws.
        """
        listed = entries(model)
        masks = masks_of(listed, self.forget)
        for entry in listed:
            if (mask := masks.get(entry.name)) is None:
                continue
            mask, weight = mask.to(entry.parameter.device), entry.parameter
            rest = weight[~mask]
            deviation = float(rest.std()) if redraw and rest.numel() > 1 else 0.0
            drawn = torch.randn(weight.shape, generator=generator, dtype=weight.dtype).to(weight.device) * deviation
            weight.copy_(torch.where(mask, drawn if redraw else torch.zeros_like(weight), weight))

    def settings(self) -> dict[str, Any]:
        """Mode and parts, in plain words."""
        return {"mode": self.mode, "forget": {pattern: repr(part) for pattern, part in self.forget.items()}}

    def state_dict(self) -> dict[str, Any]:
        """The settings; it remembers nothing between steps."""
        return self.settings()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Check a saved state; ValueError when its settings are others."""
        if dict(state) != self.settings():
            raise ValueError(f"the saved settings {state} do not fit {self!r}")

    def __repr__(self) -> str:
        return f"RouteByLabel(forget={self.forget!r}, mode={self.mode!r})"


def masks_of(parameters: Sequence[Entry], forget: Mapping[str, Part]) -> dict[str, Tensor]:
    """For every parameter that a pattern names, True where it may learn what is to be forgotten.

    Raises:
        ValueError: a pattern names no parameter, two name the same, or an index does not fit.
    """
    found: dict[str, Tensor] = {}
    for pattern, part in forget.items():
        named = [one for one in parameters if any(fnmatchcase(name, pattern) for name in (one.name, *one.aliases))]
        if not named:
            raise ValueError(
                f"forget: {pattern!r} names no parameter of {', '.join(one.name for one in parameters[:8])}, ..."
            )
        for entry in named:
            if entry.name in found:
                raise ValueError(f"forget: two patterns name {entry.name}")
            mask = torch.zeros(entry.parameter.shape, dtype=torch.bool)
            if part is not None:
                _fill(mask, part, entry.name)
            found[entry.name] = mask
    return found


def _fill(mask: Tensor, part: Index | tuple[Index, ...], name: str) -> None:
    indices = (
        part if isinstance(part, tuple) and all(isinstance(one, slice | list | tuple) for one in part) else (part,)
    )
    if len(indices) > mask.ndim:
        raise ValueError(f"forget: {name} has {mask.ndim} axes, {part!r} names {len(indices)}")
    chosen = []
    for axis, index in enumerate(indices):
        picked = torch.zeros(mask.shape[axis], dtype=torch.bool)
        try:
            picked[index if isinstance(index, slice) else list(index)] = True
        except (IndexError, TypeError) as error:
            raise ValueError(
                f"forget: {index!r} does not fit axis {axis} of {name}, {mask.shape[axis]} long"
            ) from error
        if not bool(picked.any()):
            raise ValueError(f"forget: {index!r} picks nothing of axis {axis} of {name}, {mask.shape[axis]} long")
        chosen.append(picked)
    inside = torch.ones_like(mask)
    for axis, picked in enumerate(chosen):
        inside &= picked.view([-1 if at == axis else 1 for at in range(mask.ndim)])
    mask |= inside
