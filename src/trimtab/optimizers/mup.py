"""muP: a network in the maximal update parametrization, so that learning rates found on a narrow one hold for a wide one."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from trimtab.checks import one_of, positive
from trimtab.parameters import Entry, entries
from trimtab.parameters.arguments import Arguments, layer_input, with_input

KINDS = ("adam", "sgd")


@dataclass(frozen=True)
class Width:
    """How much wider a parameter is than its counterpart in the base network.

    Attributes:
        inputs, outputs: its inputs and outputs over the base's.
    """

    inputs: float
    outputs: float

    @property
    def role(self) -> str:
        """ "hidden" (both grow), "output" (inputs alone), "input" (outputs alone; biases and scales too) or "fixed"."""
        if self.inputs != 1:
            return "output" if self.outputs == 1 else "hidden"
        return "fixed" if self.outputs == 1 else "input"

    def rate(self, kind: str) -> float:
        """What the learning rate is multiplied by."""
        if self.role == "hidden":
            return 1 / self.inputs if kind == "adam" else self.outputs / self.inputs
        return 1.0 if kind == "adam" else self.inputs * self.outputs

    @property
    def deviation(self) -> float:
        """Standard deviation of the initial weights over the base's."""
        return 1 / math.sqrt(self.inputs) if self.role == "hidden" else 1.0


def widths(model: nn.Module, base: nn.Module) -> Iterator[tuple[Entry, Width]]:
    """Every trained parameter of `model` with its width over that of the same name in `base`.

    Raises:
        ValueError: the networks do not have the same parameters, or a shape differs in a way that is not known.
    """
    own, of_base = entries(model), dict(base.named_parameters())
    if apart := sorted({name for name, _ in model.named_parameters()} ^ of_base.keys()):
        raise ValueError(
            f"{apart[0]} is a parameter of one of model and base only; base must be the same network, narrower"
        )
    for entry in own:
        wide, narrow = tuple(entry.parameter.shape), tuple(of_base[entry.name].shape)
        if len(wide) != len(narrow):
            raise ValueError(f"{entry.name} has the shape {wide} in model and {narrow} in base")
        if not entry.parameter.requires_grad:
            continue
        table = isinstance(entry.owner, nn.Embedding | nn.EmbeddingBag)  # rows are picked, not summed over
        axes = (1, None) if table else (entry.output_axis, entry.input_axis)
        if len(wide) == 1:
            axes = (0, None)
        ratios = [1.0 if axis is None else wide[axis] / narrow[axis] for axis in axes]
        rest = [at for at in range(len(wide)) if wide[at] != narrow[at] and at not in axes]
        if rest:
            raise ValueError(
                f"{entry.name} has the shape {wide} in model and {narrow} in base; that its axis {rest[0]} grows is neither "
                "its inputs nor its outputs (register_layout says which axes are)"
            )
        yield entry, Width(ratios[1], ratios[0])


def mup_groups(
    model: nn.Module, base: nn.Module, lr: float, kind: Literal["adam", "sgd"] = "adam"
) -> list[dict[str, Any]]:
    """Parameter groups for any optimizer: the learning rate that was found on `base`, for each parameter of the wider `model`.

    With m the parameter's width over the base's:

    | | Adam and its kin | SGD | initial deviation | multiplier |
    |---|---|---|---|---|
    | input weights, biases, scales | `lr` | `m lr` | that of base | 1 |
    | hidden weights | `lr / m` | `lr` | `m^-1/2` times | 1 |
    | output weights | `lr` | `m lr` | that of base | `1 / m` |

    The last two columns are what `mup_scale_` does; one without the other is no muP. Attention scores must be divided by the
    width of a head instead of its root, in the network's own code.

    Args:
        model: the network to be trained.
        base: the same network, narrower, on which `lr` was found; it may lie on the meta device here.
        lr: learning rate of the base; above 0.
        kind: "adam" (default; AdamW, too) or "sgd".

    Returns:
        Groups with `params` of (name, parameter) pairs and `lr`, one for each rate.

    Raises:
        ValueError: a number out of range, an unknown kind, or the two networks differ in more than their widths.

    Reference: Yang et al., arXiv 2203.03466 (tables 3 and 8); Yang and Hu, arXiv 2011.14522.

    Example:
        >>> def net(width):
        ...     return nn.Sequential(nn.Linear(8, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 2))
        >>> [(group["lr"], [name for name, _ in group["params"]]) for group in mup_groups(net(64), net(16), lr=0.01)]
        [(0.01, ['0.weight', '0.bias', '2.bias', '4.weight', '4.bias']), (0.0025, ['2.weight'])]
    """
    lr, kind = positive("lr", lr), one_of("kind", kind, KINDS)  # type: ignore[assignment]
    found: dict[float, list[tuple[str, Tensor]]] = {}
    for entry, width in widths(model, base):
        found.setdefault(lr * width.rate(kind), []).append((entry.name, entry.parameter))
    return [{"params": members, "lr": rate} for rate, members in found.items()]


class _Multiplied:
    """Divides what a layer of outputs gets, by a forward pre-hook; its bias is not touched."""

    def __init__(self, width: float) -> None:
        self.width = width

    def __call__(self, module: nn.Module, args: tuple[Any, ...], given: dict[str, Any]) -> Arguments | None:
        inputs = layer_input(args, given)
        return None if inputs is None else with_input(args, given, inputs / self.width)


@torch.no_grad()
def mup_scale_(model: nn.Module, base: nn.Module) -> dict[str, str]:
    """Bring the initial weights of `model` to muP's deviations, and divide what goes into its output layers by their width.

    A weight is scaled so that its standard deviation is the base's times the factor of `mup_groups`, whatever rule drew it.
    Call it once, on new weights, before training; on a network that goes on from a file too, before it is loaded: the
    multiplier is a hook and stands in no file.

    Args:
        model: changed in place.
        base: the same network, narrower, with its initial weights.

    Returns:
        The role of every parameter: "input", "hidden", "output" or "fixed".

    Raises:
        ValueError: it was called before, the two networks differ in more than their widths, or an output layer shares its
            weight with a table of embeddings, whose rows would be scaled with it.

    Reference: Yang et al., arXiv 2203.03466.

    Example:
        >>> wide, narrow = (nn.Sequential(nn.Linear(4, n), nn.Linear(n, 1)) for n in (64, 16))
        >>> mup_scale_(wide, narrow)["1.weight"]
        'output'
    """
    listed = list(widths(model, base))
    narrow = dict(base.named_parameters())
    outputs = [(entry, width) for entry, width in listed if width.role == "output" and entry.owner is not None]
    for entry, _ in outputs:
        if any(isinstance(hook, _Multiplied) for owner in entry.owners for hook in owner._forward_pre_hooks.values()):
            raise ValueError(f"{entry.name} is scaled already; mup_scale_ is called once")
    for entry, _ in listed:
        kinds = {isinstance(owner, nn.Embedding | nn.EmbeddingBag) for owner in entry.owners}
        if len(kinds) > 1:
            raise ValueError(
                f"{entry.name} is a table of embeddings and an output layer at once; give the layer a weight of its own"
            )
    for entry, width in listed:
        if entry.parameter.numel() < 2 or narrow[entry.name].numel() < 2:
            continue
        is_now, aim = float(entry.parameter.std()), float(narrow[entry.name].std()) * width.deviation
        if is_now and aim:
            entry.parameter.mul_(aim / is_now)
    for entry, width in outputs:
        for owner in entry.owners:
            owner.register_forward_pre_hook(_Multiplied(width.inputs), with_kwargs=True)
    return {entry.name: width.role for entry, width in listed}
