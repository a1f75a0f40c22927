"""Names without wrappers: what `torch.compile`, data parallelism, averaging and sharding put around a network.

A wrapper holds the network as a child, so the network's names get a part that is not its own (`_orig_mod.`, `module.`).
Masks, files, rows and patterns use the network's own names, wherever the wrapper stands.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from torch import nn
from torch.optim.swa_utils import AveragedModel

SHARDED = "_fsdp_wrapped_module"  # FullyShardedDataParallel, the one that wraps; `fully_shard` renames nothing
MARKS = ("_orig_mod", SHARDED, "_checkpoint_wrapped_module")  # torch.compile, FSDP, recomputed activations
FABRIC = ("_original_module", "_forward_module")  # Lightning Fabric holds the network under both
HOLDERS = (nn.parallel.DistributedDataParallel, nn.DataParallel, AveragedModel)  # the network is their `module`


def _inner_labels(module: nn.Module) -> tuple[str, ...]:
    """Under which names `module` holds the network it wraps; none when it is no wrapper."""
    held = module._modules
    for mark in MARKS:
        if isinstance(held.get(mark), nn.Module):
            return (mark,)
    if all(isinstance(held.get(label), nn.Module) for label in FABRIC):
        return FABRIC
    return ("module",) if isinstance(module, HOLDERS) else ()


def is_wrapper(module: nn.Module) -> bool:
    """True when `module` wraps a network: what it runs may be a copy, a graph or parts of what it holds."""
    return bool(_inner_labels(module))


def is_sharding_wrapper(module: nn.Module) -> bool:
    """True for a FullyShardedDataParallel, whose parameters are flat parts outside its own forward pass."""
    return _inner_labels(module) == (SHARDED,)


def unwrapped(model: nn.Module) -> nn.Module:
    """The network inside wrappers: `torch.compile`, DistributedDataParallel, DataParallel, AveragedModel, Fabric's.

    It keeps its own names and runs by itself; so a FullyShardedDataParallel, which gathers what the network
    computes with, stays (`own_modules` and `own_names` look through it all the same).

    Example:
        >>> net = nn.Linear(2, 2)
        >>> unwrapped(nn.DataParallel(AveragedModel(net))).weight.equal(net.weight)
        True
    """
    while (labels := _inner_labels(model)) and labels != (SHARDED,):
        inner = model._modules[labels[0]]
        assert inner is not None
        model = inner
    return model


def _own_paths(model: nn.Module) -> Iterator[tuple[str, str, nn.Module]]:
    """(name with wrappers, own name, module) of every module inside `model`, by all its names, wrappers too."""
    seen: dict[str, tuple[str, tuple[str, ...]]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        parent, _, label = name.rpartition(".")
        own = ""
        if name:
            above, inner = seen[parent]
            own = above if label in inner else f"{above}.{label}".removeprefix(".")
        seen[name] = (own, _inner_labels(module))
        yield name, own, module


def own_modules(model: nn.Module, *, remove_duplicate: bool = True) -> Iterator[tuple[str, nn.Module]]:
    """`unwrapped(model).named_modules()` without wrappers at any depth, by the network's own names.

    Example:
        >>> net = nn.Sequential(nn.DataParallel(nn.Sequential(nn.ReLU())))
        >>> [name for name, _ in net.named_modules()], [name for name, _ in own_modules(net)]
        (['', '0', '0.module', '0.module.0'], ['', '0', '0.0'])
    """
    seen: set[int | tuple[str, int]] = set()
    for _, own, module in _own_paths(unwrapped(model)):
        key = id(module) if remove_duplicate else (own, id(module))  # Fabric's wrapper holds it under two names
        if key not in seen and not _inner_labels(module):
            seen.add(key)
            yield own, module


def own_names(model: nn.Module, keys: Iterable[str]) -> dict[str, str]:
    """The network's own name for each key of `unwrapped(model).state_dict()`.

    Raises:
        ValueError: two keys would have one name.

    Example:
        >>> net = nn.Sequential(nn.DataParallel(nn.Linear(2, 2)))
        >>> own_names(net, net.state_dict())
        {'0.module.weight': '0.weight', '0.module.bias': '0.bias'}
    """
    paths = {name: own for name, own, _ in _own_paths(unwrapped(model))}
    found: dict[str, str] = {}
    holder: dict[str, str] = {}
    for key in keys:
        path = key.rpartition(".")[0]
        while path not in paths:
            path = path.rpartition(".")[0]
        rest = key.removeprefix(path).removeprefix(".")
        found[key] = f"{paths[path]}.{rest}".removeprefix(".")
        if (other := holder.setdefault(found[key], key)) != key:
            raise ValueError(f"{other} and {key} are both {found[key]} without their wrappers; unwrap the inner one")
    return found


def own_state(model: nn.Module) -> dict[str, Any]:
    """The state dict of the network inside wrappers, by its own names; an AveragedModel's counter is not part of it.

    Example:
        >>> list(own_state(nn.DataParallel(nn.Linear(2, 2))))
        ['weight', 'bias']
    """
    state = unwrapped(model).state_dict()
    return {own: state[key] for key, own in own_names(model, state).items()}


def load_own_state(model: nn.Module, state: Mapping[str, Any]) -> None:
    """Put a state of `own_state` into `model`, wrapped as it may be.

    Raises:
        RuntimeError: names or shapes are not the network's.
    """
    network = unwrapped(model)
    keys = {own: key for key, own in own_names(model, network.state_dict()).items()}
    network.load_state_dict({keys.get(own, own): tensor for own, tensor in state.items()}, strict=True)


def without_marks(names: Sequence[str]) -> list[str]:
    """The names without what wrappers put into them, where the model itself is not at hand.

    The labels of `torch.compile`, FSDP and recomputation go wherever they stand; `module.` goes when every name
    begins with it. Names stay as they are when two would become one.

    Example:
        >>> without_marks(["module._orig_mod.0.weight", "module._orig_mod.module.bias"])
        ['0.weight', 'module.bias']
        >>> without_marks(["module.weight", "head.weight"])
        ['module.weight', 'head.weight']
    """
    bare = [".".join(part for part in name.split(".") if part not in MARKS) for name in names]
    if all(name.startswith("module.") for name in bare):
        bare = [name.removeprefix("module.") for name in bare]
    return bare if len(set(bare)) == len(set(names)) else list(names)
