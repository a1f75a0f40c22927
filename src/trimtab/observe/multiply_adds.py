"""Counts multiply-adds while a model runs, weight by weight and module by module.

Every matrix product and convolution that reaches PyTorch's dispatcher is counted, whoever calls it: a layer, a function
with a weight, attention. A product with an operand that stems from parameters alone is booked on that parameter's
module; any other product (query times key, attention times value) on the innermost module that runs.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from trimtab.parameters import entries
from trimtab.parameters.kinds import reason_against_dtype

Owners = tuple[str, ...]
_PRODUCTS = {"mm": 0, "bmm": 0, "mv": 0, "dot": 0, "addmm": 1, "baddbmm": 1, "addmv": 1}
_CONVOLUTIONS = ("convolution", "_convolution", "convolution_overrideable")
_CONTRACTING = ("mm", "linear", "conv", "rnn", "lstm", "gru", "attention", "transformer")


@dataclass
class Count:
    """Multiply-adds booked on one place; `sparse` leaves out products with a zero weight."""

    dense: int = 0
    sparse: int = 0


def nonzeros(tensor: Tensor) -> int:
    """Elements that differ from zero (-0.0 does not)."""
    held = tensor if tensor.layout == torch.strided else tensor.values()
    stored_only = held.is_floating_point() and reason_against_dtype(held) is not None
    return int(torch.count_nonzero(held.float() if stored_only else held))


def _product(left: Tensor, right: Tensor, *, left_is_weight: bool, right_is_weight: bool) -> Count:
    """`(..., n, k) @ (..., k, m)`, or with a vector on either side; batch sizes of both are equal."""
    rows = left.shape[-2] if left.ndim > 1 else 1
    columns = right.shape[-1] if right.ndim > 1 else 1
    dense = sparse = left.numel() * columns
    if left_is_weight:
        sparse = nonzeros(left) * columns
    if right_is_weight:
        sparse = min(sparse, nonzeros(right) * rows)
    return Count(dense, sparse)


def _convolution(given: Tensor, weight: Tensor, out: Tensor, *, transposed: bool, is_weight: bool) -> Count:
    """One product per weight and output position, or per input position where transposed."""
    places = given if transposed else out
    uses = places.shape[0] * math.prod(places.shape[2:])
    return Count(uses * weight.numel(), uses * (nonzeros(weight) if is_weight else weight.numel()))


def _attention(query: Tensor, key: Tensor, value: Tensor) -> Count:
    """Query times key and attention times value over all pairs; a causal mask is not discounted."""
    pairs = math.prod(query.shape[:-1]) * key.shape[-2]
    products = pairs * (query.shape[-1] + value.shape[-1])
    return Count(products, products)


def _storage(tensor: Tensor) -> int:
    """Address of the memory behind a tensor; 0 when it has none."""
    strided = tensor if tensor.layout == torch.strided else tensor.values()
    return strided.untyped_storage().data_ptr()


class MultiplyAdds(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Books the multiply-adds of everything that runs inside it.

    Args:
        model: its parameters are the weights.

    Attributes:
        booked: module name -> count.
        uncounted: operations that contract with a weight in a way that is not known here.
        stack: names of the modules that run now, outermost first; whoever runs the model keeps it.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.booked: dict[str, Count] = {}
        self.uncounted: set[str] = set()
        self.stack: list[str] = []
        self._weights: dict[int, Owners] = {}
        self._derived: dict[int, tuple[Owners, Tensor]] = {}
        for entry in entries(model):
            names = (entry.name, *entry.aliases)
            self._weights[_storage(entry.parameter)] = tuple(name.rpartition(".")[0] for name in names)
        self._buffers = {_storage(buffer) for buffer in model.buffers()}

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """No guard against the compiler: whoever counts runs eagerly, and the guard costs seconds of imports."""
        return False

    def _owners(self, tensor: Tensor) -> Owners:
        """Modules that own the parameters a tensor stems from; empty when it is no weight."""
        place = _storage(tensor)
        if place in self._derived:
            return self._derived[place][0]
        return self._weights.get(place, ())

    def _book(self, owners: Owners, count: Count) -> None:
        running = next((name for name in reversed(self.stack) if name in owners), None)
        place = running if running is not None else owners[0] if owners else self.stack[-1] if self.stack else ""
        booked = self.booked.setdefault(place, Count())
        booked.dense += count.dense
        booked.sparse += count.sparse

    def _trace(self, given: Iterable[Tensor], out: object) -> None:
        """Mark what is computed from weights (and buffers) alone; what activations were written into no longer is."""
        given = list(given)
        owners = tuple(dict.fromkeys(owner for tensor in given for owner in self._owners(tensor)))
        alone = bool(owners) and all(self._owners(tensor) or _storage(tensor) in self._buffers for tensor in given)
        for tensor in tree_leaves(out):
            if not isinstance(tensor, Tensor) or _storage(tensor) in self._weights or not tensor.numel():
                continue
            if alone:
                self._derived[_storage(tensor)] = (owners, tensor)  # kept, so that its address stays its own
            else:
                self._derived.pop(_storage(tensor), None)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the operation and book it."""
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        name = func._schema.name.partition("::")[2]
        if name in _PRODUCTS:
            left, right = args[_PRODUCTS[name] : _PRODUCTS[name] + 2]
            owners = self._owners(left) + self._owners(right)
            self._book(
                owners,
                _product(
                    left, right, left_is_weight=bool(self._owners(left)), right_is_weight=bool(self._owners(right))
                ),
            )
        elif name in _CONVOLUTIONS:
            owners = self._owners(args[1])
            self._book(owners, _convolution(args[0], args[1], out, transposed=bool(args[6]), is_weight=bool(owners)))
        elif name.startswith("_scaled_dot_product_"):
            self._book((), _attention(*args[:3]))
        elif any(part in name for part in _CONTRACTING):
            used = [tensor for tensor in given if tensor.ndim > 1 and self._owners(tensor)]
            if used and len(used) < len(given):
                self.uncounted.add(name)
        self._trace(given, out)
        return out
