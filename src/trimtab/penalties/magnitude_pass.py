"""Mean and variance of the magnitudes of many tensors, and the gradient pass that uses them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from trimtab.collectives import local_part
from trimtab.tensors.chunks import Batch, layout_of
from trimtab.tensors.moments import Moments, over_shards
from trimtab.tensors.passes import flattened, widened, working_dtype, write_back


class Magnitudes(NamedTuple):
    """Number, mean and biased variance of the magnitudes, per tensor; float64, each of shape (tensors,)."""

    number: Tensor
    mean: Tensor
    variance: Tensor


class MagnitudePass:
    """Reads the moments of `w~ = sqrt(w^2 + r)` of several tensors of one device and dtype, then adds their gradient.

    Args:
        parameters: whole or sharded tensors.
        smoothing: r.
        gradients: whether gradients will be added to; every tensor must then have one, sharded as it is.

    Raises:
        ValueError: a gradient is not sharded as its parameter is.

    Example:
        >>> MagnitudePass([torch.tensor([[3.0, -5.0]])], smoothing=0.0).moments().mean
        tensor([4.], dtype=torch.float64)
    """

    def __init__(self, parameters: Sequence[Tensor], smoothing: float, *, gradients: bool = False) -> None:
        self.parameters = parameters
        self.smoothing = smoothing
        self.weights: list[Tensor] = []
        self.gradients: list[Tensor] = []
        self._copied: list[tuple[Tensor, Tensor]] = []
        """Flat copies of gradients that cannot be viewed in the order of their weights, and these gradients."""
        for parameter in parameters:
            weight = local_part(parameter)
            if not gradients:
                self.weights += flattened([weight])
                continue
            assert parameter.grad is not None
            gradient = local_part(parameter.grad)
            if weight.shape != gradient.shape:
                raise ValueError(
                    f"the gradient of a parameter of shape {tuple(parameter.shape)} is laid out differently across ranks: "
                    f"{getattr(parameter, 'placements', 'whole')} against {getattr(parameter.grad, 'placements', 'whole')}"
                )
            flat, beside = flattened([weight, gradient])
            if beside.data_ptr() != gradient.data_ptr():
                flat, beside = weight.reshape(-1), gradient.reshape(-1).clone()
                self._copied.append((beside, gradient))
            self.weights.append(flat)
            self.gradients.append(beside)
        self.chunks = layout_of(self.weights, working_dtype(self.weights[0]))

    def _magnitudes(self, values: Tensor, out: Tensor) -> Tensor:
        # without smoothing no square may overflow or vanish
        if not self.smoothing:
            return torch.abs(values, out=out)
        return torch.mul(values, values, out=out).add_(self.smoothing).sqrt_()

    def moments(self) -> Magnitudes:
        """Number, mean and biased variance per tensor, over all ranks that hold parts of it."""
        total, squares = self.chunks.moments(self.weights, self._magnitudes, centred=True)
        whole = over_shards(Moments(self.chunks.elements, total, squares), self.parameters)
        return Magnitudes(whole.number, whole.mean, whole.variance)

    def add_gradients_(self, mean: Tensor, constant: Tensor, slope: Tensor) -> None:
        """Add `s * (constant + slope * (w~ - mean))` to each gradient, s = w / w~; arguments of shape (tensors,)."""
        chunks = self.chunks
        copy, work, added = chunks.buffer(), chunks.buffer(), chunks.buffer()
        # A shift is exact as a number of the working precision; what it lacks of the mean goes into the constant.
        constant = constant + slope * (mean.to(chunks.dtype).double() - mean)
        means, slopes, constants = (chunks.column(values) for values in (mean, slope, constant))
        for batch in chunks.batches:
            weight = chunks.gather(batch, self.weights, copy[: batch.number])
            magnitude = self._magnitudes(weight, work[: batch.number])
            found = torch.sub(magnitude, means[batch.rows], out=added[: batch.number])
            torch.addcmul(constants[batch.rows], found, slopes[batch.rows], out=found)
            if self.smoothing:
                found.mul_(weight).div_(magnitude)
            else:
                found.mul_(torch.sign(weight, out=magnitude))
            self._add(batch, found)
        self._finish()

    def add_signs_(self, strength: float) -> None:
        """Add `strength * sign(w)` to each gradient."""
        copy = self.chunks.buffer()
        for batch in self.chunks.batches:
            weight = self.chunks.gather(batch, self.weights, copy[: batch.number])
            self._add(batch, torch.sign(weight, out=copy[: batch.number]), strength)
        self._finish()

    def _add(self, batch: Batch, rows: Tensor, factor: float = 1.0) -> None:
        targets, found = self.chunks.parts_of(batch, self.gradients, rows)
        worked = widened(targets)
        torch._foreach_add_(worked, found, alpha=factor)
        write_back(worked, targets)

    def _finish(self) -> None:
        for flat, gradient in self._copied:
            gradient.copy_(flat.view(gradient.shape))
