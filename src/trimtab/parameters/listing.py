"""Parameters as the levers see them: named, counted once, with what their owner says of them.

`trimtab.parameters` is where to import these from.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from trimtab.parameters.layouts import (
    NO_WEIGHT,
    Layout,
    is_position_name,
    layout_of,
)
from trimtab.parameters.reparametrised import Reparametrised, found_in
from trimtab.parameters.wrappers import own_modules, without_marks


@dataclass(frozen=True, eq=False, repr=False)
class Entry:
    """One parameter as the levers see it.

    Attributes:
        name: qualified name in the model (`layer1.0.weight`), or `group0.3` when no name is known.
        parameter: the tensor itself, shape and dtype as the model holds it.
        output_axis: dimension that indexes output units, as the owner says: 0 for Linear, convolutions and Embedding, 1 for
            transposed convolutions and transformers' Conv1D. None when the owner is unknown or the tensor has fewer than two
            dimensions. Without a model no owner can be known, and it is 0, PyTorch's habit.
        named: False when `name` is a placeholder, so that patterns cannot be matched against it.
        aliases: further names of the same tensor: tied weights in the model's order, and the optimizer's name where
            wrappers (`torch.compile`, DistributedDataParallel) put something into it. Patterns see all of them.
        owner: the module that holds it, if a model was given.
        input_axis: dimension over which a product sums; None where unknown.
        stack_axis: dimension along which whole matrices are stacked (experts); None for one matrix.
        role: "weight", or what else it is ("bias", "scale", "position", "other", "unknown").
        why: why it is no weight, in words; empty for a weight.
        owners: every module that holds it, tied ones too, in the model's order.
        places: where its first and its last name stand among all names of the model.
        view_of: name of the parameter whose memory this one is a view of.
        computed: set on the parts of a reparametrised weight (weight_norm), and on the entry of that weight itself.
    """

    name: str
    parameter: Tensor
    output_axis: int | None = None
    named: bool = True
    aliases: tuple[str, ...] = ()
    owner: nn.Module | None = None
    input_axis: int | None = None
    stack_axis: int | None = None
    role: str = "weight"
    why: str = ""
    owners: tuple[nn.Module, ...] = ()
    places: tuple[int, int] = (0, 0)
    view_of: str | None = None
    computed: Reparametrised | None = None

    def __repr__(self) -> str:
        """Name, dtype and shape; never the numbers."""
        dtype = str(self.parameter.dtype).removeprefix("torch.")
        try:
            shape = str(tuple(self.parameter.shape))
        except RuntimeError:  # a lazy parameter
            shape = "no shape yet"
        return f"Entry({self.name!r}, {dtype} {shape})"


Source = nn.Module | torch.optim.Optimizer | Iterable[Tensor] | Iterable[tuple[str, Tensor]] | Iterable[Entry]


def output_axis(owner: nn.Module | None, parameter: Tensor, label: str = "weight") -> int | None:
    """Dimension of `parameter` that indexes the output units of `owner`, which holds it under the attribute `label`.

    Linear, Conv1d-3d, Embedding and MultiheadAttention: 0. ConvTranspose1d-3d (input, output / groups, kernel) and
    transformers' Conv1D (input, output): 1. Fewer than two dimensions, or an owner that does not tell: None. No owner: 0,
    PyTorch's own habit.

    Example:
        >>> output_axis(torch.nn.ConvTranspose2d(3, 5, 2), torch.nn.ConvTranspose2d(3, 5, 2).weight)
        1
    """
    if parameter.ndim < 2:
        return None
    if owner is None:
        return 0
    layout = layout_of(owner, label, parameter)
    return None if layout is None else layout.output_axis


def no_axis(entry: Entry, axis: str = "output_axis") -> str | None:
    """Why a lever that needs the axis cannot take the entry; None when the axis is known or not needed.

    A tensor of one dimension is one unit, and so is a scale, a bias or a table of positions, which has no inputs. Without an
    owner PyTorch's habit holds.
    """
    if entry.parameter.ndim < 2 or entry.owner is None or getattr(entry, axis) is not None:
        return None
    if axis == "output_axis" and entry.role in ("bias", "scale", "position"):
        return None
    which = "outputs" if axis == "output_axis" else "inputs"
    owner = type(entry.owner).__name__
    return f"which dimension of this parameter of {owner} are {which} is not known (register_layout says it)"


def _holders(model: nn.Module) -> Iterator[tuple[str, str, nn.Module | None, str, Tensor]]:
    """(name, prefix, owner, attribute, parameter) by all names; a list of parameters belongs to the module that holds it."""
    modules: dict[str, nn.Module] = {}
    for prefix, module in own_modules(model, remove_duplicate=False):
        modules[prefix] = module
        for label, parameter in module.named_parameters(recurse=False):
            path, owner, attribute = prefix, module, label
            while isinstance(owner, nn.ParameterList | nn.ParameterDict) and path:
                path, _, last = path.rpartition(".")
                owner, attribute = modules[path], f"{last}.{attribute}"
            bare = isinstance(owner, nn.ParameterList | nn.ParameterDict)  # nothing but tensors: no owner
            yield f"{prefix}.{label}".removeprefix("."), path, None if bare else owner, attribute, parameter


def _layout(
    owner: nn.Module | None, attribute: str, parameter: Tensor, names: Sequence[str]
) -> tuple[Layout | None, str]:
    """The layout and, where it is no weight, the reason."""
    if owner is None:
        return Layout(0 if parameter.ndim > 1 else None, 1 if parameter.ndim > 1 else None), ""
    found = layout_of(owner, attribute, parameter)
    table = found is None or isinstance(owner, nn.Embedding | nn.EmbeddingBag)
    if table and any(is_position_name(name) for name in names):
        return Layout(role="position"), NO_WEIGHT["position"]
    if found is None:
        return None, (
            f"{attribute} of {type(owner).__name__} is not known as a weight of a product (include= takes it by name, "
            "register_layout makes it known)"
        )
    return found, NO_WEIGHT.get(found.role, "")


def _memory(parameter: Tensor) -> tuple[object, ...] | None:
    """The elements that a parameter lies on, whatever the order of its dimensions; None where that cannot be told."""
    if type(parameter) not in (Tensor, nn.Parameter) or parameter.layout is not torch.strided or parameter.is_meta:
        return None
    if not parameter.numel() or not parameter.data_ptr():
        return None
    shape = sorted((stride, size) for stride, size in zip(parameter.stride(), parameter.shape, strict=True) if size > 1)
    return parameter.data_ptr(), parameter.dtype, str(parameter.device), tuple(shape)


def _computed_in(model: nn.Module) -> dict[int, Reparametrised]:
    """Per part of a reparametrised weight, by id, what is computed from it."""
    found: dict[int, Reparametrised] = {}
    for _, module in own_modules(model):
        for computed in found_in(module):
            found |= {id(part): computed for part in computed.parts.values()}
    return found


def _entries_of_module(model: nn.Module) -> Iterator[Entry]:
    held: dict[int, list[tuple[str, nn.Module | None, str, Tensor, int]]] = {}
    for place, (name, _, owner, attribute, parameter) in enumerate(_holders(model)):
        held.setdefault(id(parameter), []).append((name, owner, attribute, parameter, place))
    computed = _computed_in(model)
    memory: dict[tuple[object, ...], str] = {}
    for key, uses in held.items():
        names = [name for name, *_ in uses]
        first, tensor = names[0], uses[0][3]
        shared = None if (lies := _memory(tensor)) is None else memory.setdefault(lies, first)
        layouts = [_layout(owner, attribute, tensor, names) for _, owner, attribute, *_ in uses]
        owners = [owner for _, owner, *_ in uses]
        owner, (layout, why) = owners[0], layouts[0]
        if weight := next((number for number, (_, reason) in enumerate(layouts) if not reason), 0):
            owner, (layout, why) = owners[weight], layouts[weight]
        part = computed.get(key)
        if part is not None:
            owner, layout, why = part.module, *_layout_of_part(part, tensor)
            owners = [owner]
        known = layout or Layout(role="other")
        yield Entry(
            first,
            tensor,
            known.output_axis if tensor.ndim > 1 else None,
            aliases=tuple(names[1:]),
            owner=owner,
            input_axis=known.input_axis if tensor.ndim > 1 else None,
            stack_axis=known.stack_axis,
            role="unknown" if layout is None else known.role,
            why=why,
            owners=tuple({id(each): each for each in (owner, *owners) if each is not None}.values()),
            places=(uses[0][4], uses[-1][4]),
            view_of=None if shared in (None, first) else shared,
            computed=part,
        )


def _layout_of_part(part: Reparametrised, tensor: Tensor) -> tuple[Layout | None, str]:
    """A part that is laid out as the weight is a weight by itself; where it is not, the reason."""
    label = next(name for name, each in part.parts.items() if each is tensor)
    if part.role_of(label) == "scale":
        return Layout(role="scale"), f"the gain of {part.label} under {part.how}, no weight of a product"
    if not part.known:
        return None, f"a part of {part.label} under the parametrization {part.how}, which is not known"
    return _layout(part.module, part.label, tensor, (part.label,))


def computed_weights(listed: Sequence[Entry]) -> list[Entry]:
    """`listed` with every weight that is computed from parts (weight_norm, spectral_norm, ...) in the place of its first part.

    The entry's `parameter` is the weight that the product uses, differentiable by the parts; its name is the one of the plain
    weight (`0.weight`), its aliases are the parts'. Parts of unknown parametrizations stay, to be left out with their reason.
    """
    held: dict[int, list[Entry]] = {}
    for entry in listed:
        if entry.computed is not None and entry.computed.known:
            held.setdefault(id(entry.computed), []).append(entry)
    if not held:
        return list(listed)
    result: list[Entry] = []
    for entry in listed:
        computed = entry.computed
        if computed is None or not computed.known:
            result.append(entry)
            continue
        parts = held[id(computed)]
        if entry is not parts[0]:
            continue
        label = next(name for name, each in computed.parts.items() if each is entry.parameter)
        names = [
            name.removesuffix(label) + computed.label for name in (entry.name, *entry.aliases) if name.endswith(label)
        ]
        with torch.enable_grad():
            weight = computed.weight()
        layout, why = _layout(computed.module, computed.label, weight, names)
        known = layout or Layout(role="other")
        aliases = [*names[1:], *(name for part in parts for name in (part.name, *part.aliases))]
        result.append(
            Entry(
                names[0],
                weight,
                known.output_axis,
                aliases=tuple(aliases),
                owner=computed.module,
                input_axis=known.input_axis,
                stack_axis=known.stack_axis,
                role="unknown" if layout is None else known.role,
                why=why,
                owners=(computed.module,),
                places=entry.places,
                computed=computed,
            )
        )
    return result


def _entries_by_name(names: Sequence[str], tensors: Sequence[Tensor]) -> Iterator[Entry]:
    """Entries of tensors whose model is not at hand, by their names without what wrappers put into them."""
    for name, own, tensor in zip(names, without_marks(names), tensors, strict=True):
        part = ".parametrizations." in f".{own}"
        yield Entry(
            own,
            tensor,
            output_axis(None, tensor),
            aliases=() if own == name else (name,),
            role="other" if part else "weight",
            why="a part of a reparametrised weight, which only the model can tell: pass model=..." if part else "",
        )


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


def group_places(optimizer: torch.optim.Optimizer) -> dict[int, int]:
    """The place of the group of every parameter, by the parameter's id.

    Example:
        >>> weight = torch.nn.Parameter(torch.zeros(1))
        >>> group_places(torch.optim.SGD([weight], lr=0.1)) == {id(weight): 0}
        True
    """
    return {id(one): at for at, group in enumerate(optimizer.param_groups) for one in group["params"]}


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
