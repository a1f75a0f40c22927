"""What joins the gradients of several losses: from their products alone, or element by element."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from trimtab.tensors.passes import working_dtype

Tasks = Sequence[Sequence[Tensor]]
"""The gradients of each loss: one tensor for each parameter, in the same order for all."""
PIECE = 1 << 20
"""Elements of each loss that are laid side by side at once."""
SHARE = 40
"""And never more than this part of a gradient, so that K of them cost little memory beside the gradients themselves."""
LEAST, MOST = 1e-30, 1e30
"""Squared norms outside are computed anew in float64, since the squares of single elements may leave float32's range."""


def piece_elements(tasks: Tasks) -> int:
    """Elements of each loss that are worked on at once."""
    return min(PIECE, max(1 << 12, sum(part.numel() for part in tasks[0]) // SHARE))


def _pieces(tasks: Tasks) -> Iterator[Tensor]:
    """The gradients side by side, (tasks, elements), in pieces that are small beside the whole."""
    limit = piece_elements(tasks)
    waiting: list[list[Tensor]] = [[] for _ in tasks]
    held = 0

    def joined() -> Tensor:
        return torch.stack([row[0] if len(row) == 1 else torch.cat(row) for row in waiting])

    for parts in zip(*tasks, strict=True):
        flats = [part.reshape(-1) for part in parts]
        dtype = working_dtype(flats[0])
        for start in range(0, flats[0].numel(), limit):
            pieces = [flat[start : start + limit].to(dtype) for flat in flats]
            kin = waiting[0][0] if waiting[0] else pieces[0]
            if held and (held + pieces[0].numel() > limit or (kin.dtype, kin.device) != (dtype, pieces[0].device)):
                yield joined()
                waiting, held = [[] for _ in tasks], 0
            for row, piece in zip(waiting, pieces, strict=True):
                row.append(piece)
            held += pieces[0].numel()
    if held:
        yield joined()


def _products(tasks: Tasks, dtype: torch.dtype | None) -> Tensor:
    found = torch.zeros(len(tasks), len(tasks), dtype=torch.float64, device=tasks[0][0].device if tasks[0] else None)
    for rows in _pieces(tasks):
        rows = rows if dtype is None else rows.to(dtype)
        found += (rows @ rows.T).to(found)
    return found.cpu()


@torch.no_grad()
def gram(tasks: Tasks) -> Tensor:
    """All products `<g_i, g_j>` of the gradients of several losses; float64, (losses, losses), on the CPU.

    Args:
        tasks: for each loss its gradients, one tensor a parameter; real and dense.

    Example:
        >>> gram([[torch.tensor([3.0, 4.0])], [torch.tensor([1.0, -1.0])]])
        tensor([[25., -1.],
                [-1.,  2.]], dtype=torch.float64)
    """
    found = _products(tasks, None)
    squares = found.diagonal()
    if not bool(((squares > LEAST) & (squares < MOST)).all()):
        found = _products(tasks, torch.float64)
    return found


class Combiner(ABC):
    """Joins the gradients of K losses into one.

    Called with a matrix it gives a vector, as torchjd's aggregators do; `Combine` gives it the gradients of a network.

    Attributes:
        homogeneous: gradients times a factor give the result times that factor, and nothing is remembered that has a size: a
            `GradScaler` may stay in.
    """

    homogeneous = True

    @abstractmethod
    def combine_(self, tasks: Tasks, products: Tensor) -> list[Tensor]:
        """One gradient for each parameter; those of the losses may be overwritten, and may be what is returned.

        Args:
            tasks: for each loss one gradient a parameter.
            products: `gram(tasks)`, finite.
        """

    @torch.no_grad()
    def __call__(self, gradients: Tensor) -> Tensor:
        """One gradient (d,) of those in the rows (K, d), which stay as they are.

        Raises:
            ValueError: no matrix with a row, or one that is not finite.
        """
        if gradients.ndim != 2 or 0 in gradients.shape:
            raise ValueError(f"gradients must be a matrix (losses, elements), got the shape {tuple(gradients.shape)}")
        tasks = [[row.clone()] for row in gradients]
        products = gram(tasks)
        if not bool(products.isfinite().all()):
            raise ValueError(f"gradients must be finite, those of loss {_first_bad(products)} are not")
        (found,) = self.combine_(tasks, products)
        return found

    def settings(self) -> dict[str, Any]:
        """What changes the formula; a saved state fits only where these agree."""
        return {}

    def memory(self) -> dict[str, Any]:
        """What it remembers of earlier steps: plain tensors, numbers and lists."""
        return {}

    def remember(self, memory: dict[str, Any]) -> None:  # noqa: B027  (most rules remember nothing)
        """Take over what `memory` gave."""

    def state_dict(self) -> dict[str, Any]:
        """Settings and memory."""
        return {"settings": self.settings(), "memory": self.memory()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved state.

        Raises:
            ValueError: it is of other settings.
        """
        if state["settings"] != self.settings():
            raise ValueError(f"the saved state is of {state['settings']}, this is {self!r}")
        self.remember(state["memory"])

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in self.settings().items())})"


class Weighted(Combiner):
    """A combiner whose result is a weighted sum of the gradients, with weights from their products alone."""

    @abstractmethod
    def weights(self, products: Tensor) -> Tensor:
        """One weight a loss, float64 (K,), of the products (K, K), float64 on the CPU."""

    def combine_(self, tasks: Tasks, products: Tensor) -> list[Tensor]:
        """The weighted sum, written over the gradients of the first loss."""
        return weighted_(tasks, self.weights(products))


@torch.no_grad()
def weighted_(tasks: Tasks, weights: Tensor) -> list[Tensor]:
    """`sum_k w_k g_k`, written over the first loss's gradients; halves are added in float32 and rounded once.

    Example:
        >>> weighted_([[torch.ones(2)], [torch.ones(2)]], torch.tensor([0.5, 2.0]))
        [tensor([2.5000, 2.5000])]
    """
    first, *others = tasks
    factors = weights.tolist()
    plain = [at for at, part in enumerate(first) if part.dtype in (torch.float32, torch.float64)]
    if plain:
        mine = [first[at] for at in plain]
        torch._foreach_mul_(mine, factors[0])
        for task, factor in zip(others, factors[1:], strict=True):
            if factor:
                torch._foreach_add_(mine, [task[at] for at in plain], alpha=factor)
    for at in set(range(len(first))) - set(plain):
        wide = first[at].float() * factors[0]
        for task, factor in zip(others, factors[1:], strict=True):
            wide.add_(task[at], alpha=factor)
        first[at].copy_(wide)
    return list(first)


def norms(products: Tensor) -> Tensor:
    """Norms of the gradients, of their products."""
    return products.diagonal().clamp(min=0).sqrt()


def check_remembered(what: str, remembered: Sequence[Tensor], now: Sequence[Tensor]) -> None:
    """That what is remembered is of the parameters that are joined now.

    Raises:
        ValueError: it is of others, as when some were frozen since.
    """
    shapes = [[tuple(part.shape) for part in parts] for parts in (remembered, now)]
    if remembered and shapes[0] != shapes[1]:
        raise ValueError(
            f"{what} remembers gradients of {len(remembered)} parameters, joined now are {len(now)}, of other shapes; where "
            "parameters are frozen or thawed begin with a new combiner"
        )


def beside(held: Sequence[Sequence[Tensor]], now: Sequence[Sequence[Tensor]]) -> list[list[Tensor]]:
    """What is remembered, on the devices of what it belongs to: a resumed state may come from elsewhere."""
    return [
        [part.to(other.device) for part, other in zip(parts, others, strict=True)]
        for parts, others in zip(held, now, strict=True)
    ]


def _first_bad(products: Tensor) -> int:
    return int((~products.diagonal().isfinite()).nonzero()[0])
