"""Batches as the curvature measures take them, and how much each counts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

Inputs = Tensor | tuple[Any, ...] | Mapping[str, Any]
Batch = tuple[Inputs, Any]
Loss = Callable[[Any, Any], Tensor]
Count = Callable[[Any], Any]


class Batches:
    """One batch, or an iterable that gives the same batches each time, on the device and in the dtype of the computation."""

    def __init__(self, source: Any, device: torch.device, dtype: torch.dtype) -> None:
        self.single = _is_one_batch(source)
        if not self.single and (not isinstance(source, Iterable) or isinstance(source, Iterator)):
            raise TypeError(
                "batches must be one batch (inputs, targets) or a collection of them that can be read again and again "
                f"(a list, a DataLoader), got {type(source).__name__}"
            )
        self._source: Iterable[Any] = [source] if self.single else source
        self._device, self._dtype = device, dtype
        self._length: int | None = None

    def __iter__(self) -> Iterator[Batch]:
        number = 0
        for number, batch in enumerate(self._source, 1):
            if not isinstance(batch, tuple | list) or len(batch) != 2:
                raise TypeError(f"batch {number - 1} must be a pair (inputs, targets), got {type(batch).__name__}")
            yield self._moved(batch[0]), self._moved(batch[1])
        if number == 0:
            raise ValueError("batches is empty: there is nothing to compute a loss on")
        if self._length is not None and self._length != number:
            raise ValueError(f"batches gave {self._length} batches at first and now {number}; it must repeat itself")
        self._length = number

    def _moved(self, item: Any) -> Any:
        if isinstance(item, Tensor):
            item = item.clone() if item.is_inference() else item.detach()  # autograd cannot save inference tensors
            return item.to(self._device, self._dtype if item.is_floating_point() else item.dtype)
        if isinstance(item, Mapping):
            return {key: self._moved(value) for key, value in item.items()}
        if isinstance(item, tuple | list):
            return type(item)(self._moved(value) for value in item)
        return item


def _is_one_batch(source: Any) -> bool:
    if isinstance(source, list):
        return len(source) == 2 and isinstance(source[1], Tensor)
    return isinstance(source, tuple) and not all(isinstance(item, tuple | list) and len(item) == 2 for item in source)
