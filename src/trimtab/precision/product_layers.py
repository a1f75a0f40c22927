"""The layers of a model whose products are computed on rounded operands, while a lever is attached."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from trimtab.inexact import RoundedBackward
from trimtab.parameters import Entry
from trimtab.parameters.layouts import is_linear
from trimtab.parameters.wrappers import own_modules
from trimtab.precision.layers import CONVOLUTIONS, LAYERS, layers_of
from trimtab.precision.lowering import check_dtype, convolved, convolved_transposed, reason_against_layer, with_bias
from trimtab.precision.operands import LayerOperands, OperandRounding
from trimtab.precision.products import Lowering, QuantisedProduct

_FORWARD: dict[type[nn.Module], Any] = {kind: kind.forward for kind in LAYERS if kind is not nn.ConvTranspose3d}
_WHY_EAGER = (
    "operands of products are rounded one by one, with numbers drawn for each, which no compiled graph can hold"
)
_LINEAR = (F.linear,)
_MATMUL = (torch.matmul, torch.bmm, torch.mm, Tensor.matmul, Tensor.__matmul__, Tensor.bmm, Tensor.mm)


class ProductLayers:
    """Computes the products of the layers whose weight is among `chosen` on rounded operands, in passes begun while `active()`.

    Linear, convolutions, transposed convolutions of one and two dimensions, transformers' Conv1D, and stacked experts,
    whose forward pass is then the one that multiplies expert by expert. `torch.compile` breaks its graph at each.

    Args:
        model: the network.
        chosen: weights that count.
        rounding: the recipe and what it draws.
        active: whether a pass that begins now is rounded.

    Attributes:
        left_out: weights of layers that stay in full precision, with the reason.

    Raises:
        TypeError: weights of float64.
        ValueError: there is no such layer, or all are kept.
    """

    def __init__(
        self, model: nn.Module, chosen: Sequence[Entry], rounding: OperandRounding, active: Callable[[], bool]
    ) -> None:
        self.rounding, self.active = rounding, active
        self.left_out: list[tuple[Entry, str]] = []
        self._replaced: list[nn.Module] = []
        self._hooks: list[RemovableHandle] = []
        weights = {
            id(owner): [entry for entry in chosen if any(each is owner for each in entry.owners)]
            for entry in chosen for owner in entry.owners
        }  # fmt: skip
        layers, others, unseen = layers_of(model, chosen)
        experts = {
            name: module
            for name, module in others.items()
            if any(entry.stack_axis is not None for entry in weights[id(module)])
        }
        names = tuple(name for name, _ in own_modules(model) if name in layers or name in experts)
        recipe = rounding.recipe
        kept, wanted = recipe.keep.reasons(names), {}
        for name in names:
            module = layers[name] if name in layers else experts[name]
            reason = kept.get(name)
            if reason is None:
                reason = None if name in experts or _is_conv1d(module) else reason_against_layer(module, _FORWARD)
            if reason is not None:
                self.left_out += [(entry, f"matmul={recipe.name!r}: {reason}") for entry in weights[id(module)]]
                continue
            check_dtype(*(entry.parameter for entry in weights[id(module)]))
            wanted[name] = module
        if not wanted:
            held = f"all {len(names)} stay in full precision ({self.left_out[0][1]})" if names else "there is none"
            raise ValueError(
                f"matmul={recipe.name!r} computes the products of Linear, convolution and expert layers whose weight the rule "
                f"picks, and in {type(model).__name__} {held}"
            )
        elsewhere = [words for words in unseen.split("; ") if words and words.split(" (")[0] not in experts]
        if elsewhere:
            warnings.warn(
                f"matmul={recipe.name!r} computes the products of Linear, convolution and expert layers; products with weights "
                f"elsewhere stay in full precision: {'; '.join(elsewhere)}",
                stacklevel=2,
            )
        labels: list[str] = []
        for name, module in wanted.items():
            stacked = [entry.name for entry in weights[id(module)] if entry.stack_axis is not None]
            labels += stacked if name in experts else [name]
        rounding.begin(labels)
        for name, module in wanted.items():  # nothing is touched before all is found to be right
            module.forward = Forward(module, name, self)
            self._hooks.append(module.register_forward_pre_hook(_seen))
            self._replaced.append(module)

    def __len__(self) -> int:
        return len(self._replaced)

    def multiply(
        self, layer: str, x: Tensor, weight: Tensor, lower: Lowering | None = None, *, training: bool
    ) -> Tensor:
        """`x weight'` on rounded operands: (..., T, I) and (..., O, I) -> (..., T, O)."""
        check_dtype(x, weight)
        called = layer or "the model"
        if torch._C._are_functorch_transforms_active():  # noqa: SLF001  (no public word for it)
            raise RuntimeError(
                f"torch.func's transforms do not go through the rounded products of {called}; use lever.full_precision()"
            )
        kind = x.device.type
        if torch.is_autocast_enabled(kind):
            dtype = torch.get_autocast_dtype(kind)
            x, weight = x.to(dtype), weight.to(dtype)
        if x.dtype != weight.dtype:
            raise TypeError(f"the input of {called} is {x.dtype}, its weight {weight.dtype}; both must be the same")
        operands = LayerOperands(self.rounding, layer, training=training)
        mark = RoundedBackward(f"LowPrecision, at {layer}", "lever.full_precision()")
        y: Tensor = QuantisedProduct.apply(x, weight, operands, lower, mark)  # type: ignore[no-untyped-call]
        return y

    def remove(self) -> None:
        """Give the layers their own forward passes back."""
        for module in self._replaced:
            module.__dict__.pop("forward", None)
        for hook in self._hooks:
            hook.remove()
        self._replaced, self._hooks = [], []


def _seen(module: nn.Module, inputs: Any) -> None:
    """A hook that does nothing: torch's fused encoder layer, which never calls its layers, stands back where it sees one."""


def _is_conv1d(module: nn.Module) -> bool:
    return is_linear(module) and not isinstance(module, nn.Linear)


class Forward:
    """A layer's forward pass on rounded operands; copies of the layer get one of their own."""

    def __init__(self, module: nn.Module, name: str, products: ProductLayers) -> None:
        self.module, self.name, self.products = module, name, products

    @torch.compiler.disable(reason=_WHY_EAGER)  # type: ignore[no-untyped-call, untyped-decorator]
    def __call__(self, *args: Any, **given: Any) -> Any:
        """What the layer's class would compute, with its products on rounded operands."""
        module = self.module
        if not self.products.active() or any(each.is_meta for each in module.parameters(recurse=False)):
            return type(module).forward(module, *args, **given)
        multiply = partial(self.products.multiply, self.name, training=module.training)
        if isinstance(module, LAYERS) or _is_conv1d(module):
            given = {"input" if name == "x" else name: value for name, value in given.items()}  # transformers' Conv1D
            return _computed(module, multiply, *args, **given)
        eager = getattr(type(module).forward, "__wrapped__", type(module).forward)
        with _ExpertProducts(module, self.name, self.products):
            return eager(module, *args, **given)

    def __deepcopy__(self, memo: dict[int, Any]) -> Forward:
        return Forward(memo.get(id(self.module), self.module), self.name, self.products)


def _computed(module: Any, multiply: Any, input: Tensor, output_size: list[int] | None = None) -> Tensor:
    """A layer's output, with `multiply` for its product."""
    if input.is_nested:  # nn.TransformerEncoder's way with padding, in evaluation
        return torch.nested.as_nested_tensor([_computed(module, multiply, one) for one in input.unbind()])
    bias = module.bias
    if isinstance(module, CONVOLUTIONS):
        return with_bias(convolved(module, input, multiply), bias, 1 - module.weight.ndim)
    if not isinstance(module, nn.Linear | nn.ConvTranspose1d | nn.ConvTranspose2d):  # transformers' Conv1D
        return with_bias(
            multiply(input.flatten(0, -2), module.weight.mT).view(*input.shape[:-1], module.weight.shape[1]), bias
        )
    if isinstance(module, nn.Linear):
        rows = input.flatten(0, -2) if input.ndim > 1 else input.unsqueeze(0)
        return with_bias(multiply(rows, module.weight).view(*input.shape[:-1], module.out_features), bias)
    return with_bias(convolved_transposed(module, input, output_size, multiply), bias, 1 - module.weight.ndim)


class _ExpertProducts(TorchFunctionMode):
    """Within it the products with a module's stacked weights are computed on rounded operands."""

    def __init__(self, module: nn.Module, name: str, products: ProductLayers) -> None:
        super().__init__()
        self._stacked = {
            f"{name}.{label}": parameter
            for label, parameter in module.named_parameters(recurse=False)
            if parameter.ndim == 3
        }
        self._training, self._products = module.training, products

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if (func in _LINEAR or func in _MATMUL) and len(args) >= 2:
            label = self._label(args[1], transposed=func in _MATMUL)
            if label is not None:
                x, weight = args[0], args[1].mT if func in _MATMUL else args[1]
                bias = (args[2] if len(args) > 2 else kwargs.get("bias")) if func in _LINEAR else None
                return with_bias(self._products.multiply(label, x, weight, training=self._training), bias)
        return func(*args, **kwargs)

    def _label(self, weight: Any, *, transposed: bool) -> str | None:
        """Whose matrix this is: one of the stack, or the whole stack."""
        if not isinstance(weight, Tensor):
            return None
        for label, parameter in self._stacked.items():
            if weight is parameter or weight._base is parameter:  # noqa: SLF001  (torch has no other word for it)
                return label
        alike = [label for label, parameter in self._stacked.items() if weight.shape[-2:] == parameter.shape[-2:]]
        return alike[0] if alike else None
