"""What `LowPrecision` puts into a model while it is attached: products of layers, hooks on outputs, reduced gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch.distributed as dist
from torch import Tensor, nn

from trimtab.collectives import is_distributed
from trimtab.parameters import Entry
from trimtab.precision.activations import ActivationHooks
from trimtab.precision.communication import QuantisedReduction, quantised_reduction
from trimtab.precision.operands import OperandRounding
from trimtab.precision.product_layers import ProductLayers
from trimtab.precision.tensor_rounding import TensorRounding


class InModel:
    """Puts in what is asked for, and takes it out again.

    Args:
        rounding: formats of "forward" and "backward", and of gradients where they are reduced.
        operands: how operands of products are rounded; None leaves the products.

    Attributes:
        by_id: entries that count now, by the identity of their parameter.
        left_out: weights of layers whose products stay in full precision, with the reason.
    """

    def __init__(self, rounding: TensorRounding, operands: OperandRounding | None) -> None:
        self.rounding, self.operands = rounding, operands
        self.left_out: list[tuple[Entry, str]] = []
        self._products: ProductLayers | None = None
        self._hooks: ActivationHooks | None = None
        self._reduction: QuantisedReduction | None = None
        self.by_id: dict[int, Entry] = {}

    @property
    def reduces(self) -> bool:
        """Whether gradients are rounded where they are reduced."""
        return self._reduction is not None

    def bind(
        self,
        model: nn.Module | None,
        chosen: Sequence[Entry],
        products: Callable[[], bool],
        outputs: Callable[[], bool],
        *,
        before_reduce: bool,
    ) -> None:
        """Put in; a pass that begins while `products()`, or `outputs()`, is rounded. ValueError without the model it takes."""
        if self.operands is not None:
            if model is None:
                raise ValueError("products are computed in the model's layers; give attach(..., model=model)")
            self._products = ProductLayers(model, chosen, self.operands, products)
            self.left_out = self._products.left_out
        if {"forward", "backward"} & self.rounding.formats.keys():
            if model is None:
                raise ValueError("activations are rounded in the model; give attach(..., model=model)")
            backward = "backward" in self.rounding.formats
            self._hooks = ActivationHooks(model, chosen, self._round_output, outputs, backward=backward)
        if before_reduce:
            self._reduction = quantised_reduction(model, self._round_own_gradient)

    def unbind(self) -> None:
        """Take out."""
        if self._hooks is not None:
            self._hooks.remove()
        if self._products is not None:
            self._products.remove()
        if self._reduction is not None:
            self._reduction.round = None
        self._hooks = self._reduction = self._products = None
        self.left_out = []

    def _round_own_gradient(self, parameter: Tensor, gradient: Tensor) -> None:
        if entry := self.by_id.get(id(parameter)):
            self.rounding.round_own_gradient_(entry, gradient, dist.get_rank())

    def _round_output(self, tensor: Tensor, direction: str, layer: str, mode: str) -> Tensor:
        if direction not in self.rounding.formats:
            return tensor.view_as(tensor)
        return self.rounding.quantize_anew(tensor, direction, layer, mode, dist.get_rank() if is_distributed() else 0)
