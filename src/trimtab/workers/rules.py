"""What a worker makes of what all workers sent, some of whom may lie."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from trimtab.checks import whole
from trimtab.collectives import is_distributed, is_sharded
from trimtab.tensors.passes import working_dtype


class Rule(ABC):
    """Joins the vectors that n workers sent to one.

    Called with the vectors (n, d) and, where the rule asks for it, the own one. A vector that is not finite is as far away as
    can be; it is never averaged into the result.

    Args:
        f: workers that may send anything. Default 0.

    Raises:
        ValueError: f is negative; (at the call) f is half of the workers or more, or fewer vectors are finite than the rule
            needs.
    """

    needs_own = False

    def __init__(self, f: int = 0) -> None:
        self.f = whole("f", f, least=0)

    @abstractmethod
    def join(self, vectors: Tensor, own: Tensor) -> Tensor:
        """The result (d,), of real vectors (n, d) of which enough are finite."""

    @torch.no_grad()
    def __call__(self, vectors: Tensor, own: Tensor | None = None) -> Tensor:
        """The result (d,)."""
        if not isinstance(vectors, Tensor):
            raise TypeError(
                f"what was sent must be a matrix (workers, elements), got {type(vectors).__name__}; torch.stack joins"
            )
        if vectors.ndim != 2 or not len(vectors):
            raise ValueError(
                f"what was sent must be a matrix (workers, elements), got the shape {tuple(vectors.shape)}"
            )
        if 2 * self.f >= len(vectors):
            raise ValueError(f"of {len(vectors)} workers fewer than half may lie, got f={self.f}")
        if self.needs_own and (own is None or own.shape != vectors.shape[1:]):
            raise ValueError(f"{type(self).__name__} needs the worker's own vector of {vectors.shape[1]} elements")
        wide = vectors.to(working_dtype(vectors))
        sound = int(wide.isfinite().all(1).sum())
        if sound < len(vectors) - self.f:
            raise ValueError(
                f"{len(vectors) - sound} of {len(vectors)} vectors are not finite, f={self.f} may be wrong"
            )
        return self.join(wide, wide[0] if own is None else own.to(wide)).to(vectors.dtype)

    @torch.no_grad()
    def exchange_(self, model: nn.Module, group: Any = None) -> None:
        """Send the model's trainable parameters to all ranks and put in their place what the rule makes of those received.

        Call it on every rank after `optimizer.step()`: each worker steps on its own model with its own momentum
        (`SGD(momentum=0.9, dampening=0.9)`), and models are exchanged, not gradients. Without a process group nothing is
        exchanged.

        Args:
            model: on every rank of one build; not in DistributedDataParallel, which would average gradients.
            group: of `torch.distributed`. Default: all ranks. Any backend with all_gather, such as gloo.

        Raises:
            ValueError: the weights lie in shards.
        """
        parameters = [one for one in model.parameters() if one.requires_grad]
        for name, parameter in model.named_parameters():
            if is_sharded(parameter):
                raise ValueError(f"{name} lies in shards: workers exchange whole models")
        if not is_distributed() or not parameters:
            return
        own = torch.cat([parameter.detach().flatten() for parameter in parameters])
        received = [torch.empty_like(own) for _ in range(dist.get_world_size(group))]
        dist.all_gather(received, own, group=group)
        joined = self(torch.stack(received), own)
        sizes = [parameter.numel() for parameter in parameters]
        for parameter, part in zip(parameters, torch.split(joined, sizes), strict=True):
            parameter.copy_(part.view_as(parameter))

    def __repr__(self) -> str:
        return f"{type(self).__name__}(f={self.f})"


class NearestNeighbourAverage(Rule):
    """NNA: the mean of the n - f received vectors that lie nearest to the own one, which is among them.

    Args:
        f: workers that may send anything, fewer than half.

    Reference: MoNNA, arXiv 2209.10931: with momentum at the workers, exchanging models.

    Example:
        >>> sent = torch.tensor([[1.0], [2.0], [3.0], [900.0]])
        >>> NearestNeighbourAverage(f=1)(sent, own=sent[0])
        tensor([2.])
    """

    needs_own = True

    def join(self, vectors: Tensor, own: Tensor) -> Tensor:
        """The mean of the nearest."""
        distances = torch.linalg.vector_norm(vectors - own, dim=1)
        return vectors[_rising(distances, vectors)[: len(vectors) - self.f]].mean(0)


class Mean(Rule):
    """The plain mean, which one liar can put anywhere: the baseline.

    Example:
        >>> Mean()(torch.tensor([[1.0], [3.0]]))
        tensor([2.])
    """

    def join(self, vectors: Tensor, own: Tensor) -> Tensor:
        """The mean."""
        return vectors[_sound(vectors)].mean(0)


class Median(Rule):
    """The median of each element, the mean of the two middle ones where n is even.

    Reference: Yin et al., arXiv 1803.01498.

    Example:
        >>> Median(f=1)(torch.tensor([[1.0], [2.0], [900.0]]))
        tensor([2.])
    """

    def join(self, vectors: Tensor, own: Tensor) -> Tensor:
        """Element by element."""
        ordered = vectors.nan_to_num(torch.inf, torch.inf, -torch.inf).sort(0).values
        middle = len(vectors) // 2
        return ordered[middle] if len(vectors) % 2 else (ordered[middle - 1] + ordered[middle]) / 2


class TrimmedMean(Rule):
    """In each element the f largest and the f smallest left out, the mean of the others.

    Reference: Yin et al., arXiv 1803.01498.

    Example:
        >>> TrimmedMean(f=1)(torch.tensor([[1.0], [2.0], [4.0], [900.0]]))
        tensor([3.])
    """

    def join(self, vectors: Tensor, own: Tensor) -> Tensor:
        """Element by element."""
        ordered = vectors.nan_to_num(torch.inf, torch.inf, -torch.inf).sort(0).values
        return ordered[self.f : len(vectors) - self.f].mean(0)


class Krum(Rule):
    """The vector, or the mean of those, whose n - f - 2 nearest others lie nearest.

    Args:
        f: workers that may send anything; n must be f + 3 or more.
        select: how many are averaged. Default 1.

    Raises:
        ValueError: (at the call) fewer than f + 3 workers, or fewer finite vectors than `select`.

    Distances are not squared, as in torchjd.

    Reference: Blanchard et al., NeurIPS 2017.

    Example:
        >>> Krum(f=1)(torch.tensor([[1.0], [1.1], [1.3], [900.0]]))
        tensor([1.])
    """

    def __init__(self, f: int = 0, select: int = 1) -> None:
        super().__init__(f)
        self.select = whole("select", select, least=1)

    def join(self, vectors: Tensor, own: Tensor) -> Tensor:
        """The best placed."""
        count = len(vectors)
        if count < max(self.f + 3, self.select):
            raise ValueError(
                f"Krum(f={self.f}, select={self.select}) needs {max(self.f + 3, self.select)} workers, got {count}"
            )
        apart = torch.stack([torch.linalg.vector_norm(vectors - one, dim=1) for one in vectors])
        apart = apart.nan_to_num(torch.inf, torch.inf).fill_diagonal_(torch.inf)
        scores = apart.sort(1).values[:, : count - self.f - 2].sum(1)
        if (sound := int(_sound(vectors).sum())) < self.select:
            raise ValueError(f"Krum averages {self.select} vectors, of {count} only {sound} are finite")
        return vectors[_rising(scores, vectors)[: self.select]].mean(0)

    def __repr__(self) -> str:
        return f"Krum(f={self.f}, select={self.select})"


def _sound(vectors: Tensor) -> Tensor:
    return vectors.isfinite().all(1)


def _rising(scores: Tensor, vectors: Tensor) -> Tensor:
    """Places by rising score; vectors that are not finite last, whatever theirs, as where the own one is not."""
    most = torch.finfo(scores.dtype).max
    return scores.nan_to_num(most, most).where(_sound(vectors), torch.inf).argsort(stable=True)
