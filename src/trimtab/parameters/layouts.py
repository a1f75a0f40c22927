"""What a parameter is to its owner, and which of its dimensions are outputs and inputs.

Two or more dimensions do not make a weight of a product, and the number of dimensions does not say which way a weight lies:
the module that holds it does. Modules that are not known here are named by `register_layout`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from trimtab.checks import one_of, whole

ROLES = ("weight", "bias", "scale", "position", "other")
"""What a parameter can be; only a "weight" is a factor of a product (or the table of an embedding)."""

NO_WEIGHT = {
    "bias": "a bias, no weight of a product",
    "scale": "a scale, no weight of a product",
    "position": "a table of positions, no weight of a product",
    "other": "no weight of a product",
}


@dataclass(frozen=True)
class Layout:
    """How one parameter of a module lies.

    Args:
        output_axis: dimension that indexes output units; None where there is none.
        input_axis: dimension over which a product sums, along which N:M groups run; None where there is no single one.
        stack_axis: dimension along which whole matrices are stacked, one for each expert; None for a single matrix.
        role: "weight" (default), "bias", "scale", "position" or "other".

    Raises:
        ValueError: an unknown role, a negative dimension, or two of the same.

    Example:
        >>> Layout(output_axis=2, input_axis=1, stack_axis=0)  # experts, inputs, outputs
        Layout(output_axis=2, input_axis=1, stack_axis=0, role='weight')
    """

    output_axis: int | None = None
    input_axis: int | None = None
    stack_axis: int | None = None
    role: str = "weight"

    def __post_init__(self) -> None:
        one_of("role", self.role, ROLES)
        axes = [axis for axis in (self.output_axis, self.input_axis, self.stack_axis) if axis is not None]
        for axis in axes:
            whole(f"a dimension of {self}", axis, 0)
        if len(set(axes)) < len(axes):
            raise ValueError(f"outputs, inputs and stack must be different dimensions, got {self}")

    def check(self, parameter: Tensor, name: str) -> None:
        """ValueError where a dimension is one that the parameter lacks."""
        for axis in (self.output_axis, self.input_axis, self.stack_axis):
            if axis is not None and axis >= parameter.ndim:
                raise ValueError(
                    f"{name} has shape {tuple(parameter.shape)}, which has no dimension {axis} as in {self}"
                )


ROWS = Layout(output_axis=0, input_axis=1)
COLUMNS = Layout(output_axis=1, input_axis=0)
STACKED_ROWS = Layout(output_axis=1, input_axis=2, stack_axis=0)
STACKED_COLUMNS = Layout(output_axis=2, input_axis=1, stack_axis=0)
SCALE, BIAS = Layout(role="scale"), Layout(role="bias")

Layouts = Mapping[str, Layout]
_NORM: Layouts = {"weight": SCALE, "bias": BIAS}
_ROWS: Layouts = {"weight": ROWS, "bias": BIAS}

_BY_TYPE: dict[type[nn.Module], Layouts] = {
    nn.Linear: _ROWS,
    nn.Conv1d: _ROWS,
    nn.Conv2d: _ROWS,
    nn.Conv3d: _ROWS,
    nn.ConvTranspose1d: {"weight": COLUMNS, "bias": BIAS},
    nn.ConvTranspose2d: {"weight": COLUMNS, "bias": BIAS},
    nn.ConvTranspose3d: {"weight": COLUMNS, "bias": BIAS},
    nn.Embedding: {"weight": ROWS},
    nn.EmbeddingBag: {"weight": ROWS},
    nn.Bilinear: {"weight": Layout(output_axis=0), "bias": BIAS},
    nn.MultiheadAttention: {"*_weight": ROWS, "in_proj_bias": BIAS, "bias_k": BIAS, "bias_v": BIAS},
    nn.RNNBase: {"weight_*": ROWS, "bias_*": BIAS},
    nn.RNNCellBase: {"weight_*": ROWS, "bias_*": BIAS},
    nn.LayerNorm: _NORM,
    nn.RMSNorm: _NORM,
    nn.GroupNorm: _NORM,
    nn.modules.batchnorm._NormBase: _NORM,
    nn.PReLU: {"weight": SCALE},
}
_EXPERT_BIASES: Layouts = {"*_bias": BIAS}
_EXPERT_COLUMNS: Layouts = {"gate_up_proj": STACKED_COLUMNS, "down_proj": STACKED_COLUMNS, **_EXPERT_BIASES}
_EXPERT_ROWS: Layouts = {
    **dict.fromkeys(("gate_up_proj", "gate_proj", "up_proj", "down_proj"), STACKED_ROWS),
    **_EXPERT_BIASES,
}
_OF_TRANSFORMERS: dict[str, Layouts] = {
    "Conv1D": {"weight": COLUMNS, "bias": BIAS},
    "Llama4TextExperts": _EXPERT_COLUMNS,
    "*ParallelExperts": {"weight": STACKED_ROWS},
    "*Top[Kk]Router": {"weight": ROWS, "bias": BIAS},
}
"""Classes of transformers by name, so that nothing is imported."""

_NAMES = ("wpe", "rel_embeddings", "relative_attention_bias", "*relative_position_bias_table")
_WORDS = re.compile(r"(^|_)(pos|positions?|positional|distance)(_|$)")


def register_layout(owner: type[nn.Module], layouts: Layouts) -> None:
    """Say how the parameters of a module class of your own lie; subclasses inherit it.

    Args:
        owner: the class whose instances hold the parameters.
        layouts: per attribute name, or shell pattern of such, a `Layout`. Registering a class again replaces what was said.

    Raises:
        TypeError: no module class, or not a mapping of names to `Layout`.

    Example:
        >>> import torch
        >>> from trimtab.parameters import Layout, register_layout, select
        >>> class Experts(nn.Module):
        ...     def __init__(self) -> None:
        ...         super().__init__()
        ...         self.inner = nn.Parameter(torch.zeros(2, 8, 4))
        >>> select(Experts()).chosen
        []
        >>> register_layout(Experts, {"inner": Layout(output_axis=2, input_axis=1, stack_axis=0)})
        >>> [(entry.name, entry.output_axis) for entry in select(Experts()).chosen]
        [('inner', 2)]
    """
    if not (isinstance(owner, type) and issubclass(owner, nn.Module)):
        raise TypeError(f"register_layout needs a class of modules, got {owner!r}")
    if not isinstance(layouts, Mapping) or not all(
        isinstance(name, str) and isinstance(layout, Layout) for name, layout in layouts.items()
    ):
        raise TypeError(f"layouts must map attribute names to Layout, got {layouts!r}")
    _BY_TYPE[owner] = dict(layouts)


def _of_transformers(kind: type[nn.Module], owner: nn.Module) -> Layouts | None:
    if kind.__module__.partition(".")[0] not in ("transformers", "transformers_modules"):
        return None
    for pattern, layouts in _OF_TRANSFORMERS.items():
        if fnmatchcase(kind.__name__, pattern):
            return layouts
    transposed = getattr(owner, "is_transposed", None)  # every fused expert of transformers says how it lies
    if isinstance(transposed, bool) and "Experts" in kind.__name__:
        return _EXPERT_COLUMNS if transposed else _EXPERT_ROWS
    return None


def layout_of(owner: nn.Module, label: str, parameter: Tensor) -> Layout | None:
    """How the parameter that `owner` holds under the attribute `label` lies; None when the owner does not tell.

    Example:
        >>> layer = nn.ConvTranspose2d(3, 5, 2)
        >>> layout_of(layer, "weight", layer.weight)
        Layout(output_axis=1, input_axis=0, stack_axis=None, role='weight')
    """
    for kind in type(owner).__mro__:
        if not issubclass(kind, nn.Module):
            continue
        for layouts in (_BY_TYPE.get(kind), _of_transformers(kind, owner)):
            for pattern, layout in (layouts or {}).items():
                if fnmatchcase(label, pattern):
                    if not is_lazy(parameter):  # it has no shape before the first forward pass
                        layout.check(parameter, f"{label} of {type(owner).__name__}")
                    return layout
    return None


def is_linear(module: nn.Module) -> bool:
    """Whether the module is a linear layer: `nn.Linear`, or transformers' Conv1D."""
    return isinstance(module, nn.Linear) or any(
        kind.__name__ == "Conv1D" and _of_transformers(kind, module) is not None for kind in type(module).__mro__
    )


def is_position_name(name: str) -> bool:
    """Whether a qualified name is that of a table of positions, by the names that transformers, timm and others use.

    Example:
        >>> is_position_name("transformer.wpe.weight"), is_position_name("encoder.embed_positions.weight")
        (True, True)
        >>> is_position_name("composer.weight")
        False
    """
    parts = name.lower().split(".")[-3:]
    return any(_WORDS.search(part) or any(fnmatchcase(part, known) for known in _NAMES) for part in parts)
