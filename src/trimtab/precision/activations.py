"""Forward hooks that round what Linear and convolution layers give, and the gradients that come back to them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from trimtab.inexact import RoundedBackward
from trimtab.parameters import Entry
from trimtab.precision.layers import layers_of
from trimtab.precision.straight_through import _Rounded

Round = Callable[[Tensor, str, str, str], Tensor]
"""(tensor, "forward" or "backward", name of the layer, "training" or "evaluation") -> rounded tensor."""


class ActivationHooks:
    """Rounds the outputs of the layers whose weight is among `chosen`, straight through, in passes begun while `active()`.

    Products with chosen weights elsewhere are named in a warning.

    Raises:
        ValueError: there is no such layer.
    """

    def __init__(
        self, model: nn.Module, chosen: Sequence[Entry], round: Round, active: Callable[[], bool], *, backward: bool
    ) -> None:
        self._round, self._active = round, active
        self._backward = backward
        self._hooks: list[RemovableHandle] = []
        layers, _, others = layers_of(model, chosen)
        for name, module in layers.items():
            self._hooks.append(module.register_forward_hook(self._hook_of(name)))
        if not self._hooks:
            raise ValueError(
                f"activations are rounded at the outputs of Linear and convolution layers, and the rule picks the weight of "
                f"none in {type(model).__name__}"
            )

        if others:
            warnings.warn(
                "activations are rounded at the outputs of Linear and convolution layers; products with weights elsewhere are "
                f"not: {others}",
                stacklevel=2,
            )

    def _hook_of(self, name: str) -> Callable[[nn.Module, Any, Tensor], Tensor]:
        mark = RoundedBackward(f"LowPrecision, at {name}", "lever.full_precision()") if self._backward else None

        def hook(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
            if not self._active():  # asked here, so that what is built in full precision stays so
                return output
            if output.is_nested:  # nn.TransformerEncoder's way with padding, in evaluation
                return torch.nested.as_nested_tensor([hook(module, inputs, one) for one in output.unbind()])
            mode = "training" if module.training else "evaluation"
            rounded: Tensor = _Rounded.apply(  # type: ignore[no-untyped-call]
                output,
                lambda value: self._round(value, "forward", name, mode),
                lambda value: self._round(value, "backward", name, mode),
                mark,
            )
            return rounded

        return hook

    def __len__(self) -> int:
        return len(self._hooks)

    def remove(self) -> None:
        """Take the hooks off."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
