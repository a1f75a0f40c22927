"""Forward hooks that round what Linear and convolution layers give, and the gradients that come back to them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from trimtab.inexact import RoundedBackward
from trimtab.parameters import Entry
from trimtab.parameters.layouts import is_linear
from trimtab.parameters.wrappers import own_modules
from trimtab.precision.straight_through import _Rounded

LAYERS = (
    nn.Linear,
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)

Round = Callable[[Tensor, str, str, str], Tensor]
"""(tensor, "forward" or "backward", name of the layer, "training" or "evaluation") -> rounded tensor."""


_NOT_CALLED = nn.modules.linear.NonDynamicallyQuantizableLinear


def _is_matrix(parameter: Tensor) -> bool:
    return sum(size > 1 for size in parameter.shape) > 1


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
        held: dict[int, list[Entry]] = {}
        for entry in chosen:
            for owner in entry.owners:
                held.setdefault(id(owner), []).append(entry)
        others: list[str] = []
        for name, module in own_modules(model):
            weights = [entry for entry in held.get(id(module), ()) if entry.role in ("weight", "unknown")]
            # the projection inside nn.MultiheadAttention is never called itself
            called = (isinstance(module, LAYERS) or is_linear(module)) and not isinstance(module, _NOT_CALLED)
            if called and any(entry.parameter.ndim > 1 for entry in weights):
                self._hooks.append(module.register_forward_hook(self._hook_of(name)))
            elif not called and not isinstance(module, nn.Embedding | nn.EmbeddingBag):
                labels = [entry.name.removeprefix(f"{name}.") for entry in weights if _is_matrix(entry.parameter)]
                if labels:
                    others.append(f"{name or 'the model itself'} ({type(module).__name__}: {', '.join(labels)})")
        if not self._hooks:
            raise ValueError(
                f"activations are rounded at the outputs of Linear and convolution layers, and the rule picks the weight of "
                f"none in {type(model).__name__}"
            )

        if others:
            more = f" and {len(others) - 8} more" if len(others) > 8 else ""
            warnings.warn(
                "activations are rounded at the outputs of Linear and convolution layers; products with weights elsewhere are "
                f"not: {'; '.join(others[:8])}{more}",
                stacklevel=2,
            )

    def _hook_of(self, name: str) -> Callable[[nn.Module, Any, Tensor], Tensor]:
        mark = RoundedBackward(f"LowPrecision, at {name}", "lever.full_precision()") if self._backward else None

        def hook(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
            if not self._active():  # asked here, so that what is built in full precision stays so
                return output
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
