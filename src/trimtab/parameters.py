"""Which tensors a lever touches: the one place where parameters are selected.

Every lever, score and observer asks here. A parameter is named, counted once however many modules share it,
and left out with a reason that can be printed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from trimtab.kinds import PACKED, check_has_shape, packed_weights, reason_against_dtype
from trimtab.wrappers import own_modules, without_marks
from trimtab.wrappers import unwrapped as unwrapped

TRANSPOSED_CONVOLUTIONS = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


@dataclass(frozen=True, eq=False, repr=False)
class Entry:
    """One parameter as the levers see it.

    Attributes:
        name: qualified name in the model (`layer1.0.weight`), or `group0.3` when no name is known.
        parameter: the tensor itself, shape and dtype as the model holds it.
        output_axis: dimension that indexes output units: 0 for Linear, convolutions and Embedding, 1 for
            transposed convolutions, None when the owner is unknown or the tensor has fewer than two dimensions.
        named: False when `name` is a placeholder, so that patterns cannot be matched against it.
        aliases: further names of the same tensor: tied weights in the model's order, and the optimizer's name where
            wrappers (`torch.compile`, DistributedDataParallel) put something into it. Patterns see all of them.
        owner: the module that holds it, if a model was given.
    """

    name: str
    parameter: Tensor
    output_axis: int | None = None
    named: bool = True
    aliases: tuple[str, ...] = ()
    owner: nn.Module | None = None

    def __repr__(self) -> str:
        """Name, dtype and shape; never the numbers."""
        dtype = str(self.parameter.dtype).removeprefix("torch.")
        try:
            shape = str(tuple(self.parameter.shape))
        except RuntimeError:  # a lazy parameter
            shape = "no shape yet"
        return f"Entry({self.name!r}, {dtype} {shape})"


@dataclass(frozen=True)
class Rule:
    """Says which parameters count: enough dimensions, trainable, names that match.

    Args:
        min_ndim: least number of dimensions. Default 2 [ours]: biases and norm scales are left out.
        include: shell patterns; when given, a name must match one of them.
        exclude: shell patterns; a name must match none of them.
        frozen: whether parameters with `requires_grad=False` count. Default False.

    Raises:
        ValueError: `min_ndim` is negative.

    Example:
        >>> import torch
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3))
        >>> [entry.name for entry in select(net, Rule()).chosen]
        ['0.weight']
    """

    min_ndim: int = 2
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    frozen: bool = False

    def __post_init__(self) -> None:
        if self.min_ndim < 0:
            raise ValueError(f"min_ndim must be 0 or more, got {self.min_ndim}")
        for label in ("include", "exclude"):
            if isinstance(getattr(self, label), str):
                raise TypeError(f"{label} must be a tuple of patterns, got the string {getattr(self, label)!r}")

    def reason_against(self, entry: Entry) -> str | None:
        """Why `entry` is left out, or None when it counts."""
        if (self.include or self.exclude) and not entry.named:
            raise ValueError(
                f"parameter {entry.name} has no name, so include={self.include} and exclude={self.exclude} cannot be "
                "applied; pass model=... or build the optimizer from model.named_parameters()"
            )
        check_has_shape(entry.name, entry.parameter)
        if (reason := reason_against_dtype(entry.parameter)) is not None:
            return reason
        if entry.parameter.ndim < self.min_ndim:
            return f"{entry.parameter.ndim} dimension(s), fewer than {self.min_ndim}"
        if not self.frozen and not entry.parameter.requires_grad:
            return "frozen (requires_grad=False)"
        names = (entry.name, *entry.aliases)
        for pattern in self.exclude:
            if any(fnmatchcase(name, pattern) for name in names):
                return f"name matches exclude pattern {pattern!r}"
        if self.include and not any(fnmatchcase(name, pattern) for name in names for pattern in self.include):
            return f"name matches no include pattern of {self.include}"
        return None


PRUNABLE = Rule(exclude=("*cls_token", "*pos_embed*"), frozen=True)
"""What counts as prunable by default: two dimensions or more, without class tokens and position embeddings [ours], trainable
or not."""


@dataclass(frozen=True)
class Selection:
    """What a rule chose and what it left out, each with its reason."""

    chosen: list[Entry]
    left_out: list[tuple[Entry, str]]


Source = nn.Module | torch.optim.Optimizer | Iterable[Tensor] | Iterable[tuple[str, Tensor]] | Iterable[Entry]


def output_axis(owner: nn.Module | None, parameter: Tensor) -> int | None:
    """Dimension of `parameter` that indexes the output units of `owner`.

    Linear, Conv1d-3d, Embedding and MultiheadAttention: 0. ConvTranspose1d-3d: 1 (their weight is laid out as
    input, output / groups, kernel). Fewer than two dimensions: None. An unknown owner: 0, PyTorch's own habit.

    Example:
        >>> output_axis(torch.nn.ConvTranspose2d(3, 5, 2), torch.nn.ConvTranspose2d(3, 5, 2).weight)
        1
    """
    if parameter.ndim < 2:
        return None
    return 1 if isinstance(owner, TRANSPOSED_CONVOLUTIONS) else 0


def _entries_of_module(model: nn.Module) -> Iterator[Entry]:
    names: dict[int, list[str]] = {}
    found: dict[int, tuple[Tensor, nn.Module]] = {}
    for prefix, module in own_modules(model, remove_duplicate=False):
        for label, parameter in module.named_parameters(recurse=False):
            name = f"{prefix}.{label}" if prefix else label
            names.setdefault(id(parameter), []).append(name)
            found.setdefault(id(parameter), (parameter, module))
    for key, (tensor, owner) in found.items():
        first, *rest = names[key]
        yield Entry(first, tensor, output_axis(owner, tensor), aliases=tuple(rest), owner=owner)


def _entries_by_name(names: Sequence[str], tensors: Sequence[Tensor]) -> Iterator[Entry]:
    """Entries of tensors whose model is not at hand, by their names without what wrappers put into them."""
    for name, own, tensor in zip(names, without_marks(names), tensors, strict=True):
        yield Entry(own, tensor, output_axis(None, tensor), aliases=() if own == name else (name,))


def _entries_of_optimizer(optimizer: torch.optim.Optimizer) -> Iterator[Entry]:
    groups = optimizer.param_groups
    held = [pair for group in groups for pair in zip(group.get("param_names", ()), group["params"], strict=False)]
    named = _entries_by_name([name for name, _ in held], [tensor for _, tensor in held])
    for number, group in enumerate(groups):
        for position, parameter in enumerate(group["params"]):
            if group.get("param_names") is None:
                yield Entry(f"group{number}.{position}", parameter, output_axis(None, parameter), named=False)
            else:
                yield next(named)


def entries(source: Source) -> list[Entry]:
    """Every parameter of `source`, tied ones once, in order.

    Args:
        source: a model, an optimizer, or an iterable of tensors, of (name, tensor) pairs or of entries.

    Raises:
        TypeError: an item is none of these.

    Example:
        >>> net = torch.nn.Linear(2, 2)
        >>> [entry.name for entry in entries(net)]
        ['weight', 'bias']
    """
    if isinstance(source, nn.Module):
        return list(_entries_of_module(source))
    if isinstance(source, torch.optim.Optimizer):
        return list(_entries_of_optimizer(source))
    if isinstance(source, Tensor):
        raise TypeError(
            "expected a model, an optimizer or an iterable of tensors, got a single tensor; wrap it in a list"
        )
    listed: dict[int, Entry] = {}
    items = list(source)
    pairs = [item for item in items if isinstance(item, tuple) and len(item) == 2 and isinstance(item[1], Tensor)]
    named = _entries_by_name([str(name) for name, _ in pairs], [tensor for _, tensor in pairs])
    for position, item in enumerate(items):
        if isinstance(item, Entry):
            entry = item
        elif isinstance(item, Tensor):
            entry = Entry(f"group0.{position}", item, output_axis(None, item), named=False)
        elif isinstance(item, tuple) and len(item) == 2 and isinstance(item[1], Tensor):
            entry = next(named)
        else:
            raise TypeError(
                f"item {position} must be a tensor, a (name, tensor) pair or an Entry, got {type(item).__name__}"
            )
        listed.setdefault(id(entry.parameter), entry)
    return list(listed.values())


def select(source: Source, rule: Rule | None = None) -> Selection:
    """Apply `rule` (default `Rule()`) to the parameters of `source`.

    Example:
        >>> selection = select(torch.nn.Linear(2, 2))
        >>> [entry.name for entry in selection.chosen], [reason for _, reason in selection.left_out]
        (['weight'], ['1 dimension(s), fewer than 2'])
    """
    rule = Rule() if rule is None else rule
    chosen: list[Entry] = []
    left_out: list[tuple[Entry, str]] = []
    for entry in entries(source):
        reason = rule.reason_against(entry)
        if reason is None:
            chosen.append(entry)
        else:
            left_out.append((entry, reason))
    if isinstance(source, nn.Module):
        for name, weight, owner in packed_weights(source):
            left_out.append((Entry(name, weight, owner=owner), PACKED))
    return Selection(chosen, left_out)


def with_names(optimizer: torch.optim.Optimizer, model: nn.Module) -> list[Entry]:
    """The optimizer's parameters under the model's names, in the optimizer's order.

    Raises:
        ValueError: the optimizer holds no parameter of the model, or one that the model does not have.
    """
    known = {id(entry.parameter): entry for entry in entries(model)}
    held = _entries_of_optimizer(optimizer)
    named = [(entry, known.get(id(entry.parameter))) for entry in held]
    if not any(match for _, match in named):
        raise ValueError(
            f"the optimizer {type(optimizer).__name__} holds none of the {len(known)} parameters of "
            f"{type(model).__name__}; build it from this model's parameters (after moving or wrapping the model)"
        )
    strangers = [entry for entry, match in named if match is None]
    if strangers:
        raise ValueError(
            f"the optimizer {type(optimizer).__name__} holds {len(strangers)} parameter(s) that {type(model).__name__} "
            f"does not have, the first of shape {tuple(strangers[0].parameter.shape)}"
        )
    return [match for _, match in named if match is not None]


def total_elements(chosen: Sequence[Entry]) -> int:
    """Number of elements over all entries (of the whole tensors, also when they are sharded)."""
    return sum(entry.parameter.numel() for entry in chosen)
