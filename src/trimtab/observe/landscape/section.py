"""The loss on a grid around the weights, on a line or a plane."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from trimtab.checks import positive, whole
from trimtab.observe.curvature.data import Batch
from trimtab.observe.curvature.objective import Objective
from trimtab.observe.curvature.results import Setting
from trimtab.observe.landscape.directions import Directions
from trimtab.observe.landscape.progress_file import ProgressFile, fingerprint

MEMORY = 1 << 30  # bytes that points evaluated together may take
Progress = Callable[[int, int], object]


@dataclass(frozen=True)
class Section:
    """The loss along one direction or two.

    Attributes:
        coordinates: multiples of a direction, symmetric about 0, the same for both.
        losses: in 1-D one number per coordinate; in 2-D `losses[i][j]` at `coordinates[i]` times the first direction plus
            `coordinates[j]` times the second. Infinite or NaN where the loss is.
        centre: the loss at the weights, bit-equal to a plain evaluation.
        directions: what they are (their vectors are not compared).
        at_once: grid points that were evaluated together by `torch.func.vmap`; 1: one after the other.
        setting: what was measured.
    """

    coordinates: tuple[float, ...]
    losses: tuple[float, ...] | tuple[tuple[float, ...], ...] = field(repr=False)
    centre: float
    directions: Directions
    at_once: int
    setting: Setting


def section(
    objective: Objective,
    directions: Directions,
    reach: float = 1.0,
    points: int | None = None,
    *,
    at_once: int | None = None,
    file: Path | None = None,
    progress: Progress | None = None,
) -> Section:
    """`L(w + a d)`, or `L(w + a d + b e)`, for a and b on a symmetric grid; its centre is the loss bit for bit.

    Args:
        objective: loss, network and batches.
        directions: one or two, from `random_directions` or `eigenvector_directions`.
        reach: largest coordinate. Default 1 (arXiv 1712.09913): a filter-normalized direction then moves each filter by
            its own norm.
        points: per axis, odd so that the centre is one of them. Default 51 in 1-D, 25 in 2-D [ours].
        at_once: grid points evaluated together by `torch.func.vmap`; 1 streams. Default: on an accelerator as many as fit
            1 GiB, streaming if the network cannot be vectorized; on a CPU 1, where grouped convolutions gain nothing [ours].
            Points evaluated together agree with streamed ones to rounding; fused attention is then switched to MATH.
        file: where finished points are kept (JSON); an interrupted section goes on from there.
        progress: called with (points done, points in all).

    Raises:
        ValueError: `points` even or below 3, `reach` or `at_once` out of range, a loss that is not finite at the weights, a
            file that belongs to another section.

    Reference: Li et al. 2018, arXiv 1712.09913.

    Example:
        >>> from trimtab.observe.landscape import random_directions
        >>> net = torch.nn.Linear(1, 1, bias=False)
        >>> _ = net.weight.data.fill_(2.0)
        >>> objective = Objective(net, torch.nn.functional.mse_loss, (torch.ones(1, 1), torch.zeros(1, 1)))
        >>> sorted(section(objective, random_directions(objective, 1), points=3).losses)
        [0.0, 4.0, 16.0]
    """
    plane = len(directions.vectors) == 2
    points = (25 if plane else 51) if points is None else points
    if points < 3 or points % 2 == 0:
        raise ValueError(f"points must be odd and 3 or more, so that the centre is one of them; got {points}")
    positive("reach", reach)
    if at_once is not None:
        whole("at_once", at_once, 1)
    if directions.vectors.shape[1] != objective.size:
        raise ValueError(f"directions have {directions.vectors.shape[1]} components, the objective {objective.size}")
    half = points // 2
    coordinates = tuple(reach * step / half for step in range(-half, half + 1))
    grid = [(a, b) for a in coordinates for b in coordinates] if plane else [(a, 0.0) for a in coordinates]
    middle = len(grid) // 2
    with _Largest() as watch:
        centre = objective.loss()
    losses: dict[int, float] = {}
    kept = None
    if file is not None:
        identity = fingerprint([*objective.tensors(), directions.vectors], (coordinates, objective.setting()))
        kept = ProgressFile(file, identity, centre)
        losses = kept.read(len(grid))
    losses[middle] = centre
    missing = [number for number in range(len(grid)) if number not in losses]
    evaluate = _Evaluation(objective, directions, at_once, watch.largest)
    try:
        if progress is not None:
            progress(len(losses), len(grid))
        for numbers, values in evaluate.chunks(missing, grid):
            losses.update(zip(numbers, values, strict=True))
            if kept is not None:
                kept.write(losses, now=False)
            if progress is not None:
                progress(len(losses), len(grid))
    finally:
        if kept is not None:
            kept.write(losses, now=True)
    flat = [losses[number] for number in range(len(grid))]
    rows = tuple(tuple(flat[row * points : (row + 1) * points]) for row in range(points)) if plane else tuple(flat)
    return Section(coordinates, rows, centre, directions, evaluate.at_once, objective.setting())


class _Evaluation:
    """Losses at grid points, some together or one after the other."""

    def __init__(self, objective: Objective, directions: Directions, at_once: int | None, largest: int) -> None:
        self._objective = objective
        self._directions = [objective.split(vector) for vector in directions.vectors]
        self._chosen = at_once is not None
        if at_once is None:
            point = (objective.size + 3 * largest) * objective.dtype.itemsize
            at_once = 1 if objective.device.type == "cpu" else max(1, MEMORY // point)
        self.at_once = at_once

    def chunks(self, missing: list[int], grid: list[tuple[float, float]]) -> Iterator[tuple[list[int], list[float]]]:
        """Numbers of grid points and their losses, until all that are missing are done."""
        done = 0
        while done < len(missing):
            numbers = missing[done : done + self.at_once]
            try:
                values = self._losses([grid[number] for number in numbers])
            except (RuntimeError, NotImplementedError):
                if self._chosen or self.at_once == 1:
                    raise
                self.at_once = 1  # this network cannot be vectorized
                continue
            done += len(numbers)
            yield numbers, values

    def _losses(self, places: list[tuple[float, float]]) -> list[float]:
        objective = self._objective
        together = self.at_once > 1
        parameters = self._parameters(places) if together else self._parameters(places[:1], stacked=False)

        def value(batch: Batch) -> tuple[float, Tensor]:
            def loss(*at: Tensor) -> Tensor:
                return objective.scalar(objective.outputs(at, batch), batch)

            found = torch.func.vmap(loss, randomness="same")(*parameters) if together else loss(*parameters)
            return 0.0, found.reshape(-1).double()

        with objective.evaluating(plain_kernels=together), torch.no_grad():
            losses = objective.combine(value)[1]
        assert losses is not None
        return [float(loss) for loss in losses.tolist()]

    def _parameters(self, places: list[tuple[float, float]], *, stacked: bool = True) -> list[Tensor]:
        """The parameters at the places, with a first axis over them when `stacked`."""
        result = []
        for position, weight in enumerate(self._objective.weights):
            moved = weight
            for axis, parts in enumerate(self._directions):
                steps: Any = places[0][axis]
                if stacked:
                    steps = torch.tensor([place[axis] for place in places], dtype=weight.dtype, device=weight.device)
                    steps = steps.view(-1, *[1] * weight.ndim)
                moved = moved + steps * parts[position]
            result.append(moved)
        return result


class _Largest(TorchFunctionMode):
    """Notes the size of the largest tensor that any function returns inside."""

    largest = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            self.largest = max(self.largest, result.numel())
        return result
