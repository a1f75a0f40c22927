"""Rounding the operands of products: along the contraction, with numbers drawn for each alone, measured where wanted."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F

from trimtab.checks import whole
from trimtab.collectives import is_distributed, sum_over_ranks
from trimtab.inexact import recomputing
from trimtab.precision.format import Format
from trimtab.precision.hadamard import Hadamard
from trimtab.precision.histories import DelayedScales
from trimtab.precision.oscillation import Oscillation
from trimtab.precision.quantize import quantize
from trimtab.precision.randomness import seed_for
from trimtab.precision.recipes import FACTORS, PRODUCTS, Operand, Recipe
from trimtab.precision.scaling import Scaling
from trimtab.precision.shrinkage import SUMS, Measured, shrinkage_sums
from trimtab.precision.tensor_rounding import TensorRounding

RESULTS = PRODUCTS
"""What the meter calls the products themselves, held against those of operands that are not rounded."""
KINDS = {(product, place): f"{product} {FACTORS[product][place]}" for product in PRODUCTS for place in (0, 1)}
"""What the meter calls the operands: "fprop activation", ..., "wgrad activation"."""


def rounded(
    matrix: Tensor,
    operand: Operand | None,
    generator: torch.Generator | None = None,
    *,
    scaling: Scaling | None = None,
    reuse: bool = False,
) -> Tensor:
    """A factor (..., rows, contraction) in float32, rounded in groups along its last dimension; with `reuse` maybe in place.

    A contraction that the block does not divide is padded exactly: as if zeros followed. `scaling` is the operand's own, or
    what stands for it.

    Example:
        >>> from trimtab.precision import Block
        >>> rounded(torch.tensor([[6.0, 0.3, 0.3]]), Operand("e2m1", Block(2)))
        tensor([[6.0000, 0.5000, 0.3000]])
    """
    wide = matrix.detach().float()
    if operand is None:
        return wide
    own = wide.contiguous()
    if not own.numel():
        return own
    lines = own.view(-1, own.shape[-1]) if own.ndim != 2 and not operand.either_way else own
    fresh = reuse or own.untyped_storage().data_ptr() != matrix.untyped_storage().data_ptr()
    found = quantize(
        lines, operand.format, operand.rounding, scaling=operand.scaling if scaling is None else scaling,
        generator=generator, out=lines if fresh else None,
    )  # fmt: skip
    return found.view(own.shape)


def turned(matrix: Tensor, size: int, seed: int) -> Tensor:
    """Blocks of `size` along the last dimension times random signs and the orthonormal Hadamard matrix, in float32.

    A length that `size` does not divide is filled up with zeros, so that products of two such matrices stay what they were.

    Example:
        >>> x = torch.tensor([[3.0, 4.0, 5.0]])
        >>> (turned(x, 2, 0) @ turned(x, 2, 0).mT).round(decimals=4)
        tensor([[50.]])
    """
    short = -matrix.shape[-1] % size
    filled = F.pad(matrix.float(), (0, short)) if short else matrix.float()
    return Hadamard(size, seed)(filled)


class OperandRounding:
    """What the products of all layers share: the recipe, random numbers, what was measured in this step.

    Args:
        recipe: how operands are rounded.
        rounding: counts the steps, draws, and knows the meter.
        oscillation: window in steps over which rounded weights are watched; 0 does not.
        standing: whether gradients stand that a backward pass would add to. Where none do, what earlier passes of the step
            measured belongs to a step that was not taken (one that GradScaler skips), and is let go.
    """

    def __init__(
        self,
        recipe: Recipe,
        rounding: TensorRounding,
        oscillation: int = 0,
        standing: Callable[[], bool] = lambda: True,
    ) -> None:
        self.recipe, self.rounding, self._standing = recipe, rounding, standing
        self.window = whole("oscillation", oscillation, 0)
        self.layers: list[str] = []
        self.delayed = DelayedScales(recipe, standing)
        self._sums: dict[tuple[str, str], Tensor] = {}
        self._went_back = False
        """Whether a backward pass has been measured since."""
        self._watched: dict[str, Oscillation] = {}

    def begin(self, layers: list[str]) -> None:
        """Take these layers on: from now on they are measured, and remembered."""
        self.layers = layers
        self.delayed.begin(layers)

    def round(self, matrix: Tensor, product: str, place: int, layer: str, *, training: bool) -> Tensor:
        """The factor at `place` of a layer's product, (..., rows, contraction), as the recipe has it."""
        operand, size = self.recipe[product][place], self.recipe[product].hadamard
        if size is not None:
            seed = self.rounding.seed
            if self.recipe[product].fresh:  # the same for both factors of a call
                call = self.rounding.call("turn", product, place, layer, training)
                seed = seed_for(seed, self.rounding.step, product, layer, training, call)
            matrix = turned(matrix.detach(), size, seed)
        generator = None
        if operand is not None and operand.draws and matrix.numel():
            generator = self._generator(matrix.device, product, place, layer, training=training)
        watched = training and not (product == "fprop" and recomputing())
        measured = operand is not None and watched and self.rounding.meters_now
        original = matrix
        scaling = None if operand is None else operand.scaling
        if matrix.numel():
            scaling = self.delayed.scaling(matrix, product, place, layer, training=training) or scaling
        found = rounded(matrix, operand, generator, scaling=scaling, reuse=size is not None and not measured)
        if operand is None or not watched:
            return found
        if self.window and product == "fprop" and place == 1:
            self._watch(layer, found, operand)
        if measured:
            if product == "fprop":
                self._let_go()
            self._measure(original, found, KINDS[product, place], layer, operand, scaling)
        return found

    def _generator(
        self, device: torch.device, product: str, place: int, layer: str, *, training: bool
    ) -> torch.Generator:
        """Numbers of their own for each operand.

        In a forward pass that trains they follow from one number of torch's global generator, which activation checkpointing
        puts back: the pass computed again draws the same. Elsewhere they follow from how often the layer was called.
        """
        rank = dist.get_rank() if is_distributed() else 0
        if product == "fprop" and training:
            draw = int(torch.randint(2**62, ()))
            return self.rounding.generator(device, KINDS[product, place], layer, rank, "drawn", draw)
        return self.rounding.generator_anew(device, KINDS[product, place], layer, rank, training)

    def _watch(self, layer: str, weight: Tensor, operand: Operand) -> None:
        if layer not in self._watched:
            assert isinstance(operand.format, Format)
            self._watched[layer] = Oscillation(self.window, operand.format)
        self._watched[layer].see(self.rounding.step, weight)

    def _let_go(self) -> None:
        """In a forward pass: forget what belongs to a step that was not taken."""
        if self._went_back and not self._standing():
            self._sums, self._went_back = {}, False

    def _measure(
        self, original: Tensor, found: Tensor, kind: str, layer: str, operand: Operand, scaling: Scaling | None
    ) -> None:
        assert isinstance(operand.format, Format)
        before, after = (each.reshape(-1, each.shape[-1]) for each in (original, found))
        sums = shrinkage_sums(before, after, operand.format, scaling)
        if kind == KINDS["fprop", 1] and layer in self._watched:
            sums[SUMS.index("watched")] = found.numel()
            sums[SUMS.index("oscillating")] = self._watched[layer].count(self.rounding.step)
        self._add(kind, layer, sums)

    def _add(self, kind: str, layer: str, sums: Tensor) -> None:
        key = (kind, layer)
        self._sums[key] = self._sums[key] + sums if key in self._sums else sums

    def result(self, exact: Tensor, found: Tensor, product: str, layer: str) -> None:
        """Measure a product against that of operands that are not rounded."""
        if product == "fprop":
            self._let_go()
        self._add(product, layer, shrinkage_sums(exact.reshape(-1), found.reshape(-1)))

    def raised(self, loss: Tensor, layer: str) -> None:
        """Keep by how much the rounded operands of a forward product raise the loss; told in its backward pass."""
        sums = torch.zeros(len(SUMS), dtype=torch.float64, device=loss.device)
        sums[SUMS.index("loss")] = loss
        self._went_back = True
        self._add("fprop", layer, sums)

    def measured(self) -> dict[str, Measured]:
        """Sums of the step that ends, by kind, over all ranks; every rank calls this in the same steps."""
        if not self.rounding.meters_now or not self.layers:
            return {}
        kinds = [product for product in RESULTS if self.recipe[product].rounds or self.recipe.accumulator is not None]
        kinds += [kind for (product, place), kind in KINDS.items() if self.recipe[product][place] is not None]
        device = next((sums.device for sums in self._sums.values()), torch.device("cpu"))
        blank = torch.zeros(len(SUMS), dtype=torch.float64, device=device)
        rows = [self._sums.get((kind, layer), blank).to(device) for kind in kinds for layer in self.layers]
        self._sums, self._went_back = {}, False
        together = sum_over_ranks(torch.stack(rows)).view(len(kinds), len(self.layers), len(SUMS))
        if is_distributed():  # a rank's loss is the mean over its own part of the batch
            together[..., SUMS.index("loss")] /= dist.get_world_size()
        return {
            kind: Measured(self.rounding.step, self.layers, sums) for kind, sums in zip(kinds, together, strict=True)
        }

    def state_dict(self) -> dict[str, Any]:
        """What is watched over steps, and remembered."""
        watched = {layer: each.state_dict() for layer, each in self._watched.items()}
        return {"watched": watched, **self.delayed.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on watching and remembering; ValueError where magnitudes are of other layers."""
        self.delayed.load_state_dict(state)
        self._watched, self._sums, self._went_back = {}, {}, False
        operand = self.recipe["fprop"].second
        for layer, own in state.get("watched", {}).items():
            if self.window and operand is not None and isinstance(operand.format, Format):
                self._watched[layer] = Oscillation(self.window, operand.format)
                self._watched[layer].load_state_dict(own)


class LayerOperands:
    """What one call of a layer knows of its operands.

    Args:
        rounding: what all layers share.
        layer: its name.
        training: whether the call trains.
    """

    def __init__(self, rounding: OperandRounding, layer: str, *, training: bool) -> None:
        self.rounding, self.layer, self.training = rounding, layer, training

    @property
    def recipe(self) -> Recipe:
        """How operands are rounded."""
        return self.rounding.recipe

    @property
    def measures(self) -> bool:
        """Whether products of operands that are not rounded are wanted beside."""
        return self.training and self.rounding.rounding.meters_now

    def __call__(self, matrix: Tensor, product: str, place: int) -> Tensor:
        """`matrix` (..., rows, contraction) as float32, rounded as the recipe says; a new tensor, or `matrix` itself."""
        return self.rounding.round(matrix, product, place, self.layer, training=self.training)

    def result(self, exact: Tensor, found: Tensor, product: str) -> None:
        """Measure a product."""
        if not (product == "fprop" and recomputing()):
            self.rounding.result(exact, found, product, self.layer)

    def raised(self, loss: Tensor) -> None:
        """Keep by how much the loss is raised."""
        self.rounding.raised(loss, self.layer)
