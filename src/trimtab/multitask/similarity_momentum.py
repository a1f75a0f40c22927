"""SimilarityMomentum (SAM-GS): losses of unlike gradient size are made alike, losses of like size go by their momentum."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from trimtab.checks import below_one, flag, number, one_of, positive
from trimtab.multitask.base import Combiner, Tasks, beside, check_remembered, norms, weighted_
from trimtab.multitask.equal_norm import equalising
from trimtab.tensors.norms import joint_norm
from trimtab.tensors.passes import working_dtype

BLOCK = 1 << 15
"""Elements of each gradient and momentum that are worked on at once: all of it stays in a core's cache."""
Reduce = Literal["off_diagonal", "min", "all"]
REDUCES = ("off_diagonal", "min", "all")


class SimilarityMomentum(Combiner):
    """SAM-GS: a gate on how alike the sizes of the gradients are.

    `psi_ij = 2 ||g_i|| ||g_j|| / (||g_i||^2 + ||g_j||^2)`, `Psi` over the pairs; `m_k <- b1 m_k + (1 - b1) g_k`,
    `h <- b2 h + (1 - b2) (1 - Psi)^2 + eps`, both bias-corrected. Where `Psi < gamma`: `sum_k (mean_j ||g_j|| / ||g_k||) g_k`;
    elsewhere `sum_k |m_k| / (sqrt(h) + eps) (*) g_k`, element by element.

    Args:
        gamma: similarity from which momentum leads, 0 to 1. Default 0.9, of those that the paper tunes over {0, .5, .7, .9, 1};
            its printed 0.1 can never be undercut with the diagonal in the mean.
        betas: of momentum and of the gate's running square; in [0, 1). Default (0.9, 0.99) (paper).
        eps: above 0. Default 1e-8 (paper).
        reduce: `Psi` is the mean over pairs of two losses ("off_diagonal", default [ours]), their least ("min" [ours]) or the
            mean with the diagonal of ones ("all", as printed).
        normalise: the result gets the norm of the plain sum [ours], so that the learning rate keeps its meaning; False: as
            printed, where the momentum branch has the unit of a gradient squared and steps that are orders of magnitude off.
            Default True.

    Raises:
        ValueError: a value is out of range, or (at the call) fewer than two losses, or another number or other
            parameters than before.

    Needs the momentum of every loss: K gradients of memory. A gradient of zero counts as unlike all others.

    Reference: SAM-GS, arXiv 2506.06130.

    Example:
        >>> SimilarityMomentum()(torch.tensor([[3.0, 0.0], [0.0, 1.0]]))  # unlike sizes: made alike, as long as the sum
        tensor([2.2361, 2.2361])
    """

    homogeneous = False

    def __init__(
        self,
        gamma: float = 0.9,
        betas: tuple[float, float] = (0.9, 0.99),
        eps: float = 1e-8,
        reduce: Reduce = "off_diagonal",
        *,
        normalise: bool = True,
    ) -> None:
        self.gamma = number("gamma", gamma, least=0, most=1)
        self.betas = below_one("betas", betas[0]), below_one("betas", betas[1])
        self.eps = positive("eps", eps)
        self.reduce = one_of("reduce", reduce, REDUCES)
        self.normalise = flag("normalise", normalise)
        self.similarity = float("nan")
        """Psi of the last call."""
        self._steps, self._square = 0, 0.0
        self._momenta: list[list[Tensor]] = []

    def combine_(self, tasks: Tasks, products: Tensor) -> list[Tensor]:
        """By the gate; the momenta learn in both branches."""
        if len(tasks) < 2 or (self._momenta and len(self._momenta) != len(tasks)):
            before = f", before it {len(self._momenta)}" if self._momenta else ""
            raise ValueError(f"SAM-GS compares two losses or more, always as many, got {len(tasks)}{before}")
        check_remembered("SAM-GS", self._momenta[0] if self._momenta else [], tasks[0])
        if self._momenta:
            self._momenta = beside(self._momenta, tasks)
        sizes = norms(products)
        self.similarity = self._psi(sizes)
        first, second = self.betas
        self._steps += 1
        self._square = second * self._square + (1 - second) * (1 - self.similarity) ** 2 + self.eps
        if not self._momenta:
            self._momenta = [[torch.zeros_like(part, dtype=working_dtype(part)) for part in task] for task in tasks]
        if self.similarity < self.gamma:
            for held, task in zip(self._momenta, tasks, strict=True):
                for momentum, part in zip(held, task, strict=True):
                    momentum.lerp_(part.to(momentum.dtype), 1 - first)
            found = weighted_(tasks, equalising(sizes))
        else:
            root = (self._square / (1 - second**self._steps)) ** 0.5 + self.eps
            factor = 1 / float(sizes.max().clamp(min=1e-300)) if self.normalise else 1 / root
            found = self._by_momentum(tasks, factor / (1 - first**self._steps))
        if self.normalise and (length := float(joint_norm(found))) > 0:
            torch._foreach_mul_(found, float(products.sum().clamp(min=0).sqrt()) / length)
        return [
            part if total.dtype == part.dtype else part.copy_(total)
            for part, total in zip(tasks[0], found, strict=True)
        ]

    def _psi(self, sizes: Tensor) -> float:
        largest = sizes.max().clamp(min=torch.finfo(torch.float64).tiny)
        one, other = (sizes / largest).unsqueeze(0), (sizes / largest).unsqueeze(1)
        squares = one.square() + other.square()
        pairs = torch.where(squares > 0, 2 * one * other / torch.where(squares > 0, squares, 1), 0)
        if self.reduce == "all":
            return float((pairs + torch.diag((sizes == 0).to(pairs))).mean())
        apart = pairs[~torch.eye(len(sizes), dtype=torch.bool)]
        return float(apart.min() if self.reduce == "min" else apart.mean())

    def _by_momentum(self, tasks: Tasks, factor: float) -> list[Tensor]:
        """`factor sum_k |m_k| (*) g_k` with the momenta of this step, in float32 for halves; piece by piece, each read once."""
        found = []
        for at, part in enumerate(tasks[0]):
            rows, momenta = [task[at] for task in tasks], [held[at] for held in self._momenta]
            total = part if part.dtype == momenta[0].dtype else torch.empty_like(momenta[0])
            together = [total, *rows, *momenta]
            pieces: Iterable[tuple[Tensor, ...]]
            if part.numel() > BLOCK and all(one.is_contiguous() for one in together):
                pieces = zip(*(torch.split(one.view(-1), BLOCK) for one in together), strict=True)
            else:
                pieces = [tuple(together)]
            for joined, *both in pieces:
                self._add_up_(joined, both[: len(rows)], both[len(rows) :], factor)
            found.append(total)
        return found

    def _add_up_(self, total: Tensor, rows: Sequence[Tensor], momenta: Sequence[Tensor], factor: float) -> None:
        """One piece; `total` may be the first row."""
        found = torch.zeros_like(total)
        for row, momentum in zip(rows, momenta, strict=True):
            wide = row.to(momentum.dtype)
            momentum.lerp_(wide, 1 - self.betas[0])
            found.addcmul_(momentum.abs(), wide, value=factor)
        total.copy_(found)

    def settings(self) -> dict[str, Any]:
        """All but the memory."""
        return {
            "gamma": self.gamma,
            "betas": list(self.betas),
            "eps": self.eps,
            "reduce": self.reduce,
            "normalise": self.normalise,
        }

    def memory(self) -> dict[str, Any]:
        """Steps, the gate's square and the momenta."""
        return {"steps": self._steps, "square": self._square, "momenta": [list(held) for held in self._momenta]}

    def remember(self, memory: dict[str, Any]) -> None:
        """Go on from there."""
        self._steps, self._square = int(memory["steps"]), float(memory["square"])
        self._momenta = [[part.clone() for part in held] for held in memory["momenta"]]
