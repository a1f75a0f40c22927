"""Size of a network: parameters, non-zeros and multiply-adds, dense and sparse, per layer and in total."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from trimtab.frames import Tabular
from trimtab.observe.multiply_adds import Count, MultiplyAdds, nonzeros
from trimtab.observe.untouched import uncompiled, unfused, untouched
from trimtab.parameters import PRUNABLE, Rule, entries, select
from trimtab.parameters.arguments import arguments
from trimtab.parameters.kinds import check_ready, packed_weights
from trimtab.parameters.wrappers import own_modules, unwrapped


@dataclass(frozen=True)
class LayerRow:
    """One module that holds parameters or does multiply-adds of its own.

    Attributes:
        name: qualified name; empty for the model itself.
        kind: class name of the module.
        output_shape: of its last call, batch included; None when it was not called.
        parameters: elements of its own parameters; a tied one counts at its first owner only.
        nonzeros: of these, those that differ from zero.
        dense_multiply_adds: None when the model was not run.
        sparse_multiply_adds: without products with a zero weight; None when the model was not run.
    """

    name: str
    kind: str
    output_shape: tuple[int, ...] | None
    parameters: int
    nonzeros: int
    dense_multiply_adds: int | None
    sparse_multiply_adds: int | None


@dataclass(frozen=True)
class ModelSummary(Tabular):
    """What a network weighs and what a forward pass of it costs.

    Attributes:
        parameters: elements of all parameters, tied ones once.
        nonzeros: of these, those that differ from zero.
        prunable: elements of the parameters the rule chose (two dimensions or more).
        prunable_nonzeros: of these, those that differ from zero.
        ran: whether an input was given and the model run, so that multiply-adds are known.
        uncounted: operations that multiplied with weights and could not be counted; empty in the usual case.
        layers: one row per module, in the model's order.
    """

    parameters: int
    nonzeros: int
    prunable: int
    prunable_nonzeros: int
    ran: bool
    uncounted: tuple[str, ...]
    layers: tuple[LayerRow, ...]

    @property
    def sparsity(self) -> float:
        """Fraction of the prunable weights that is zero."""
        return (self.prunable - self.prunable_nonzeros) / self.prunable if self.prunable else 0.0

    @property
    def sparsity_total(self) -> float:
        """Fraction of all parameters that is zero."""
        return (self.parameters - self.nonzeros) / self.parameters if self.parameters else 0.0

    @property
    def dense_multiply_adds(self) -> int:
        """Of one forward pass of the whole input, batch included.

        Raises:
            ValueError: the model was not run.
        """
        return self._total(row.dense_multiply_adds for row in self.layers)

    @property
    def sparse_multiply_adds(self) -> int:
        """The same without products with a zero weight.

        Raises:
            ValueError: the model was not run.
        """
        return self._total(row.sparse_multiply_adds for row in self.layers)

    def _total(self, numbers: Iterable[int | None]) -> int:
        if not self.ran:
            raise ValueError("multiply-adds are not known: give summary an example_input or an input_shape")
        return sum(number or 0 for number in numbers)

    @property
    def speed_up(self) -> float:
        """Dense over sparse multiply-adds: what sparsity could gain at most, not what this machine gains.

        Infinite when every product has a zero weight, 1 when there is no product.
        """
        dense, sparse = self.dense_multiply_adds, self.sparse_multiply_adds
        return dense / sparse if sparse else float("inf") if dense else 1.0

    def records(self) -> list[dict[str, Any]]:
        """One per module, with the fields of `LayerRow`."""
        return [asdict(row) for row in self.layers]

    def _title(self) -> str:
        return f"{self.parameters:,} parameters, {self.sparsity:.2%} of the {self.prunable:,} prunable weights are zero"

    def rows(self) -> list[LayerRow]:
        """The layers, then the total."""
        work = (self.dense_multiply_adds, self.sparse_multiply_adds) if self.ran else (None, None)
        total = LayerRow("total", "", None, self.parameters, self.nonzeros, *work)
        return [*self.layers, total]

    def __str__(self) -> str:
        head = ("layer", "kind", "output", "parameters", "non-zeros", "multiply-adds", "sparse ones")
        cells = [head, *(_cells(row) for row in self.rows())]
        widths = [max(len(line[column]) for line in cells) for column in range(len(head))]
        lines = [
            "  ".join(
                cell.ljust(width) if column < 3 else cell.rjust(width)
                for column, (cell, width) in enumerate(zip(line, widths, strict=True))
            ).rstrip()
            for line in cells
        ]
        lines.append(f"sparsity: {self.sparsity:.2%} of the prunable weights, {self.sparsity_total:.2%} of all")
        if self.uncounted:
            lines.append(f"not counted: {', '.join(self.uncounted)}")
        return "\n".join(lines)


def _cells(row: LayerRow) -> tuple[str, ...]:
    shape = "" if row.output_shape is None else "x".join(map(str, row.output_shape))
    numbers = (row.parameters, row.nonzeros, row.dense_multiply_adds, row.sparse_multiply_adds)
    return (row.name or "(model)", row.kind, shape, *("-" if number is None else f"{number:,}" for number in numbers))


def _run(
    model: nn.Module, arguments: Sequence[Any], named: Mapping[str, Any]
) -> tuple[MultiplyAdds, dict[str, tuple[int, ...]]]:
    """Count one forward pass; also the output shape of each module."""
    counter = MultiplyAdds(model)
    shapes: dict[str, tuple[int, ...]] = {}

    def enter(name: str) -> Callable[..., None]:
        return lambda module, given: counter.stack.append(name)

    def leave(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, given: object, out: object) -> None:
            counter.stack.pop()
            tensors = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
            if tensors:
                shapes[name] = tuple(tensors[0].shape)

        return hook

    with ExitStack() as stack:
        for name, module in own_modules(model):
            stack.callback(module.register_forward_pre_hook(enter(name)).remove)
            stack.callback(module.register_forward_hook(leave(name)).remove)
        stack.enter_context(uncompiled(model))
        stack.enter_context(untouched(model))
        stack.enter_context(unfused(model))
        stack.enter_context(torch.no_grad())
        stack.enter_context(counter)
        model(*arguments, **named)
    return counter, shapes


def _arguments(
    model: nn.Module, example_input: Any, input_shape: Sequence[int] | None
) -> tuple[Sequence[Any], Mapping[str, Any]]:
    if input_shape is not None:
        if not all(isinstance(size, int) and size > 0 for size in input_shape):
            raise ValueError(f"input_shape must hold positive integers, got {tuple(input_shape)}")
        like = next((parameter for parameter in model.parameters() if parameter.is_floating_point()), torch.empty(0))
        return (torch.zeros(*input_shape, dtype=like.dtype, device=like.device),), {}
    return arguments(example_input)


def summary(
    model: nn.Module,
    example_input: Any = None,
    *,
    input_shape: Sequence[int] | None = None,
    rule: Rule | None = None,
) -> ModelSummary:
    """Count parameters, non-zeros and multiply-adds; leave the model as it was, bit for bit.

    One multiply-add is one product of a matrix product or a convolution, its addition included: for a Linear
    `rows * in * out`, for a convolution `batch * output positions * weights` (a weight tensor already holds
    `inputs / groups`), for a transposed one `batch * input positions * weights`, for attention
    `batch * heads * queries * keys * (head size + value size)`. Biases, norms, activations, pooling and Embedding look-ups
    count nothing. Sparse multiply-adds leave out every product with a weight that is zero, wherever that weight is used;
    zeros among activations are not discounted [ours]. Products with padding and with pairs under a causal mask are
    counted, in the sparse number as in the dense one [ours]. A tied weight counts once as parameters and at each
    use as multiply-adds.

    The model runs once in evaluation mode without gradients. Its own hooks run too.

    Args:
        model: any module; a mask put on by a parametrization or by `torch.nn.utils.prune` is respected in the multiply-adds.
        example_input: a tensor, a tuple of arguments or a dict of named ones. Multiply-adds are of this whole input.
        input_shape: instead of it, a shape, batch included; zeros in the dtype and on the device of the model are fed.
        rule: which parameters are prunable. Default: weights of two dimensions or more, frozen ones too, and those that are
            computed from others (weight_norm) as the product uses them.

    Raises:
        ValueError: both inputs are given, `input_shape` is not positive, or the model lies on the meta device.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.Flatten(), nn.Linear(8 * 16, 10))
        >>> found = summary(net, input_shape=(1, 3, 4, 4))
        >>> found.parameters, found.dense_multiply_adds
        (1506, 4736)
        >>> print(found)
        layer  kind    output   parameters  non-zeros  multiply-adds  sparse ones
        0      Conv2d  1x8x4x4         216        216          3,456        3,456
        2      Linear  1x10          1,290      1,290          1,280        1,280
        total                        1,506      1,506          4,736        4,736
        sparsity: 0.00% of the prunable weights, 0.00% of all
    """
    if example_input is not None and input_shape is not None:
        raise ValueError("give example_input or input_shape, not both")
    model = unwrapped(model)  # its own names, as `entries` gives them
    check_ready(model)
    ran = example_input is not None or input_shape is not None
    booked: dict[str, Count] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    uncounted: tuple[str, ...] = ()
    if ran:
        counter, shapes = _run(model, *_arguments(model, example_input, input_shape))
        booked, uncounted = counter.booked, tuple(sorted(counter.uncounted))
    uncounted += tuple(f"{name} (quantised, packed)" for name, _, _ in packed_weights(model))

    held: dict[str, list[int]] = {}
    for entry in entries(model):
        if entry.view_of is not None:
            continue
        numbers = held.setdefault(entry.name.rpartition(".")[0], [0, 0])
        numbers[0] += entry.parameter.numel()
        numbers[1] += nonzeros(entry.parameter.detach())
    layers = tuple(
        LayerRow(
            name,
            type(module).__name__,
            shapes.get(name),
            parameters=held.get(name, [0, 0])[0],
            nonzeros=held.get(name, [0, 0])[1],
            dense_multiply_adds=booked.get(name, Count()).dense if ran else None,
            sparse_multiply_adds=booked.get(name, Count()).sparse if ran else None,
        )
        for name, module in own_modules(model, remove_duplicate=False)
        if name in held or name in booked
    )
    chosen = select(model, PRUNABLE if rule is None else rule, computed=True).chosen
    return ModelSummary(
        parameters=sum(row.parameters for row in layers),
        nonzeros=sum(row.nonzeros for row in layers),
        prunable=sum(entry.parameter.numel() for entry in chosen),
        prunable_nonzeros=sum(nonzeros(entry.parameter.detach()) for entry in chosen),
        ran=ran,
        uncounted=uncounted,
        layers=layers,
    )
