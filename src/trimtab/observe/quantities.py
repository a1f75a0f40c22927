"""The numbers a tracker keeps of each tensor: raw sums on the device, and the statistics made of them afterwards."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from trimtab.checks import one_of
from trimtab.collectives import is_sharded, local_part, max_over_shards, sum_over_shards
from trimtab.observe.sums import COLUMNS, PLACE, Sums
from trimtab.observe.weights import NEAR_ZERO
from trimtab.tensors.moments import Moments, from_terms, pooled, terms
from trimtab.tensors.passes import flat_part, working_dtype

MOMENTS = ("mean", "variance", "std", "norm")
COUNTS = ("zeros", "nan", "inf", "subnormal", "near_zero")
OF_WEIGHTS = ("magnitude_variance", "near_zero")
STATISTICS = (*MOMENTS, "max_abs", "zeros", "nan", "inf", "subnormal", *OF_WEIGHTS)
"""What can be tracked; the last two of weights only."""
RAW = ("n", *COLUMNS, "near_zero")
"""What is kept on the device of each tensor."""

FORMATS = (
    "float64",
    "float32",
    "bfloat16",
    "float16",
    "float8_e4m3fn",
    "float8_e5m2",
    "float8_e4m3fnuz",
    "float8_e5m2fnuz",
)


def smallest_normal(name: str) -> float:
    """Smallest normal number of a format of torch.

    Raises:
        ValueError: an unknown name.

    Example:
        >>> smallest_normal("float16")
        6.103515625e-05
    """
    one_of("small_format", name, FORMATS)
    return float(torch.finfo(getattr(torch, name)).smallest_normal)


class Quantities:
    """Sums over whole tensors, wherever their parts lie, without waiting for the device.

    Args:
        statistics: which of `STATISTICS` will be asked for.
        small_format: format whose smallest normal number bounds what counts as subnormal.
    """

    def __init__(self, statistics: Sequence[str], small_format: str) -> None:
        self.smallest_normal = smallest_normal(small_format)
        self.wanted = {"total", "squares", *(set(statistics) & set(COLUMNS))}
        self.near_zero = "near_zero" in statistics
        if "magnitude_variance" in statistics:
            self.wanted |= {"magnitude_total", "magnitude_squares"}
        self._layouts: dict[tuple[object, ...], Sums] = {}

    def __call__(self, tensors: Sequence[Tensor], parameters: Sequence[Tensor], device: torch.device) -> Tensor:
        """What `RAW` names, shape (tensors, columns), float64, on `device`.

        Args:
            tensors: gradients, weights or updates, sharded (DTensor or the local part of one) or not.
            parameters: the parameters they belong to.
            device: where the result is wanted.
        """
        groups: dict[tuple[torch.device, torch.dtype], list[int]] = {}
        sparse = []
        for position, tensor in enumerate(tensors):
            if tensor.layout is torch.sparse_coo:
                sparse.append(position)
            else:
                groups.setdefault((tensor.device, working_dtype(tensor)), []).append(position)
        if len(groups) == 1 and not sparse:
            return self._of_group(tensors, parameters).to(device)
        rows = torch.empty(len(tensors), len(RAW), dtype=torch.float64, device=device)
        for at in sparse:
            rows[at] = self._of_sparse(tensors[at]).to(device)
        for positions in groups.values():
            found = self._of_group([tensors[at] for at in positions], [parameters[at] for at in positions])
            rows[torch.tensor(positions, device=device)] = found.to(device)
        return rows

    def _of_group(self, tensors: Sequence[Tensor], parameters: Sequence[Tensor]) -> Tensor:
        flats = [flat_part(local_part(tensor), at) for at, tensor in enumerate(tensors)]
        layout = self._layout(flats)
        sums = layout(flats, self.wanted, self.smallest_normal)
        number = layout.chunks.elements
        if any(is_sharded(parameter) for parameter in parameters):
            number, sums = self._over_shards(number, sums, parameters)
        near_zero = torch.zeros_like(number)
        if self.near_zero:
            total, squares = sums[:, PLACE["total"]], sums[:, PLACE["squares"]]
            limits = NEAR_ZERO * Moments(number, total, squares).norm / number.sqrt()
            # of a tensor of zeros every entry counts
            near_zero = layout.below(flats, torch.where(limits == 0, 1, limits))
            near_zero = sum_over_shards(near_zero.unsqueeze(1), parameters).squeeze(1)
        return torch.cat([number.unsqueeze(1), sums, near_zero.unsqueeze(1)], 1)

    def _of_sparse(self, tensor: Tensor) -> Tensor:
        """The same of a sparse gradient, from its stored values; all other entries are zeros. Shape (columns,)."""
        values = tensor.coalesce().values().reshape(-1)
        values = values.to(working_dtype(values))
        stored = Sums([values.numel()], values.dtype, values.device)([values], self.wanted, self.smallest_normal)
        column = dict(zip(COLUMNS, stored[0].unbind(), strict=True))
        here, zeros = float(values.numel()), tensor.numel() - float(values.numel())
        if here:
            # stored values and zeros are two parts of one tensor, whose means lie S / n apart
            column["squares"] = column["squares"] + (column["total"] / here).square() * (here * zeros / tensor.numel())
        else:
            column = {name: torch.zeros_like(value) for name, value in column.items()}
        if "zeros" in self.wanted:
            column["zeros"] = column["zeros"] + zeros
        number = torch.full_like(column["total"], float(tensor.numel()))
        return torch.stack([number, *(column[name] for name in COLUMNS), torch.zeros_like(number)])

    def _layout(self, flats: Sequence[Tensor]) -> Sums:
        device, dtype = flats[0].device, working_dtype(flats[0])
        sizes = [flat.numel() for flat in flats]
        key = (device, dtype, *sizes)
        if key not in self._layouts:
            if len(self._layouts) >= 8:  # gradients that come and go: do not keep buffers for every set of them
                self._layouts.clear()
            self._layouts[key] = Sums(sizes, dtype, device)
        return self._layouts[key]

    def _over_shards(self, number: Tensor, sums: Tensor, parameters: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Join what the ranks found of their parts: one small collective, a second one where the maximum is wanted."""
        column = {name: sums[:, place] for name, place in PLACE.items()}
        counts = ("zeros", "nan", "inf", "subnormal")
        largest = column["max_abs"]
        added = sum_over_shards(
            torch.cat(
                [
                    terms(Moments(number, column["total"], column["squares"])),
                    terms(Moments(number, column["magnitude_total"], column["magnitude_squares"])),
                    torch.stack([*(column[name] for name in counts), largest.isnan().double()], 1),
                ],
                1,
            ),
            parameters,
        )
        whole, magnitudes = from_terms(added[:, :4]), from_terms(added[:, 4:8])
        if "max_abs" in self.wanted:
            largest = max_over_shards(largest.nan_to_num(nan=0, posinf=torch.inf).unsqueeze(1), parameters).squeeze(1)
            largest = torch.where(added[:, -1] > 0, torch.nan, largest)
        found = {
            "total": whole.total,
            "squares": whole.squares,
            "max_abs": largest,
            **dict(zip(counts, added[:, 8:12].unbind(1), strict=True)),
            "magnitude_total": magnitudes.total,
            "magnitude_squares": magnitudes.squares,
        }
        return whole.number, torch.stack([found[name] for name in COLUMNS], 1)


def derived(raw: Tensor) -> dict[str, Tensor]:
    """Statistics from raw sums, of each tensor and, last, of all of them together.

    Mean, variance, standard deviation and norm are NaN where an entry is NaN or infinite: of that tensor and of all together,
    not of the others.

    Args:
        raw: shape (steps, tensors, len(RAW)), on the CPU; a tensor that is absent from a step has n = 0.

    Returns:
        "n" and each of `STATISTICS`: shape (steps, tensors + 1), float64.

    Example:
        >>> rows = torch.zeros(1, 2, len(RAW), dtype=torch.float64)
        >>> rows[0, :, :3] = torch.tensor([[2.0, 3.0, 0.5], [2.0, 9.0, 4.5]])  # (1, 2) and (3, 6): n, sum, M2
        >>> derived(rows)["variance"].tolist()
        [[0.25, 2.25, 3.5]]
    """
    column = {name: raw[..., place].T for place, name in enumerate(RAW)}
    finite = column["squares"].isfinite()
    total, squares = (torch.where(finite, column[name], torch.nan) for name in ("total", "squares"))
    plain = _with_all(Moments(column["n"], total, squares))
    magnitudes = _with_all(Moments(column["n"], column["magnitude_total"], column["magnitude_squares"]))
    found = {"n": plain.number, **{name: getattr(plain, name) for name in MOMENTS}}
    found["max_abs"] = torch.cat([column["max_abs"], column["max_abs"].amax(0, keepdim=True)])
    for name in COUNTS:
        found[name] = torch.cat([column[name], column[name].sum(0, keepdim=True)])
    found["magnitude_variance"] = magnitudes.variance
    return {name: values.T for name, values in found.items()}


def _with_all(each: Moments) -> Moments:
    return Moments(*(torch.cat(pair) for pair in zip(each, pooled(each), strict=True)))
